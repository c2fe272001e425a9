"""The convolution of a signal that comes in parts is the convolution; in float64, exactly to rounding."""

from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.modules.online_conv import BLOCK, FilterBank, OnlineConv
from m2gen.reference.fftconv import fftconv as reference

F64 = torch.float64


def bank(layers: int, channels: int, taps: int, heads: int = 1) -> FilterBank:
    filters = [torch.randn(channels // heads, taps, dtype=F64) for _ in range(layers)]
    skips = [torch.randn(channels, dtype=F64) if i != 1 else None for i in range(layers)]
    return FilterBank(filters, skips, heads)


def whole(bank: FilterBank, layer: int, z: Tensor) -> Tensor:
    """z (B, L, channels) with a layer's filter and skip, all at once."""
    k = bank.filters[layer].repeat(bank.heads, 1)[:, : z.shape[1]]
    return reference(z.transpose(1, 2), k, mode="causal", skip=bank.skips[layer]).transpose(1, 2)


def in_parts(conv: OnlineConv, z: list[Tensor], sizes: list[int]) -> list[Tensor]:
    out: list[list[Tensor]] = [[] for _ in z]
    for size in sizes:
        for layer, samples in enumerate(z):
            out[layer].append(conv.extend(layer, samples[:, conv.position :][:, :size]))
        conv.advance(size)
    return [torch.cat(parts, dim=1) for parts in out]


def split(length: int, seed: int, longest: int) -> list[int]:
    chance, sizes = random.Random(seed), []
    while length:
        sizes.append(min(length, chance.randint(1, longest)))
        length -= sizes[-1]
    return sizes


@settings(deadline=None, max_examples=30)
@given(
    capacity=st.sampled_from([1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 200, 256, 300, 512, 700]),
    taps=st.sampled_from([1, 3, BLOCK, 150, 1024]),
    heads=st.sampled_from([1, 3]),
    longest=st.sampled_from([1, 3, BLOCK, 100, 700]),
    seed=st.integers(0, 1000),
)
def test_any_cut_gives_the_convolution(capacity: int, taps: int, heads: int, longest: int, seed: int) -> None:
    torch.manual_seed(seed)
    b = bank(layers=3, channels=6, taps=taps, heads=heads)
    z = [torch.randn(2, capacity, 6, dtype=F64) for _ in range(3)]
    found = in_parts(OnlineConv(b, 2, capacity), z, split(capacity, seed, longest))
    for layer, y in enumerate(found):
        torch.testing.assert_close(y, whole(b, layer, z[layer]), rtol=0, atol=1e-12 * math.sqrt(min(taps, capacity)))


def test_the_buffer_is_half_the_capacity() -> None:
    b = bank(3, 8, 1000, heads=2)
    assert OnlineConv(b, 5, 1000).nbytes == 512 * 5 * 3 * 8 * 8
    assert OnlineConv(b, 1, 10).nbytes == BLOCK * 3 * 8 * 8


def test_stacks_for_tiles_stay_small() -> None:
    b = bank(2, 4, 2048)
    conv = OnlineConv(b, 1, 2048)
    before = b.nbytes
    for _ in range(2048):
        for layer in range(2):
            conv.extend(layer, torch.randn(1, 1, 4, dtype=F64))
        conv.advance(1)
    taps = sum(stack.k.numel() for stack in b._stacked.values())
    assert 0 < taps <= 2 * 4 * (2 * 2048 + 2 * BLOCK)
    # their spectra are complex, of rings of up to four times the taps where those are padded to powers of two
    assert 8 * taps <= b.nbytes - before <= 8 * taps * (1 + 2 * 4)


def test_no_more_than_fits() -> None:
    conv = OnlineConv(bank(1, 4, 100), 1, 100)
    conv(torch.zeros(1, 99, 4, dtype=F64))
    with pytest.raises(ProblemError, match="room for 100"):
        conv(torch.zeros(1, 2, 4, dtype=F64))

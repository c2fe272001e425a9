"""Filters on large rings: spectra for kernels that leave bins in the order of their stages, and the way back.

By PyTorch's FFT in complex64, some channels at a time: what it works in is counted in the plan's scratch
(`filter_bytes`, `backward_bytes` in planner/fftconv/passes_cost.py). large_filter_triton.py does the same by a launch
for each stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from m2gen.runtime.bindings.constants import ring_weights
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands


class LargeFilters(Protocol):
    """The way from taps to a spectrum, and back from sums of spectra to taps' gradients, some channels at a time."""

    def spectrum(self, x: Operands, part: slice) -> tuple[Tensor, Tensor]:
        """kf (C, K, 2, M) of the channels `part`, K rows of the outer stages of M points each, and the powers of two
        (C,) it was divided by, after which no bin exceeds 1."""

    def write(self, sums: Tensor, part: slice, out: Gradients, order: tuple[int, ...]) -> None:
        """Fill the gradients of taps from sums (C K, 2, M), which are written over; `order` has the radices of the
        kernel on chip that wrote them."""


class LibraryLargeFilters:
    """By PyTorch's FFT."""

    def __init__(self, ring: Ring, kind: str, radices: Sequence[int], dtype: torch.dtype) -> None:
        """`radices` are those of the stages, the last two on chip."""
        self.ring, self.kind, self.radices, self.dtype = ring, kind, radices, dtype

    def spectrum(self, x: Operands, part: slice) -> tuple[Tensor, Tensor]:
        return spectrum(x, part, self.ring, self.kind, self.radices, self.dtype)

    def write(self, sums: Tensor, part: slice, out: Gradients, order: tuple[int, ...]) -> None:
        bins = from_kernel(sums, self.ring.size, (*self.radices[:-2], *order))
        del sums
        ahead, behind = taps(bins, self.ring, self.kind)
        self.ring.write_gradients(ahead, part, out.k, out.k_rev, behind)


def spectrum(
    x: Operands, part: slice, ring: Ring, kind: str, radices: Sequence[int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """kf (H, K, 2, M) of the channels `part`, K rows of the outer stages of M points each, and the powers of two (H,)
    it was divided by, after which no bin exceeds 1. `radices` are those of the stages, the last two on chip."""
    k, k_rev = x.k[part].float(), None if x.k_rev is None else x.k_rev[part].float()
    taps = ring.place_complex(k, k_rev, kind == "causal")
    if x.skip is not None:
        taps[:, 0] += x.skip[part]  # an impulse at lag 0
    weights = ring_weights(kind, ring.size, taps.device)
    bins = torch.fft.fft(taps if weights is None else taps.mul_(weights))
    del taps
    largest = torch.linalg.vector_norm(torch.view_as_real(bins).flatten(1), torch.inf, 1)
    scale = largest.view(torch.int32).add_(2 << 23).bitwise_and_(255 << 23).view(torch.float32)  # its exponent + 2
    # bin k0 + n0 * (k1 + n1 * (...)) stands at [k0, k1, ...]
    stages = len(radices)
    bins = bins.view(-1, *reversed(radices)).permute(0, *range(stages, 0, -1))
    parts = torch.view_as_real(bins).movedim(-1, -3)
    ordered = parts.new_empty(parts.shape, dtype=dtype)
    torch.div(parts, scale.view(-1, *[1] * (stages + 1)), out=ordered)
    return ordered.flatten(-2).flatten(1, -3), scale


def from_kernel(sums: Tensor, size: int, radices: Sequence[int]) -> Tensor:
    """Bins (H, N) in their own order, of sums (H K, 2, M) in the kernels'."""
    stages = len(radices)
    bins = sums.view(-1, *radices[:-2], 2, *radices[-2:]).movedim(stages - 1, -1)
    bins = bins.permute(0, *range(stages, 0, -1), stages + 1).reshape(-1, size, 2)
    return torch.view_as_complex(bins)


def taps(bins: Tensor, ring: Ring, kind: str) -> tuple[Tensor, Tensor | None]:
    """The gradient of every tap of the ring (H, N), in float32, from that of its bins: for lags from 0 on, and for
    negative ones where there are some and they differ."""
    found = torch.fft.ifft(bins, norm="forward")  # the sum itself, over no size
    weights = ring_weights(kind, ring.size, found.device)
    if weights is None:
        return found.real, None
    found = found.mul_(weights.conj_physical())
    return found.real, None if ring.lo == 0 else -found.imag

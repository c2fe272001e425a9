"""Short convolutions against float64: widths, padding, layouts in and out, masks, the mixer's form, every gradient."""

from __future__ import annotations

from typing import Any

import comparison
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2gen.device.limits import target
from m2gen.errors import M2GenError
from m2gen.kernels.shortconv import SUMMED, ShortconvSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.shortconv import tiles
from m2gen.planner.shortconv.tiles import ShortconvSizes, candidates
from m2gen.runtime.bindings import shortconv_triton as kernels
from m2gen.runtime.bindings.shortconv import Mixed

pytestmark = pytest.mark.usefixtures("poison")
LENGTHS = st.sampled_from([1, 2, 3, 17, 31, 65])
WIDTHS = st.sampled_from([1, 2, 3, 4, 5, 9, 11])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "live", lambda device: comparison.SMALL)
    monkeypatch.setattr(tiles, "_TILES", ((64, 64), (32, 32)))


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, length: int, mask: Tensor | None) -> Tensor:
    """The sum over taps by torch, for autograd."""
    x = x if mask is None else torch.where(mask[:, None], x, x.new_zeros(()))
    padded = F.pad(x, (left, max(0, length + weight.shape[1] - 1 - left - x.shape[2])))
    y = sum(weight[:, w, None] * padded[..., w : w + length] for w in range(weight.shape[1]))
    return y if bias is None else y + bias[:, None]


def mixed(h: Tensor, weight: Tensor, bias: Any, offset: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    h = h if offset is None else h + offset[:, None]
    x1, x2, v = exact(h, weight, bias, weight.shape[1] - 1, h.shape[2], mask).chunk(3, dim=1)
    v = v if mask is None else torch.where(mask[:, None], v, v.new_zeros(()))
    return x1 * v, x2


def high(*tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def compare(found: Any, outputs: tuple[Tensor, ...], inputs: list[Any], dys: tuple[Tensor, ...]) -> None:
    wanted = torch.autograd.grad(outputs, [t for t in inputs if t is not None], [dy.double() for dy in dys])
    assert [t is None for t in found[: len(inputs)]] == [t is None for t in inputs]
    grads = [grad for grad in found if grad is not None]
    for i, (grad, want) in enumerate(zip(grads, wanted, strict=True)):
        comparison.close(grad, want, f"gradient {i}")


def hearing(draw: st.DrawFn, batch: int, length: int) -> Tensor | None:
    """No mask, or one with padding anywhere."""
    return comparison.draw(batch, length, seed=5) > -0.5 if draw(st.booleans()) else None


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    batch, channels, length = draw(st.integers(1, 3)), draw(comparison.SIZES), draw(LENGTHS)
    dtype, width = draw(comparison.dtypes), draw(WIDTHS)
    left, right = draw(st.sampled_from([(width - 1, 0), ((width - 1) // 2, width // 2), (2, 2), (0, 0), (7, 7)]))
    return {
        "x": comparison.strided(comparison.draw(batch, channels, length, dtype=dtype), draw(comparison.STRIDES)),
        "weight": comparison.strided(comparison.draw(channels, width, dtype=dtype, seed=1), draw(comparison.STRIDES)),
        "bias": comparison.draw(channels, dtype=dtype, seed=2) if draw(st.booleans()) else None,
        "left": left,
        "length": max(0, length + left + right - width + 1),
        "mask": hearing(draw, batch, length) if (left, right) == (width - 1, 0) else None,
        "out": draw(comparison.STRIDES),
    }


@settings(max_examples=12)
@given(problems())
def test_convolutions_and_every_gradient(problem: dict[str, Any]) -> None:
    x, weight, bias, left, mask = (problem[name] for name in ("x", "weight", "bias", "left", "mask"))
    shape = (*x.shape[:2], problem["length"])
    out = comparison.strided(torch.full(shape, float("nan"), dtype=x.dtype), problem["out"])
    y = kernels.convolve(x, weight, bias, left, mask, out)
    inputs = high(x, weight, bias)
    expected = exact(*inputs, left, problem["length"], mask)
    comparison.close(y, expected, "y")
    dy = comparison.strided(comparison.draw(*shape, dtype=x.dtype, seed=3), problem["out"])
    compare(kernels.gradients(dy, x, weight, bias is not None, left, mask), (expected,), inputs, (dy,))


@st.composite
def mixers(draw: st.DrawFn) -> dict[str, Any]:
    batch, channels, length = draw(st.integers(1, 2)), draw(comparison.SIZES), draw(LENGTHS)
    dtype, width = draw(comparison.dtypes), draw(WIDTHS)
    h = comparison.draw(batch, 3 * channels, length, dtype=dtype)
    by_channel = draw(st.booleans())  # as a projection W x^T of all positions gives it
    return {
        "h": h.transpose(0, 1).contiguous().transpose(0, 1) if by_channel else strided(draw, h),
        "weight": comparison.draw(3 * channels, width, dtype=dtype, seed=1),
        "bias": comparison.draw(3 * channels, dtype=dtype, seed=2) if draw(st.booleans()) else None,
        "offset": comparison.draw(3 * channels, dtype=dtype, seed=6) if draw(st.booleans()) else None,
        "mask": hearing(draw, batch, length),
        "out": draw(comparison.STRIDES),
    }


def strided(draw: st.DrawFn, x: Tensor) -> Tensor:
    return comparison.strided(x, draw(comparison.STRIDES))


@settings(max_examples=12)
@given(mixers())
def test_the_mixer_s_form_and_every_gradient(problem: dict[str, Any]) -> None:
    h, weight, bias, offset, mask = (problem[name] for name in ("h", "weight", "bias", "offset", "mask"))
    shape = (h.shape[0], h.shape[1] // 3, h.shape[2])
    out = tuple(comparison.strided(torch.full(shape, float("nan"), dtype=h.dtype), problem["out"]) for _ in range(2))
    found = kernels.mix(h, weight, bias, mask, out, offset=offset)
    inputs = high(h, weight, bias, offset)
    expected = mixed(*inputs, mask)
    for name, y, want in zip("zg", found, expected, strict=True):
        comparison.close(y, want, name)
    dys = tuple(comparison.strided(comparison.draw(*shape, dtype=h.dtype, seed=s), problem["out"]) for s in (3, 4))
    mixing = Mixed(h, weight, bias, offset, mask)
    if weight.shape[1] <= SUMMED:
        compare(kernels.mix_gradients(*dys, *mixing), expected, inputs, dys)
    else:
        behind(mixing, dys)


def behind(mixing: Mixed, dys: tuple[Tensor, ...]) -> None:
    """The gradient behind the convolutions, where filters have more taps than one kernel of all gradients."""
    h, weight, bias, offset, mask = mixing
    ds = torch.full(h.shape, float("nan"))
    kernels._mixed("ds", mixing, *dys, ds)
    heard = h.double() if offset is None else h.double() + offset.double()[:, None]
    s = exact(heard, weight.double(), None if bias is None else bias.double(), weight.shape[1] - 1, h.shape[2], mask)
    x1, x2, v = s.requires_grad_().chunk(3, dim=1)
    v = v if mask is None else torch.where(mask[:, None], v, v.new_zeros(()))
    (wanted,) = torch.autograd.grad((x1 * v, x2), (s,), [dy.double() for dy in dys])
    assert (ds - wanted).abs().max() <= comparison.BOUND[torch.float32] * wanted.abs().max().clamp_min(1e-30)


def test_the_widest_filter() -> None:
    width = 64
    x, weight = comparison.draw(1, 3, 80), comparison.draw(3, width, seed=1) / width
    inputs = high(x, weight, None)
    expected = exact(*inputs, width - 1, 80, None)
    comparison.close(kernels.convolve(x, weight), expected)
    dy = comparison.draw(1, 3, 80, seed=2)
    compare(kernels.gradients(dy, x, weight, False), (expected,), inputs, (dy,))


def test_every_tile_that_planning_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, weight = comparison.draw(1, 20, 40, dtype=torch.float16), comparison.draw(20, 3, dtype=torch.float16, seed=1)
    expected = exact(x.double(), weight.double(), None, 2, 40, None)
    ranked = candidates(ShortconvSizes(1, 20, 40, 3, "fp16"), target("sm90"))
    assert len(ranked) == len(tiles._TILES) >= 8
    for one in ranked:
        comparison.close(kernels.convolve(x, weight, spec=one.spec), expected, one.spec.name)


def test_a_filter_too_wide_is_refused() -> None:
    with pytest.raises(M2GenError, match="65 taps"):
        kernels.convolve(torch.ones(1, 1, 4), torch.ones(1, 65))


def test_padding_that_is_not_a_number_is_not_heard() -> None:
    h, weight, bias = comparison.draw(2, 9, 40), comparison.draw(9, 3, seed=1), comparison.draw(9, seed=2)
    mask = torch.arange(40) < torch.tensor([[40], [23]])
    clean = kernels.mix(h, weight, bias, mask)
    spoiled = h.masked_fill(~mask[:, None], float("nan"))
    found = kernels.mix(spoiled, weight, bias, mask)
    assert all(torch.equal(a, b) for a, b in zip(found, clean, strict=True))
    dys = (comparison.draw(2, 3, 40, seed=3), comparison.draw(2, 3, 40, seed=4))
    offset = comparison.draw(9, seed=5)
    pairs = zip(*(kernels.mix_gradients(*dys, x, weight, bias, offset, mask) for x in (h, spoiled)), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("parts", [1, 5])
def test_the_mixer_s_sums_are_taken_in_parts_in_their_order(parts: int) -> None:
    h, weight, bias = comparison.draw(3, 15, 90), comparison.draw(15, 3, seed=1), comparison.draw(15, seed=2)
    dys = (comparison.draw(3, 5, 90, seed=3), comparison.draw(3, 5, 90, seed=4))
    spec = ShortconvSpec(part="mix_bwd", width=3, dtype="fp32", block_l=16, block_h=16, bias=True)
    choice = Candidate(spec, 0.0, 0.0, parts)
    first, second = (kernels.mix_gradients(*dys, h, weight, bias, choice=choice) for _ in range(2))
    inputs = high(h, weight, bias)
    wanted = torch.autograd.grad(mixed(*inputs, None, None), inputs, [dy.double() for dy in dys])
    for grad, want, again in zip(first, wanted, second, strict=False):
        comparison.close(grad, want)
        assert torch.equal(grad, again)


@pytest.mark.parametrize("apart", [0, 1, 2])
def test_offsets_pass_two_to_the_31(apart: int) -> None:
    """Rows, channels or times further apart than 32 bits count; the memory between them is never touched."""
    far = 2**31 + 24
    strides = [6, 2, 1]
    strides[apart] = far
    weight = comparison.draw(3, 2, dtype=torch.float16)[:2]
    near = comparison.draw(2, 2, 2, dtype=torch.float16, seed=1)
    x, y = (torch.empty(far + 64, dtype=torch.float16).as_strided(near.shape, strides) for _ in range(2))
    x.copy_(near)
    assert torch.equal(kernels.convolve(x, weight, y=y), kernels.convolve(near, weight))
    y.copy_(near)
    assert torch.equal(kernels.weight_gradients(y, x, 2, 1), kernels.weight_gradients(near, near, 2, 1))


@pytest.mark.parametrize("parts", [1, 5])
def test_sums_are_taken_in_parts_in_their_order(parts: int) -> None:
    x, dy = comparison.draw(3, 20, 90, dtype=torch.float16), comparison.draw(3, 20, 90, dtype=torch.float16, seed=1)
    spec = ShortconvSpec(part="dw", width=3, dtype="fp16", block_l=16, block_h=32, taps=2)
    first, second = (kernels.weight_gradients(dy, x, 3, 2, None, Candidate(spec, 0.0, 0.0, parts)) for _ in range(2))
    padded = F.pad(x.double(), (2, 0))
    wanted = [(padded[..., w : w + 90] * dy.double()).sum((0, 2)) for w in range(3)] + [dy.double().sum((0, 2))]
    comparison.close(first, torch.stack(wanted, dim=1))
    assert torch.equal(first, second)

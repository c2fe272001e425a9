"""depthwise_conv1d by generated kernels: against the float64 reference, at edges, on threads, and done without them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.reference.linear import depthwise_conv1d as reference
from m2gen.runtime import executor
from m2gen.testing import tolerances

pytestmark = pytest.mark.generated
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("BHL", "BLH", "of a wider tensor", "every other sample")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values (B, H, L), with other strides."""
    batch, channels, length = x.shape
    if layout == "BLH":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "of a wider tensor":
        wide = torch.full((batch, length, channels + 5), float("nan"), dtype=x.dtype)
        wide[..., 2 : channels + 2] = x.transpose(1, 2)
        return wide[..., 2 : channels + 2].transpose(1, 2)
    if layout == "every other sample":
        wide = torch.full((batch, channels, 2 * length), float("nan"), dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    return x


def pads(padding: str | int, width: int) -> tuple[int, int]:
    if isinstance(padding, int):
        return padding, padding
    left = width - 1 if padding == "causal" else (width - 1) // 2
    return left, width - 1 - left


def compare(found: Tensor, function: object, inputs: list[Tensor], index: int, reduction: int) -> None:
    """`found` against the reference, its errors measured by what the sizes of the terms add up to, or where that is
    less, by the smallest number that has all its digits."""
    exact, size = function([x.double() for x in inputs]), function([x.double().abs() for x in inputs])  # type: ignore[operator]
    tolerances.check(found, exact[index], size[index].clamp_min(torch.finfo(found.dtype).tiny), reduction)


def values(inputs: list[Tensor], left: int, right: int) -> list[Tensor]:
    """[y, dx, dweight, dbias] of the reference, given [x, weight, bias, dy]."""
    *leaves, dy = [x.detach().requires_grad_() for x in inputs]
    y = reference(*leaves, left, right)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.detach())]


@settings(max_examples=100)
@given(
    width=st.sampled_from([1, 2, 3, 4, 8, 9, 64]),  # each is a kernel to compile
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 8, 16, 17, 40]),
    length=st.one_of(st.integers(1, 80), st.sampled_from([257, 1100])),
    padding=st.sampled_from(["causal", "same", 0, 1, 70]),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    bias=st.booleans(),
)
def test_values_and_gradients(
    width: int,
    batch: int,
    channels: int,
    length: int,
    padding: str | int,
    dtype: torch.dtype,
    layout: str,
    bias: bool,
) -> None:
    if isinstance(padding, int):
        length = max(length, width - 2 * padding)
    left, right = pads(padding, width)
    x, weight = normal(batch, channels, length), normal(channels, width, seed=1)
    offset = normal(channels, seed=2) if bias else torch.zeros(channels)
    dy = normal(batch, channels, length + left + right - width + 1, seed=3)
    inputs = [t.to(dtype) for t in (x, weight, offset, dy)]
    x, weight, offset = laid_out(inputs[0], layout).requires_grad_(), *(t.requires_grad_() for t in inputs[1:3])
    y = m2gen.depthwise_conv1d(x, weight, offset if bias else None, padding)
    wanted = (x, weight, offset) if bias else (x, weight)
    grads = torch.autograd.grad(y, wanted, laid_out(inputs[3], layout))
    terms = batch * dy.shape[2]
    inputs = [t.detach() for t in inputs]
    for i, (found, reduction) in enumerate(zip((y, *grads), (width + 1, width, terms, terms), strict=False)):
        assert found.dtype == dtype
        compare(found.detach(), lambda at: values(at, left, right), inputs, i, reduction)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("vector_bytes", [32, 64])
def test_the_vector_length_changes_nothing_but_rounding(
    monkeypatch: pytest.MonkeyPatch, layout: str, vector_bytes: int
) -> None:
    live = executor.live
    monkeypatch.setattr(executor, "live", lambda device: replace(live(device), vector_bytes=vector_bytes))
    test_values_and_gradients.hypothesis.inner_test(5, 2, 40, 300, "same", torch.float32, layout, True)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("length", [3, 40, 300])
def test_what_stands_beside_a_row_does_not_reach_it(layout: str, length: int) -> None:
    """NaN in every channel and batch row but one, and around the whole tensor: the edges read zeros, not neighbours."""
    x = torch.full((5, 19, length), float("nan"))
    x[2, 7] = 1.0
    x = laid_out(x, layout)[1:4]
    weight = torch.ones(19, 4, requires_grad=True)
    y = m2gen.depthwise_conv1d(x, weight, None, "same")
    i = torch.arange(length)
    counts = (torch.minimum(i + 2, torch.tensor(length - 1)) - torch.clamp(i - 1, min=0) + 1).float()
    assert torch.equal(y[1, 7].detach(), counts)
    dy = torch.zeros_like(y)
    dy[1, 7] = 1.0
    (dw,) = torch.autograd.grad(y, weight, dy)
    assert torch.equal(dw[7].isnan(), dw[8].isnan()), "NaN times zero is NaN: the other batch rows say so"
    (dw,) = torch.autograd.grad(m2gen.depthwise_conv1d(x[1:2], weight, None, "same"), weight, dy[1:2])
    assert torch.equal(dw[7], torch.tensor([length - 1.0, length, length - 1.0, length - 2.0]))


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_pass_through(layout: str, dtype: torch.dtype) -> None:
    """One tap of one copies infinities, NaN, subnormals and signed zeros; a halfway value is rounded to even."""
    special = [float("inf"), -float("inf"), float("nan"), -0.0, torch.finfo(dtype).tiny / 4, torch.finfo(dtype).max]
    x = laid_out(torch.tensor(special, dtype=torch.float64).repeat(1, 20, 3).to(dtype), layout)
    y = m2gen.depthwise_conv1d(x, torch.ones(20, 1, dtype=dtype))
    assert torch.equal(y.nan_to_num(nan=1.5), x.nan_to_num(nan=1.5)) and torch.equal(y.isnan(), x.isnan())
    eps = torch.finfo(dtype).eps
    pair = torch.tensor([1.0, eps / 2, 1.0 + eps, eps / 2], dtype=dtype).repeat(1, 20, 8)
    sums = m2gen.depthwise_conv1d(laid_out(pair, layout), torch.ones(20, 2, dtype=dtype))
    assert torch.equal(sums, (pair + torch.nn.functional.pad(pair, (1, 0))[..., :-1]))


@pytest.fixture
def threads() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_the_number_of_threads_changes_no_bit(threads: None, layout: str) -> None:
    x = laid_out(normal(3, 40, 700).float(), layout).requires_grad_()
    weight, bias = (normal(40, n, seed=n).float().requires_grad_() for n in (4, 1))
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        y = m2gen.depthwise_conv1d(x, weight, bias[:, 0])
        found.append([y, *torch.autograd.grad(y.square().sum(), (x, weight, bias))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_every_result_is_written() -> None:
    for layout in ("BHL", "BLH"):
        for length in (1, 15, 16, 64, 130):
            x = laid_out(normal(2, 21, length).float(), layout)
            y = torch.full_like(x, float("nan"))
            executor.shortconv(x, torch.ones(21, 3), None, 2, y)
            assert y.isfinite().all(), (layout, length)


def test_without_a_compiler_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = normal(2, 20, 50).requires_grad_(), normal(20, 4, seed=1).requires_grad_()

    def results() -> list[Tensor]:
        y = m2gen.depthwise_conv1d(x, weight)
        return [y, *torch.autograd.grad(y.square().sum(), (x, weight))]

    expected, live = results(), executor.live
    monkeypatch.setattr(executor, "live", lambda device: replace(live(device), languages=()))
    for a, b in zip(results(), expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_filter_too_wide_for_a_kernel() -> None:
    x, weight = normal(2, 20, 150), normal(20, 65, seed=1)
    torch.testing.assert_close(m2gen.depthwise_conv1d(x, weight), reference(x, weight, None, 64, 0))

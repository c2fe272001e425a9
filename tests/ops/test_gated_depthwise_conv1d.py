"""gated_depthwise_conv1d against three convolutions and a product in float64: values, gradients, layouts, errors."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from m2gen.errors import ProblemError
from m2gen.ops.gated_depthwise_conv1d import (
    gated_depthwise_conv1d,
    gated_depthwise_conv1d_bwd_op,
    gated_depthwise_conv1d_op,
)
from m2gen.runtime import executor
from m2gen.testing.tolerances import check

pytestmark = pytest.mark.generated
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """z and g (2, B, D, L)."""
    width = weight.shape[1]
    s = F.conv1d(F.pad(x, (width - 1, 0)), weight[:, None], bias, groups=x.shape[1])
    x1, x2, v = s.chunk(3, dim=1)
    return torch.stack([x1 * v, x2])


def compare(
    sizes: tuple[int, int, int], width: int, bias: bool, layouts: tuple[str, str | None], dtype: torch.dtype
) -> None:
    batch, channels, length = sizes
    layout, to = layouts
    torch.manual_seed(length)
    tensors = [torch.randn(batch, 3 * channels, length), torch.randn(3 * channels, width), torch.randn(3 * channels)]
    low = [t.to(dtype) for t in tensors[: 2 + bias]]
    if layout == "BLH":
        low[0] = low[0].transpose(1, 2).contiguous().transpose(1, 2)
    low = [t.requires_grad_() for t in low]
    given = low[0] if layout == "BHL" else low[0].transpose(1, 2)
    z, g = gated_depthwise_conv1d(given, low[1], low[2] if bias else None, layout, to)
    y = torch.stack([z, g] if (to or layout) == "BHL" else [z.transpose(1, 2), g.transpose(1, 2)])
    dy = torch.randn(y.shape).to(dtype)
    found = [y, *torch.autograd.grad(y, low, dy)]

    def results(change: bool) -> list[Tensor]:
        high = [(t.detach().double().abs() if change else t.detach().double()).requires_grad_() for t in low]
        y = exact(high[0], high[1], high[2] if bias else None)
        return [y.detach(), *torch.autograd.grad(y, high, dy.double().abs() if change else dy.double())]

    terms = batch * length + 3 * width
    for one, want, size in zip(found, results(False), results(True), strict=True):
        check(one.detach(), want, size.clamp_min(torch.finfo(dtype).tiny), terms)  # below, numbers are rounded coarser


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layouts", [("BHL", None), ("BLH", None), ("BHL", "BLH"), ("BLH", "BHL")], ids=str)
def test_values_and_gradients(layouts: tuple[str, str | None], dtype: torch.dtype) -> None:
    """Of channels that fill no vector, one, and more; times that fill none, end in a tile, and begin behind one."""
    for (channels, length), (width, bias) in product(
        ((1, 1), (5, 40), (8, 7), (33, 130)), ((1, False), (3, True), (9, True))
    ):
        compare((2, channels, length), width, bias, layouts, dtype)


def test_without_a_compiler_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    live = executor.live
    monkeypatch.setattr(executor, "live", lambda device: replace(live(device), languages=()))
    for layouts, dtype in product([("BHL", None), ("BLH", "BHL")], DTYPES):
        compare((2, 5, 40), 3, True, layouts, dtype)


def heard(masked: bool) -> Tensor | None:
    return torch.tensor([[True, True, False, True, True], [False, True, True, True, False]]) if masked else None


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_derivatives(last: bool, masked: bool) -> None:
    sizes, mask = ((2, 6, 5), (6, 3), (6,), (6,)), heard(masked)
    args = tuple(torch.randn(s, dtype=torch.float64).requires_grad_() for s in sizes)

    def call(x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
        return torch.stack(gated_depthwise_conv1d_op(x, weight, bias, last, offset, mask))

    assert gradcheck(call, args, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(call, args, check_fwd_over_rev=True)
    torch.library.opcheck(gated_depthwise_conv1d_op, (*args[:3], last, args[3], mask))
    grads = torch.randn(2, 2, 2, 5, dtype=torch.float64).unbind(0)
    torch.library.opcheck(gated_depthwise_conv1d_bwd_op, (*grads, *args, mask, [True, True, False, True]))


@pytest.mark.parametrize("own_mask", [False, True])
@pytest.mark.parametrize("dims", [dims for dims in product((0, None), repeat=4) if any(d == 0 for d in dims)], ids=str)
def test_vmap(dims: tuple[int | None, ...], own_mask: bool) -> None:
    """Every operand one for all samples or one for each; the mask, too."""
    every = torch.randn(4, 2, 6, 5), torch.randn(4, 6, 3), torch.randn(4, 6), torch.randn(4, 6)
    mask, of_mask = (torch.rand(4, 2, 5) < 0.7, 0) if own_mask else (heard(True), None)
    args = [t if d == 0 else t[0] for t, d in zip(every, dims, strict=True)]
    rows = [[t[i] if d == 0 else t for t, d in zip(args, dims, strict=True)] for i in range(4)]
    masks = [mask[i] if of_mask == 0 else mask for i in range(4)]
    dz, dg = torch.randn(2, 4, 2, 2, 5)
    for last in (False, True):

        def call(x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor, mask: Tensor, last: bool = last) -> Tensor:
            return torch.stack(gated_depthwise_conv1d_op(x, weight, bias, last, offset, mask))

        found = torch.vmap(call, in_dims=(*dims, of_mask))(*args, mask)
        torch.testing.assert_close(found, torch.stack([call(*row, m) for row, m in zip(rows, masks, strict=True)]))
    wanted = [True, True, True, True]
    grads = torch.vmap(lambda *a: gated_depthwise_conv1d_bwd_op(*a, wanted), in_dims=(0, 0, *dims, of_mask))(
        dz, dg, *args, mask
    )
    each = [gated_depthwise_conv1d_bwd_op(dz[i], dg[i], *rows[i], masks[i], wanted) for i in range(4)]
    for grad, one in zip(grads, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(grad, torch.stack(one))


def test_offset_and_mask_are_what_is_done_before_and_behind() -> None:
    """On every way of doing it; what stands at masked positions is not heard, nor has it a gradient."""
    for layout, dtype, compiled in product(("BHL", "BLH"), (torch.float32, torch.bfloat16), (True, False)):
        x, weight, bias, offset = (torch.randn(s).to(dtype) for s in ((2, 24, 5), (24, 3), (24,), (24,)))
        mask = heard(True)
        whole = (x + offset[:, None]) * mask[:, None]
        spoilt = x.masked_fill(~mask[:, None], float("nan")).requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            if not compiled:
                live = executor.live
                patch.setattr(executor, "live", lambda device, live=live: replace(live(device), languages=()))
            turned = (lambda t: t.transpose(1, 2).contiguous()) if layout == "BLH" else (lambda t: t)
            wanted = gated_depthwise_conv1d(turned(whole), weight, bias, layout)
            found = gated_depthwise_conv1d(turned(spoilt), weight, bias, layout, offset=offset, mask=mask)
            there = mask[:, None] if layout == "BHL" else mask[:, :, None]
            assert torch.equal(found[0], wanted[0] * there) and torch.equal(found[1], wanted[1])
            (grad,) = torch.autograd.grad(sum(one.float().sum() for one in found), spoilt)
        assert grad.isfinite().all() and not grad[~mask[:, None].expand_as(grad)].any()


def test_rows_that_lie_channel_by_channel_stay_so() -> None:
    x, weight = torch.randn(12, 3, 40).transpose(0, 1), torch.randn(12, 3)
    z, g = gated_depthwise_conv1d(x, weight)
    wanted = gated_depthwise_conv1d(x.contiguous(), weight)
    assert z.stride() == g.stride() == (40, 120, 1) and torch.equal(z, wanted[0]) and torch.equal(g, wanted[1])


def test_a_result_has_the_same_bits_in_any_company() -> None:
    x, weight, bias = torch.randn(3, 120, 150), torch.randn(120, 3), torch.randn(120)
    for layout in ("BHL", "BLH"):
        given = x if layout == "BHL" else x.transpose(1, 2).contiguous()
        z, g = gated_depthwise_conv1d(given, weight, bias, layout)
        for b in range(3):
            one = gated_depthwise_conv1d(given[b : b + 1], weight, bias, layout)
            assert torch.equal(one[0], z[b : b + 1]) and torch.equal(one[1], g[b : b + 1])


def test_what_does_not_fit_is_refused() -> None:
    x, weight = torch.randn(2, 8, 5), torch.randn(8, 3)
    with pytest.raises(ProblemError, match=r"8 channels.*three times as many"):
        gated_depthwise_conv1d(x, weight)
    with pytest.raises(ProblemError, match="weight"):
        gated_depthwise_conv1d(torch.randn(2, 9, 5), weight)
    with pytest.raises(ProblemError, match="layout"):
        gated_depthwise_conv1d(torch.randn(2, 9, 5), torch.randn(9, 3), layout="LBH")
    for mask in (torch.ones(2, 5), torch.ones(2, 4, dtype=torch.bool), [True]):
        with pytest.raises(ProblemError, match=r"mask.*true at real positions"):
            gated_depthwise_conv1d(torch.randn(2, 9, 5), torch.randn(9, 3), mask=mask)
    with pytest.raises(ProblemError, match="offset"):
        gated_depthwise_conv1d(torch.randn(2, 9, 5), torch.randn(9, 3), offset=torch.randn(8))

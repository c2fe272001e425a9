"""gated_depthwise_conv1d: a sequence mixer's three short convolutions and the gate between two of them, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.ops import _check as check
from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, fold_vmap, register, unfold_vmap
from m2gen.ops.depthwise_conv1d import depthwise_conv1d_dw_op, depthwise_conv1d_op
from m2gen.runtime import executor


def gated_depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, layout: str = "BHL", to: str | None = None
) -> tuple[Tensor, Tensor]:
    """z = s(x1) * s(v) and g = s(x2) of x = (x1, x2, v), s the causal depthwise convolution of each.

    Args:
        x: (B, 3 D, L), float16, bfloat16, float32 or float64, any strides; (B, L, 3 D) with ``layout="BLH"``.
        weight: (3 D, W), dtype of ``x`` (autocast casts all three); weight[:, W-1] meets the current sample.
        bias: (3 D,).
        layout: of x.
        to: layout of z and g, in memory and in shape; None: that of x.

    Returns:
        z and g, (B, D, L), or (B, L, D) in layout "BLH"; views of one tensor. In 16 bits the products are rounded once.
        Differentiable to any order.

    Raises:
        ProblemError: for shapes, dtypes or devices that do not fit together.

    Source: Hyena (arXiv 2302.10866), section 3; Monarch Mixer (arXiv 2310.12109), the sequence mixer.
    """
    to = layout if to is None else to
    check.gated_depthwise_conv1d(x, weight, bias, layout, to)
    x = x.transpose(1, 2) if layout == "BLH" else x
    z, g = gated_depthwise_conv1d_op(x, weight, bias, to == "BLH").unbind(0)
    return (z.transpose(1, 2), g.transpose(1, 2)) if to == "BLH" else (z, g)


def by_steps(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """z and g (B, D, L) of x (B, 3 D, L) as differentiable operators, in the dtype of x."""
    x1, x2, v = depthwise_conv1d_op(x, weight, bias, weight.shape[1] - 1, 0).chunk(3, dim=1)
    return x1 * v, x2


def _wide(*tensors: Tensor | None) -> list[Any]:
    """In the dtype of the arithmetic."""
    return [None if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _result(x: Tensor, weight: Tensor, bias: Tensor | None, last: bool) -> Tensor:
    """(2, B, D, L), its channels neighbours in memory where `last`."""
    (batch, channels, length), width = x.shape, x.shape[1] // 3
    strides = (length * width, 1, width) if last else (length * width, length, 1)
    return x.new_empty_strided((2, batch, channels // 3, length), (batch * length * width, *strides))


def _impl(x: Tensor, weight: Tensor, bias: Tensor | None, last: bool) -> Tensor:
    y = _result(x, weight, bias, last)
    if y.numel():
        executor.mixed(x, weight, bias, y)
    return y


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    x, weight, bias, _ = args
    width = weight.shape[1]
    grads: Args = [None] * 4
    ds = gated_depthwise_conv1d_ds_op(dy, x, weight, bias)
    if needs[0]:
        turned = weight.to(ds.dtype).flip(1)
        grads[0] = depthwise_conv1d_op(ds, turned, None, 0, width - 1).to(x.dtype)
    if needs[1] or needs[2]:
        sums = depthwise_conv1d_dw_op(x.to(ds.dtype), ds, width, width - 1, 0)
        grads[1] = sums[:, :width].to(weight.dtype) if needs[1] else None
        grads[2] = sums[:, width].to(bias.dtype) if needs[2] else None
    return grads


def _jvp(args: Args, tangents: Args) -> Tensor:
    x, weight, bias = _wide(*args[:3])
    dx, dweight, dbias = _wide(*tangents[:3])
    pads = (weight.shape[1] - 1, 0)
    terms = [] if dx is None else [depthwise_conv1d_op(dx, weight, None, *pads)]
    if dweight is not None or dbias is not None:
        dweight = torch.zeros_like(weight) if dweight is None else dweight
        terms.append(depthwise_conv1d_op(x, dweight, dbias, *pads))
    x1, _, v = depthwise_conv1d_op(x, weight, bias, *pads).chunk(3, dim=1)
    dx1, dx2, dv = torch.stack(terms).sum(0).chunk(3, dim=1)
    return torch.stack([dx1 * v + x1 * dv, dx2]).to(args[0].dtype)


def _fold(t: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """A vmapped dimension merged into each of the three streams of dimension `at`."""
    if t is None:
        return None
    t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    before, channels, behind = t.shape[: at + 1], t.shape[at + 1], t.shape[at + 2 :]
    t = t.reshape(*before, 3, channels // 3, *behind).movedim(0, at + 1)
    return t.flatten(at, at + 2)


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Any, last: bool) -> tuple[Tensor, int]:
    if in_dims[1] is None and in_dims[2] is None:
        folded = fold_vmap(x, in_dims[0], info.batch_size, 0)
        return unfold_vmap(gated_depthwise_conv1d_op(folded, weight, bias, last), info.batch_size, 1), 0
    found = [
        _fold(t, dim, info.batch_size, at) for t, dim, at in zip((x, weight, bias), in_dims, (1, 0, 0), strict=False)
    ]
    return unfold_vmap(gated_depthwise_conv1d_op(*found, last), info.batch_size, 2), 0


gated_depthwise_conv1d_op: Any = register(
    Definition(
        schema="gated_depthwise_conv1d(Tensor x, Tensor weight, Tensor? bias, bool last) -> Tensor",
        check=operands.gated_depthwise_conv1d,
        impl=_impl,
        fake=_result,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        autocast=(0, 1, 2),
    )
)


# -- the gradient behind the convolutions ------------------------------------------------------------------------------


def _ds_result(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, 3 D, L) in the dtype of the arithmetic, laid out like x."""
    _, channels, length = x.shape
    last = executor.channels_last(x)
    strides = (length * channels, 1, channels) if last else (length * channels, length, 1)
    return x.new_empty_strided(x.shape, strides, dtype=torch.promote_types(x.dtype, torch.float32))


def _ds_impl(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    ds = _ds_result(dy, x, weight, bias)
    if ds.numel():
        executor.mixed_behind(dy, x, weight, bias, ds)
    return ds


def _ds_composed(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight, bias, dy = _wide(x, weight, bias, dy)
    x1, _, v = depthwise_conv1d_op(x, weight, bias, weight.shape[1] - 1, 0).chunk(3, dim=1)
    return torch.cat([dy[0] * v, dy[1], dy[0] * x1], 1)


def _ds_vmap(
    info: Any, in_dims: tuple[Any, ...], dy: Tensor, x: Tensor, weight: Tensor, bias: Any
) -> tuple[Tensor, int]:
    size = info.batch_size
    if in_dims[2] is None and in_dims[3] is None:
        folded = fold_vmap(dy, in_dims[0], size, 1), fold_vmap(x, in_dims[1], size, 0)
        return unfold_vmap(gated_depthwise_conv1d_ds_op(*folded, weight, bias), size, 0), 0
    streams = [_fold(t, dim, size, at) for t, dim, at in zip((x, weight, bias), in_dims[1:], (1, 0, 0), strict=True)]
    ds = gated_depthwise_conv1d_ds_op(fold_vmap(dy, in_dims[0], size, 2), *streams)
    batch, channels, length = ds.shape
    return ds.reshape(batch, 3, size, channels // (3 * size), length).movedim(2, 0).flatten(2, 3), 0


gated_depthwise_conv1d_ds_op: Any = register(
    Definition(
        schema="gated_depthwise_conv1d_ds(Tensor dy, Tensor x, Tensor weight, Tensor? bias) -> Tensor",
        check=operands.gated_depthwise_conv1d_ds,
        impl=_ds_impl,
        fake=_ds_result,
        composed=_ds_composed,
        vmap=_ds_vmap,
    )
)

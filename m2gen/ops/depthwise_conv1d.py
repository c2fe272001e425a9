"""depthwise_conv1d: a short filter of its own for every channel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.ops import _check_short as check_short
from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, fold_vmap, register, unfold_vmap
from m2gen.runtime import executor


def depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: str | int = "causal", layout: str = "BHL"
) -> Tensor:
    """y[b, h, i] = bias[h] + sum over w of weight[h, w] x[b, h, i + w - left], zeros outside, as torch.nn.Conv1d.

    Args:
        x: (B, H, L), float16, bfloat16, float32 or float64, any strides; (B, L, H) with ``layout="BLH"``.
        weight: (H, W), dtype of ``x`` (autocast casts all three).
        bias: (H,).
        padding: ``"causal"``: W - 1 zeros on the left, so weight[:, W-1] meets the current sample; ``"same"``:
            (W - 1) // 2 on the left and the rest on the right; a number: so many zeros on each side.
        layout: of x and of the result.

    Returns:
        (B, H, L), or (B, H, L + 2 * padding - W + 1) for a number; in the layout of ``x``. Differentiable to any order.

    Raises:
        ProblemError: for shapes, dtypes or devices that do not fit together.

    Source: Monarch Mixer (arXiv 2310.12109), the short convolution of the sequence mixer.
    """
    check_short.depthwise_conv1d(x, weight, bias, padding, layout)
    width = weight.shape[1]
    if isinstance(padding, int):
        left = right = padding
    else:
        left = width - 1 if padding == "causal" else (width - 1) // 2
        right = width - 1 - left
    x = x.transpose(1, 2) if layout == "BLH" else x
    y: Tensor = depthwise_conv1d_op(x, weight, bias, left, right)
    return y.transpose(1, 2) if layout == "BLH" else y


def _result(x: Tensor, weight: Tensor, left: int, right: int) -> Tensor:
    """An empty result, channels-last in memory where x is."""
    batch, channels, length = x.shape
    length = length + left + right - weight.shape[1] + 1
    last = x.stride(1) == 1 and x.stride(2) != 1
    strides = (length * channels, 1, channels) if last else (length * channels, length, 1)
    return x.new_empty_strided((batch, channels, length), strides)  # not a view: a view's tangent must share its layout


def _impl(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
    y = _result(x, weight, left, right)
    if x.numel() == 0:  # padding alone
        return y.zero_() if bias is None else y.copy_(bias.unsqueeze(-1).expand_as(y))
    if y.numel():
        executor.shortconv(x, weight, bias, left, y)
    return y


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
    return _result(x, weight, left, right)


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    x, weight, bias, left, right = args
    width = weight.shape[1]
    grads: Args = [None] * 5
    if needs[0]:
        grads[0] = depthwise_conv1d_op(dy, weight.flip(1), None, width - 1 - left, width - 1 - right)
    if needs[1] or needs[2]:
        sums = depthwise_conv1d_dw_op(x, dy, width, left, right)
        grads[1] = sums[:, :width].to(weight.dtype) if needs[1] else None
        grads[2] = sums[:, width].to(bias.dtype) if needs[2] else None
    return grads


def _jvp(args: Args, tangents: Args) -> Tensor:
    x, weight, _, left, right = args
    dx, dweight, dbias = tangents[:3]
    terms = [] if dx is None else [depthwise_conv1d_op(dx, weight, None, left, right)]
    if dweight is not None or dbias is not None:
        dweight = torch.zeros_like(weight) if dweight is None else dweight
        terms.append(depthwise_conv1d_op(x, dweight, dbias, left, right))
    return torch.stack(terms).sum(0)


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Any, *pads: int) -> tuple[Tensor, int]:
    if in_dims[1] is None and in_dims[2] is None:
        y = depthwise_conv1d_op(fold_vmap(x, in_dims[0], info.batch_size, 0), weight, bias, *pads)
        return unfold_vmap(y, info.batch_size, 0), 0
    folded = [
        fold_vmap(t, dim, info.batch_size, into)
        for t, dim, into in zip((x, weight, bias), in_dims, (1, 0, 0), strict=False)
    ]
    return unfold_vmap(depthwise_conv1d_op(*folded, *pads), info.batch_size, 1), 0


depthwise_conv1d_op: Any = register(
    Definition(
        schema="depthwise_conv1d(Tensor x, Tensor weight, Tensor? bias, SymInt left, SymInt right) -> Tensor",
        check=operands.depthwise_conv1d,
        impl=_impl,
        fake=_fake,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        autocast=(0, 1, 2),
    )
)


# -- the adjoint in weight and bias ------------------------------------------------------------------------------------


def _dw_impl(x: Tensor, dy: Tensor, width: int, left: int, right: int) -> Tensor:
    """(H, width + 1) in the dtype of the arithmetic: the weight's gradient and, last, the bias's."""
    sums = _dw_fake(x, dy, width, left, right)
    if x.numel() and dy.numel():
        executor.shortconv_weight_gradients(x, dy, left, sums)
        return sums
    sums[:, :width], sums[:, width] = 0, dy.sum((0, 2), dtype=sums.dtype)  # padding alone
    return sums


def _dw_fake(x: Tensor, dy: Tensor, width: int, left: int, right: int) -> Tensor:
    return x.new_empty((x.shape[1], width + 1), dtype=torch.promote_types(x.dtype, torch.float32))


def _dw_vjp(args: Args, grad: Tensor, needs: Args) -> Args:
    x, dy, width, left, right = args
    grad = grad.to(x.dtype)  # the operator's filters are of its sequence's dtype
    weight, bias = grad[:, :width], grad[:, width]
    dx = None
    if needs[0]:
        dx = depthwise_conv1d_op(dy, weight.flip(1), None, width - 1 - left, width - 1 - right)
    return [dx, depthwise_conv1d_op(x, weight, bias, left, right) if needs[1] else None, None, None, None]


def _dw_jvp(args: Args, tangents: Args) -> Tensor:
    x, dy, width, *pads = args
    dx, ddy = tangents[:2]
    terms = [] if ddy is None else [depthwise_conv1d_dw_op(x, ddy, width, *pads)]
    if dx is not None:  # the sum of dy, in the last column, does not know x
        terms.append(F.pad(depthwise_conv1d_dw_op(dx, dy, width, *pads)[:, :width], (0, 1)))
    return torch.stack(terms).sum(0)


def _dw_vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, dy: Tensor, *rest: int) -> tuple[Tensor, int]:
    folded = [fold_vmap(t, dim, info.batch_size, into=1) for t, dim in zip((x, dy), in_dims, strict=False)]
    return unfold_vmap(depthwise_conv1d_dw_op(*folded, *rest), info.batch_size, 0), 0


depthwise_conv1d_dw_op: Any = register(
    Definition(
        schema="depthwise_conv1d_dw(Tensor x, Tensor dy, SymInt width, SymInt left, SymInt right) -> Tensor",
        check=operands.depthwise_conv1d_dw,
        impl=_dw_impl,
        fake=_dw_fake,
        vjp=_dw_vjp,
        jvp=_dw_jvp,
        vmap=_dw_vmap,
    )
)

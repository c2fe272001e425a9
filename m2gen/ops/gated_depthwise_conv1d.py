"""gated_depthwise_conv1d: a sequence mixer's three short convolutions and the gate between two of them, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.ops import _check_short as check_short
from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, fold_vmap, register, unfold_vmap
from m2gen.ops.depthwise_conv1d import depthwise_conv1d_dw_op, depthwise_conv1d_op
from m2gen.runtime import executor, posed

_X, _WEIGHT, _BIAS, _LAST, _OFFSET, _MASK = range(6)


def gated_depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    layout: str = "BHL",
    to: str | None = None,
    *,
    offset: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """z = s(x1) * s(v) and g = s(x2) of x + offset = (x1, x2, v), s the causal depthwise convolution of each.

    Args:
        x: (B, 3 D, L), float16, bfloat16, float32 or float64, any strides; (B, L, 3 D) with ``layout="BLH"``.
        weight: (3 D, W), dtype of ``x`` (autocast casts all four); weight[:, W-1] meets the current sample.
        bias: (3 D,).
        layout: of x.
        to: layout of z and g, in memory and in shape; None: that of x. In "BHL" their rows lie in memory as those of x
            do, batch by batch or channel by channel.
        offset: (3 D,), added to every sample: the bias of a projection that x still lacks.
        mask: (B, L) bool, true at real positions. Elsewhere x + offset and s(v), so z, are zero, whatever is there.

    Returns:
        z and g, (B, D, L), or (B, L, D) in layout "BLH". In 16 bits the products are rounded once.
        Differentiable to any order.

    Raises:
        ProblemError: for shapes, dtypes or devices that do not fit together.

    Source: Hyena (arXiv 2302.10866), section 3; Monarch Mixer (arXiv 2310.12109), the sequence mixer.
    """
    to = layout if to is None else to
    check_short.gated_depthwise_conv1d(x, weight, bias, layout, to, offset, mask)
    x = x.transpose(1, 2) if layout == "BLH" else x
    z, g = gated_depthwise_conv1d_op(x, weight, bias, to == "BLH", offset, mask)
    return (z.transpose(1, 2), g.transpose(1, 2)) if to == "BLH" else (z, g)


def by_steps(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """z and g (B, D, L) of x (B, 3 D, L) as differentiable operators, in the dtype of x."""
    x1, x2, v = depthwise_conv1d_op(x, weight, bias, weight.shape[1] - 1, 0).chunk(3, dim=1)
    return x1 * v, x2


def _wide(*tensors: Tensor | None) -> list[Any]:
    """In the dtype of the arithmetic; masks as they are."""
    return [t if t is None or t.dtype == torch.bool else t.to(_arithmetic(t)) for t in tensors]


def _arithmetic(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _heard(x: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
    """x + offset, zero where the mask says no."""
    x = x if offset is None else x + offset[:, None]
    return x if mask is None else torch.where(mask[:, None], x, x.new_zeros(()))


def _results(
    x: Tensor, weight: Tensor, bias: Tensor | None, last: bool, offset: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """z and g (B, D, L), their channels neighbours in memory where `last`, else their rows in the order of x's."""
    (batch, channels, length), width = x.shape, x.shape[1] // 3
    strides = (length * width, 1, width) if last else (length * width, length, 1)
    if not last and posed.channels_first(x):
        strides = (length, batch * length, 1)
    shape = (batch, channels // 3, length)
    return x.new_empty_strided(shape, strides), x.new_empty_strided(shape, strides)


def _impl(
    x: Tensor, weight: Tensor, bias: Tensor | None, last: bool, offset: Tensor | None = None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    z, g = _results(x, weight, bias, last)
    if z.numel():
        executor.mixed(x, weight, bias, offset, mask, z, g)
    return z, g


def _vjp(args: Args, grads: tuple[Tensor, Tensor], needs: Args) -> Args:
    x, weight, bias, _, offset, mask = args
    wanted = [bool(needs[i]) for i in (_X, _WEIGHT, _BIAS, _OFFSET)]
    found = gated_depthwise_conv1d_bwd_op(*grads, x, weight, bias, offset, mask, wanted)
    dx, dweight, dbias, doffset = (g if need else None for g, need in zip(found, wanted, strict=True))
    return [dx, dweight, dbias, None, doffset, None]


def _jvp(args: Args, tangents: Args) -> tuple[Tensor, Tensor]:
    x, weight, bias, _, offset, mask = args
    x, weight, bias, offset = _wide(x, weight, bias, offset)
    dx, dweight, dbias, doffset = _wide(*(tangents[i] for i in (_X, _WEIGHT, _BIAS, _OFFSET)))
    pads, heard = (weight.shape[1] - 1, 0), _heard(x, offset, mask)
    terms = [] if dx is None else [depthwise_conv1d_op(_heard(dx, None, mask), weight, None, *pads)]
    if doffset is not None:
        terms.append(depthwise_conv1d_op(_heard(torch.zeros_like(x), doffset, mask), weight, None, *pads))
    if dweight is not None or dbias is not None:
        dweight = torch.zeros_like(weight) if dweight is None else dweight
        terms.append(depthwise_conv1d_op(heard, dweight, dbias, *pads))
    x1, _, v = depthwise_conv1d_op(heard, weight, bias, *pads).chunk(3, dim=1)
    dx1, dx2, dv = torch.stack(terms).sum(0).chunk(3, dim=1)
    return _heard(dx1 * v + x1 * dv, None, mask).to(args[_X].dtype), dx2.to(args[_X].dtype)


def _fold(t: Tensor | None, dim: int | None, size: int, at: int) -> Tensor | None:
    """A vmapped dimension merged into each of the three streams of dimension `at`."""
    if t is None:
        return None
    t = t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
    before, channels, behind = t.shape[: at + 1], t.shape[at + 1], t.shape[at + 2 :]
    t = t.reshape(*before, 3, channels // 3, *behind).movedim(0, at + 1)
    return t.flatten(at, at + 2)


def _unfold(t: Tensor, size: int, at: int) -> Tensor:
    """Undo `_fold`: the samples in front."""
    width = t.shape[at] // (3 * size)
    return t.reshape(*t.shape[:at], 3, size, width, *t.shape[at + 1 :]).movedim(at + 1, 0).flatten(at + 1, at + 2)


def _samples(in_dims: tuple[Any, ...], args: tuple[Any, ...], size: int) -> list[list[Any]]:
    return [
        [a.select(dim, i) if isinstance(dim, int) else a for a, dim in zip(args, in_dims, strict=True)]
        for i in range(size)
    ]


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    size, (x, weight, bias, last, offset, mask) = info.batch_size, args
    filters = any(in_dims[i] is not None for i in (_WEIGHT, _BIAS, _OFFSET))
    if not filters:  # one filter for all: more batch
        x, mask = fold_vmap(x, in_dims[_X], size, 0), fold_vmap(mask, in_dims[_MASK], size, 0)
        found = gated_depthwise_conv1d_op(x, weight, bias, last, offset, mask)
        return tuple(unfold_vmap(one, size, 0) for one in found), (0, 0)
    if mask is not None and in_dims[_MASK] is not None:  # a mask is one for all channels
        each = [gated_depthwise_conv1d_op(*one) for one in _samples(in_dims, args, size)]
        return tuple(torch.stack(one) for one in zip(*each, strict=True)), (0, 0)
    x, weight, bias, offset = (
        _fold(args[i], in_dims[i], size, at) for i, at in ((_X, 1), (_WEIGHT, 0), (_BIAS, 0), (_OFFSET, 0))
    )
    found = gated_depthwise_conv1d_op(x, weight, bias, last, offset, mask)
    return tuple(unfold_vmap(one, size, 1) for one in found), (0, 0)


gated_depthwise_conv1d_op: Any = register(
    Definition(
        schema="gated_depthwise_conv1d(Tensor x, Tensor weight, Tensor? bias, bool last, Tensor? offset=None, "
        "Tensor? mask=None) -> (Tensor, Tensor)",
        check=operands.gated_depthwise_conv1d,
        impl=_impl,
        fake=_results,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        autocast=(_X, _WEIGHT, _BIAS, _OFFSET),
    )
)


# -- all first-order gradients in one pass -----------------------------------------------------------------------------


def _bwd_fake(
    dz: Tensor,
    dg: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    """One tensor for each of x, weight, bias and offset; empty where no gradient was wanted."""
    rows = _rows_like(x)
    return (
        x.new_empty_strided(x.shape, rows) if needs[0] else x.new_empty(0),
        *(
            x.new_empty(t.shape if t is not None and need else 0, dtype=x.dtype if t is None else t.dtype)
            for t, need in zip((weight, bias, offset), needs[1:], strict=True)
        ),
    )


def _rows_like(x: Tensor) -> tuple[int, int, int]:
    """Strides of a dense tensor (B, H, L) that is laid out like x."""
    batch, channels, length = x.shape
    if posed.channels_last(x):
        return length * channels, 1, channels
    return (length, batch * length, 1) if posed.channels_first(x) else (channels * length, length, 1)


def _bwd_impl(dz: Tensor, dg: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, weight, bias, offset, mask, needs = args
    out = _bwd_fake(dz, dg, *args)
    if x.numel():
        executor.mixed_gradients(dz, dg, x, weight, bias, offset, mask, needs, out)
    else:
        for one in out:
            one.zero_()
    return out


def _bwd_composed(dz: Tensor, dg: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, needs = args
    x, weight, bias, offset, mask = _wide(*tensors)
    width, heard = weight.shape[1], _heard(x, offset, mask)
    x1, _, v = depthwise_conv1d_op(heard, weight, bias, width - 1, 0).chunk(3, dim=1)
    dz, dg = _heard(dz.to(x.dtype), None, mask), dg.to(x.dtype)
    ds = torch.cat([dz * v, dg, dz * x1], 1)
    found: list[Tensor] = [x.new_empty(0)] * 4
    if needs[0] or needs[3]:
        dx = _heard(depthwise_conv1d_op(ds, weight.flip(1), None, 0, width - 1), None, mask)
        found[0], found[3] = dx, dx.sum((0, 2))
    if needs[1] or needs[2]:
        sums = depthwise_conv1d_dw_op(heard, ds, width, width - 1, 0)
        found[1], found[2] = sums[:, :width], sums[:, width]
    there = [need and t is not None for t, need in zip(tensors[:4], needs, strict=True)]
    empty = tensors[0].new_empty(0)
    return tuple(
        grad.to(t.dtype) if is_ else empty if t is None else empty.to(t.dtype)
        for grad, t, is_ in zip(found, tensors[:4], there, strict=True)
    )


def _bwd_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Samples side by side as more channels, as each has filters' gradients of its own."""
    size, (dz, dg, x, weight, bias, offset, mask, needs) = info.batch_size, args
    if mask is not None and in_dims[6] is not None:
        each = [gated_depthwise_conv1d_bwd_op(*one) for one in _samples(in_dims, args, size)]
        return tuple(torch.stack(grads) for grads in zip(*each, strict=True)), (0, 0, 0, 0)
    streams = [
        _fold(t, dim, size, at)
        for t, dim, at in zip((x, weight, bias, offset), in_dims[2:6], (1, 0, 0, 0), strict=True)
    ]
    dz, dg = (fold_vmap(one, dim, size, 1) for one, dim in zip((dz, dg), in_dims, strict=False))
    found = gated_depthwise_conv1d_bwd_op(dz, dg, *streams, mask, needs)
    there = [need and t is not None for t, need in zip((x, weight, bias, offset), needs, strict=True)]
    grads = [_unfold(g, size, at) if is_ else g for g, at, is_ in zip(found, (1, 0, 0, 0), there, strict=True)]
    return tuple(grads), tuple(0 if is_ else None for is_ in there)


gated_depthwise_conv1d_bwd_op: Any = register(
    Definition(
        schema="gated_depthwise_conv1d_bwd(Tensor dz, Tensor dg, Tensor x, Tensor weight, Tensor? bias, "
        "Tensor? offset, Tensor? mask, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor)",
        check=operands.gated_depthwise_conv1d_bwd,
        impl=_bwd_impl,
        fake=_bwd_fake,
        composed=_bwd_composed,
        vmap=_bwd_vmap,
    )
)

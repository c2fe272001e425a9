"""blockdiag_linear: a linear layer whose matrix is block-diagonal, an order-1 Monarch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.ops import _check as check
from m2gen.ops import _operands as operands
from m2gen.ops import gate
from m2gen.ops._register import Args, Definition, multilinear_jvp, register
from m2gen.runtime import executor
from m2gen.runtime.bindings.blockdiag import as_rows
from m2gen.runtime.bindings.blockdiag import matmul_blocks as matmul_blocks


def blockdiag_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(W x + bias) + residual, W block-diagonal: each contiguous block of x through its own matrix.

    Args:
        x: (..., nblocks * in_per_block), float16, bfloat16, float32 or float64.
        weight: (nblocks, out_per_block, in_per_block), dtype of ``x`` (autocast casts all four).
        bias: (nblocks * out_per_block,).
        activation: None, ``"gelu"`` (exact), ``"relu"`` or ``"silu"``.
        residual: of the result's shape, added at the end: a layer's input in `f(x) + x`, for example.

    Returns:
        (..., nblocks * out_per_block). Differentiable to any order. A generated kernel adds, activates and adds again
        where its products are, in the arithmetic's precision. On a GPU its gradients are kernels, too, which compute
        the product again; elsewhere an activation whose derivative is wanted is a step of its own.

    Raises:
        ProblemError: for shapes, dtypes or devices that do not fit together, or an unknown activation.

    Source: Monarch Mixer (arXiv 2310.12109), the order-1 Monarch of the dimension mixer.
    """
    check.blockdiag_linear(x, weight, bias, activation, residual)
    if activation is None:
        y: Tensor = blockdiag_linear_op(x, weight, bias, residual)
    else:
        y = blockdiag_epilogue_op(x, weight, bias, residual, activation, False)
    return y


def blockdiag_glu(
    x: Tensor,
    weight: Tensor,
    activation: str | None = "gelu",
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(g) * h + residual with g, h = halves of `blockdiag_linear(x, weight, bias)`, in one kernel where there
    is one.

    Args and errors as in `blockdiag_linear`; nblocks must be even, so that either half is whole blocks. Returns
    (..., nblocks * out_per_block / 2). Where a derivative is wanted, the steps are taken one after the other, as what
    stands between them is needed; but not on a GPU, where kernels of the gradients compute it again.
    """
    check.blockdiag_linear(x, weight, bias, activation, residual, glu=True)
    y: Tensor = blockdiag_epilogue_op(x, weight, bias, residual, activation, True)
    return y


def by_library(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `blockdiag_linear` of these operands, which fit together, is planned as PyTorch's own products."""
    return executor.by_library(x, weight.shape, bias is not None)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """The operator's own computation, of operands that have been checked."""
    return executor.product(x, weight, bias, residual=residual)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] * weight.shape[1]))


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    x, weight, bias, _ = args
    if any(needs[:3]) and executor.own_gradients(x, weight, bias):
        return [*_gradients(dy, x, weight, bias, None, False, needs), dy if needs[3] else None]
    return [
        blockdiag_linear_op(dy, weight.transpose(1, 2), None) if needs[0] else None,
        outer_blocks(dy, x, weight) if needs[1] else None,
        as_rows(dy).sum(0) if needs[2] else None,
        dy if needs[3] else None,
    ]


def _jvp(args: Args, tangents: Args) -> Tensor:
    x, weight, bias, _ = args
    dx, dweight, dbias, dresidual = tangents
    dbias = None if bias is None else _or_zeros(dbias, bias)
    y: Tensor = blockdiag_linear_op(_or_zeros(dx, x), weight, dbias, dresidual)
    return y if dweight is None else y + blockdiag_linear_op(x, dweight, None)


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def _vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, int]:
    size = info.batch_size
    x = _first(x, in_dims[0], size)
    residual = None if residual is None else _first(residual, in_dims[3], size)
    if in_dims[1] is None and in_dims[2] is None:
        return blockdiag_linear_op(x, weight, bias, residual), 0
    # samples side by side: sample v's blocks stand behind those of sample v - 1
    y = blockdiag_linear_op(x.movedim(0, -2).flatten(-2), _first(weight, in_dims[1], size).flatten(0, 1), None)
    y = y.unflatten(-1, (size, -1)).movedim(-2, 0)
    if bias is not None:
        y = y + _first(bias, in_dims[2], size).reshape(size, *[1] * (y.dim() - 2), -1)
    return y if residual is None else y + residual, 0


def _first(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """The samples' axis in front, of `size` equal ones where there is none."""
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


blockdiag_linear_op: Any = register(
    Definition(
        schema="blockdiag_linear(Tensor x, Tensor weight, Tensor? bias, Tensor? residual=None) -> Tensor",
        check=operands.blockdiag_linear,
        impl=product,
        fake=_fake,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        unsaved=(3,),
        autocast=(0, 1, 2, 3),
    )
)


def outer_blocks(dy: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient in the weight, (nblocks, block_out, block_in): per block, the sum over rows of dy x^T."""
    nblocks = weight.shape[0]
    if nblocks == 0:
        return torch.zeros_like(weight)
    dw: Tensor = blockdiag_outer_op(as_rows(dy), as_rows(x), nblocks)
    return dw


def _outer_vjp(args: Args, grad: Tensor, needs: Args) -> Args:
    dy, x, _ = args
    return [
        blockdiag_linear_op(x, grad, None) if needs[0] else None,
        blockdiag_linear_op(dy, grad.transpose(1, 2), None) if needs[1] else None,
        None,
    ]


def _outer_vmap(info: Any, in_dims: tuple[Any, ...], dy: Tensor, x: Tensor, nblocks: int) -> tuple[Tensor, int]:
    """Samples side by side, as more blocks."""

    def beside(tensor: Tensor, dim: int | None) -> Tensor:
        tensor = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return tensor.movedim(0, 1).flatten(1)

    dw = blockdiag_outer_op(beside(dy, in_dims[0]), beside(x, in_dims[1]), info.batch_size * nblocks)
    return dw.unflatten(0, (info.batch_size, nblocks)), 0


blockdiag_outer_op: Any = register(
    Definition(
        schema="blockdiag_outer(Tensor dy, Tensor x, int nblocks) -> Tensor",
        check=operands.blockdiag_outer,
        impl=executor.product_outer,
        fake=lambda dy, x, nblocks: x.new_empty((nblocks, dy.shape[1] // nblocks, x.shape[1] // nblocks)),
        vjp=_outer_vjp,
        jvp=lambda args, tangents: multilinear_jvp(blockdiag_outer_op, ((0,), (1,)))(args, tangents),
        vmap=_outer_vmap,
    )
)


def _epilogue_impl(*args: Any) -> Tensor:
    x, weight, bias, residual, activation, glu = args
    return executor.product(x, weight, bias, glu, activation, residual)


def _epilogue_fake(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] * weight.shape[1] // (2 if rest[-1] else 1)))


def _gradients(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, glu: bool, needs: Args
) -> Args:
    """Those in x, weight and bias, None where one is not wanted, in one call."""
    wanted = [bool(need) for need in needs[:3]]
    if not any(wanted):
        return [None] * 3
    found = blockdiag_epilogue_bwd_op(dy, x, weight, bias, activation, glu, wanted)
    return [grad if need else None for grad, need in zip(found, wanted, strict=True)]


def _epilogue_vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    x, weight, bias, _, activation, glu = args
    return [*_gradients(dy, x, weight, bias, activation, glu, needs), dy if needs[3] else None, None, None]


def _epilogue_jvp(args: Args, tangents: Args) -> Tensor:
    x, weight, bias, _, activation, glu = args
    moved: Args = tangents[:3]
    dresidual: Tensor = tangents[3]
    if all(one is None for one in moved):
        return dresidual.clone()
    z: Tensor = blockdiag_linear_op(x, weight, bias)
    dz = _jvp([x, weight, bias, None], [*moved, None])
    dy = gate.tangent(z, dz, activation) if glu else gate.through(z, dz, activation)
    return dy if tangents[3] is None else dy + dresidual


def _epilogue_composed(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None, glu: bool
) -> Tensor:
    z: Tensor = blockdiag_linear_op(x, weight, bias)
    y = gate.gated(z, activation) if glu else gate.ACTIVATIONS[activation](z)
    return y if residual is None else y + residual


def _epilogue_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    *tensors, activation, glu = args
    if in_dims[1] is None and in_dims[2] is None:
        x, weight, bias, residual = tensors
        residual = None if residual is None else _first(residual, in_dims[3], info.batch_size)
        x = _first(x, in_dims[0], info.batch_size)
        return blockdiag_epilogue_op(x, weight, bias, residual, activation, glu), 0
    samples = [blockdiag_epilogue_op(*_sample(i, tensors, in_dims), activation, glu) for i in range(info.batch_size)]
    return torch.stack(samples), 0


blockdiag_epilogue_op: Any = register(
    Definition(
        schema="blockdiag_epilogue(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, str? activation, bool glu) "
        "-> Tensor",
        check=operands.blockdiag_epilogue,
        impl=_epilogue_impl,
        fake=_epilogue_fake,
        vjp=_epilogue_vjp,
        jvp=_epilogue_jvp,
        composed=_epilogue_composed,
        own=lambda x, weight, bias, residual, *how: executor.own_gradients(x, weight, bias, *how),
        vmap=_epilogue_vmap,
        unsaved=(3,),
        autocast=(0, 1, 2, 3),
    )
)


# -- all first-order gradients in one call -----------------------------------------------------------------------------


def _bwd_impl(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    x, weight, bias, activation, glu, needs = args
    found = executor.product_gradients(dy, x, weight, bias, glu, activation, needs)
    if found is None:
        return _bwd_composed(dy, *args)
    return tuple(x.new_empty(0) if grad is None else grad for grad in found)


def _bwd_fake(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, _, _, needs = args
    pairs = zip(tensors, needs, strict=True)
    return tuple(dy.new_empty(t.shape if need and t is not None else 0) for t, need in pairs)


def _bwd_composed(
    dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, glu: bool, needs: list[bool]
) -> tuple[Tensor, ...]:
    """The gradients by differentiable operators."""
    dz, none = dy, x.new_empty(0)
    if glu or activation is not None:
        z: Tensor = blockdiag_linear_op(x, weight, bias)
        dz = gate.gated_bwd_op(dy, z, activation) if glu else gate.through(z, dy, activation)
    return (
        blockdiag_linear_op(dz, weight.transpose(1, 2), None) if needs[0] else none,
        outer_blocks(dz, x, weight) if needs[1] else none,
        as_rows(dz).sum(0) if needs[2] and bias is not None else none,
    )


def _bwd_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Sample by sample; all at once where nothing is summed over rows and the weight is shared."""
    *tensors, activation, glu, needs = args
    size = info.batch_size
    if not any(needs[1:]) and in_dims[2] is None and in_dims[3] is None:
        dy, x, weight, bias = tensors
        rows = _first(dy, in_dims[0], size), _first(x, in_dims[1], size)
        dx, *none = blockdiag_epilogue_bwd_op(*rows, weight, bias, activation, glu, needs)
        return (dx if needs[0] else dx.new_empty(size, 0), *(one.new_empty(size, 0) for one in none)), (0, 0, 0)
    samples = [
        blockdiag_epilogue_bwd_op(*_sample(i, tensors, in_dims), activation, glu, needs) for i in range(info.batch_size)
    ]
    return tuple(torch.stack(grads) for grads in zip(*samples, strict=True)), (0, 0, 0)


def _sample(i: int, tensors: list[Tensor | None], in_dims: tuple[Any, ...]) -> list[Tensor | None]:
    """Sample i of each."""
    return [t if dim is None or t is None else t.select(dim, i) for t, dim in zip(tensors, in_dims, strict=False)]


blockdiag_epilogue_bwd_op: Any = register(
    Definition(
        schema="blockdiag_epilogue_bwd(Tensor dy, Tensor x, Tensor weight, Tensor? bias, str? activation, bool glu, "
        "bool[] needs) -> (Tensor, Tensor, Tensor)",
        check=operands.blockdiag_epilogue_bwd,
        impl=_bwd_impl,
        fake=_bwd_fake,
        composed=_bwd_composed,
        vmap=_bwd_vmap,
    )
)

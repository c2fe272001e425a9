"""blockdiag_linear: a linear layer whose matrix is block-diagonal, an order-1 Monarch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.ops import _check as check
from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, multilinear_jvp, register
from m2gen.ops.gate import ACTIVATIONS, gated
from m2gen.runtime import executor
from m2gen.runtime.bindings.blockdiag import as_rows
from m2gen.runtime.bindings.blockdiag import matmul_blocks as matmul_blocks


def blockdiag_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:
    """Each contiguous block of the last axis through its own matrix, then bias and activation.

    Args:
        x: (..., nblocks * in_per_block), float16, bfloat16, float32 or float64.
        weight: (nblocks, out_per_block, in_per_block), dtype of ``x`` (autocast casts all three).
        bias: (nblocks * out_per_block,).
        activation: None, ``"gelu"`` (exact), ``"relu"`` or ``"silu"``.

    Returns:
        (..., nblocks * out_per_block). Differentiable to any order.

    Raises:
        ProblemError: for shapes, dtypes or devices that do not fit together, or an unknown activation.

    Source: Monarch Mixer (arXiv 2310.12109), the order-1 Monarch of the dimension mixer.
    """
    check.blockdiag_linear(x, weight, bias, activation)
    y: Tensor = blockdiag_linear_op(x, weight, bias)
    return y if activation is None else ACTIVATIONS[activation](y)


def blockdiag_glu(x: Tensor, weight: Tensor, activation: str | None = "gelu") -> Tensor:
    """activation(g) * h with g, h = halves of `blockdiag_linear(x, weight)`, in one kernel where there is one.

    Args and errors as in `blockdiag_linear`; nblocks must be even, so that either half is whole blocks. Returns
    (..., nblocks * out_per_block / 2). Where a derivative is wanted, the two steps are taken one after the other: what
    stands between them is needed.
    """
    check.blockdiag_linear(x, weight, None, activation)
    y: Tensor = blockdiag_glu_op(x, weight, activation)
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operator's own computation, of operands that have been checked."""
    return executor.product(x, weight, bias)


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0] * weight.shape[1]))


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    x, weight, _ = args
    return [
        blockdiag_linear_op(dy, weight.transpose(1, 2), None) if needs[0] else None,
        outer_blocks(dy, x, weight) if needs[1] else None,
        as_rows(dy).sum(0) if needs[2] else None,
    ]


def _jvp(args: Args, tangents: Args) -> Tensor:
    x, weight, bias = args
    dx, dweight, dbias = tangents
    y: Tensor = blockdiag_linear_op(
        torch.zeros_like(x) if dx is None else dx, weight, None if bias is None else _or_zeros(dbias, bias)
    )
    return y if dweight is None else y + blockdiag_linear_op(x, dweight, None)


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, int]:
    x = x.movedim(in_dims[0], 0) if in_dims[0] is not None else x.expand(info.batch_size, *x.shape)
    if in_dims[1] is None and in_dims[2] is None:
        return blockdiag_linear_op(x, weight, bias), 0
    weight = weight.movedim(in_dims[1], 0) if in_dims[1] is not None else weight.expand(info.batch_size, *weight.shape)
    # samples side by side: sample v's blocks stand behind those of sample v - 1
    y = blockdiag_linear_op(x.movedim(0, -2).flatten(-2), weight.flatten(0, 1), None)
    y = y.unflatten(-1, (info.batch_size, -1)).movedim(-2, 0)
    if bias is None:
        return y, 0
    bias = bias.movedim(in_dims[2], 0) if in_dims[2] is not None else bias.expand(info.batch_size, *bias.shape)
    return y + bias.reshape(info.batch_size, *[1] * (y.dim() - 2), -1), 0


blockdiag_linear_op: Any = register(
    Definition(
        schema="blockdiag_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
        check=operands.blockdiag_linear,
        impl=product,
        fake=_fake,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        autocast=(0, 1, 2),
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


def _glu_impl(x: Tensor, weight: Tensor, activation: str | None) -> Tensor:
    return executor.product(x, weight, None, True, activation)


def _glu_composed(x: Tensor, weight: Tensor, activation: str | None) -> Tensor:
    return gated(blockdiag_linear_op(x, weight, None), activation)


def _glu_vmap(
    info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, activation: str | None
) -> tuple[Tensor, int]:
    samples = [
        blockdiag_glu_op(
            x if in_dims[0] is None else x.select(in_dims[0], i),
            weight if in_dims[1] is None else weight.select(in_dims[1], i),
            activation,
        )
        for i in range(info.batch_size)
    ]
    return torch.stack(samples), 0


blockdiag_glu_op: Any = register(
    Definition(
        schema="blockdiag_glu(Tensor x, Tensor weight, str? activation) -> Tensor",
        check=operands.blockdiag_glu,
        impl=_glu_impl,
        fake=lambda x, weight, activation: x.new_empty((*x.shape[:-1], weight.shape[0] * weight.shape[1] // 2)),
        composed=_glu_composed,
        vmap=_glu_vmap,
        autocast=(0, 1),
    )
)

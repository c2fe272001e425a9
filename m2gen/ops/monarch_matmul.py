"""monarch_matmul: an order-p Monarch matrix times vectors, M = (prod P_i B_i) P_0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.ops import _check as check
from m2gen.ops._register import Args, Definition, register
from m2gen.ops.blockdiag_linear import blockdiag_linear_op, outer_blocks, product


def monarch_matmul(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Multiply the last axis of x by the Monarch matrix with the given block-diagonal factors.

    ``factors[0]`` is applied first. Before stage i the vector is viewed as (A_i, block_in_i, C_i) and block_in moves
    last, so that it becomes nblocks_i = A_i * C_i blocks; behind the stage, (nblocks_i, block_out_i) is transposed.
    C_1 = nblocks_1 and C_p = 1; between them C_i is the product of the later block_in. One factor is a plain
    block-diagonal matrix. With two factors of equal blocks R, L this is P L P R P:
    M[(i1, i0), (j1, j0)] = L[i0][i1, j0] * R[j0][i0, j1]; at any order the DFT, in natural order, is of this form.

    Args:
        x: (..., n_in), float16, bfloat16, float32 or float64.
        factors: order-many (nblocks_i, block_out_i, block_in_i), with nblocks_1 * block_in_1 = n_in and each stage's
            nblocks * block_out = the next one's nblocks * block_in; dtype of ``x`` (autocast casts them all).

    Returns:
        (..., n_out). Differentiable to any order. 2 * sum(nblocks * block_out * block_in) FLOP a vector.

    Raises:
        ProblemError: for sizes, dtypes or devices that do not fit together.

    Source: Monarch Mixer (arXiv 2310.12109), section 3; Monarch (arXiv 2204.00595), section 3.
    """
    factors = list(factors)
    check.monarch_matmul(x, factors)
    y: Tensor = monarch_matmul_op(x, factors)
    return y


def inner_widths(shapes: Sequence[tuple[int, int, int]]) -> list[int]:
    """C_i of every stage, from the factors' shapes: how far apart a block's neighbours lie in the vector."""
    order = len(shapes)
    widths = [1] * order
    for i in range(order - 2, 0, -1):
        widths[i] = widths[i + 1] * shapes[i + 1][2]
    widths[0] = shapes[0][0] if order > 1 else 1
    for i, (shape, width) in enumerate(zip(shapes, widths, strict=True)):
        if shape[0] % width if width else shape[0]:
            raise ProblemError(
                f"a standard Monarch of order {order}: factors[{i}] of shape {shape}",
                f"its {shape[0]} blocks do not split into groups of {width}, the product of the later block_in",
                "make nblocks of each inner factor a multiple of that product, or use order 2",
            )
    return widths


def _shapes(factors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    return [(f.shape[0], f.shape[1], f.shape[2]) for f in factors]


def _check(x: Tensor, factors: Sequence[Tensor]) -> None:
    check.stages("monarch_matmul", x, factors)
    inner_widths(_shapes(factors))


def swap(x: Tensor, rows: int, columns: int) -> Tensor:
    """View the last axis as (..., rows, columns), transpose the two, flatten: a stride permutation."""
    if x.shape[-1] == 0:
        return x
    groups = x.shape[-1] // (rows * columns)
    return x.reshape(*x.shape[:-1], groups, rows, columns).transpose(-1, -2).reshape(x.shape)


def gather_blocks(x: Tensor, factor: Tensor, width: int) -> Tensor:
    """The permutation before a stage: (..., A, block_in, C) -> (..., A, C, block_in)."""
    return swap(x, factor.shape[2], width)


def scatter_blocks(x: Tensor, factor: Tensor) -> Tensor:
    """The permutation behind a stage: (..., nblocks, block_out) -> (..., block_out, nblocks)."""
    return swap(x, factor.shape[0], factor.shape[1])


def _stages(
    x: Tensor, factors: Sequence[Tensor], product: Callable[..., Tensor] = blockdiag_linear_op
) -> tuple[list[Tensor], Tensor]:
    """Every stage's input, gathered into blocks, and the result; differentiable, as the product is."""
    inputs = []
    for factor, width in zip(factors, inner_widths(_shapes(factors)), strict=True):
        x = gather_blocks(x, factor, width) if len(factors) > 1 else x
        inputs.append(x)
        x = product(x, factor, None)
        x = scatter_blocks(x, factor) if len(factors) > 1 else x
    return inputs, x


def run(x: Tensor, factors: list[Tensor]) -> Tensor:
    """The operator by others: a product for each factor."""
    return _stages(x, factors)[1].contiguous()


def _impl(x: Tensor, factors: list[Tensor]) -> Tensor:
    return _stages(x, factors, product)[1].contiguous()


def _fake(x: Tensor, factors: list[Tensor]) -> Tensor:
    return x.new_empty((*x.shape[:-1], factors[-1].shape[0] * factors[-1].shape[1]))


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    """Stage by stage from the last; the forward's intermediates are computed again."""
    x, factors = args
    many = len(factors) > 1
    inputs, _ = _stages(x, factors)
    grads: list[Tensor | None] = [None] * len(factors)
    for i in reversed(range(len(factors))):
        factor, width = factors[i], inner_widths(_shapes(factors))[i]
        nblocks, block_out, block_in = factor.shape
        dy = swap(dy, block_out, nblocks) if many else dy
        grads[i] = outer_blocks(dy, inputs[i], factor) if needs[1][i] else None
        dy = blockdiag_linear_op(dy, factor.transpose(1, 2), None)
        dy = swap(dy, width, block_in) if many else dy
    return [dy if needs[0] else None, grads]


def _jvp(args: Args, tangents: Args) -> Tensor:
    """Linear in x and in each factor: one product for each tangent."""
    x, factors = args
    dx, dfactors = tangents
    terms = [] if dx is None else [monarch_matmul_op(dx, factors)]
    for i, dfactor in enumerate(dfactors):
        if dfactor is not None:
            terms.append(monarch_matmul_op(x, [*factors[:i], dfactor, *factors[i + 1 :]]))
    return torch.stack(terms).sum(0)


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, factors: list[Tensor]) -> tuple[Tensor, int]:
    dims = in_dims[1] if isinstance(in_dims[1], list | tuple) else [in_dims[1]] * len(factors)
    if all(dim is None for dim in dims):
        return monarch_matmul_op(x.movedim(in_dims[0], 0), factors), 0
    samples = [
        monarch_matmul_op(
            x if in_dims[0] is None else x.select(in_dims[0], i),
            [f if dim is None else f.select(dim, i) for f, dim in zip(factors, dims, strict=True)],
        )
        for i in range(info.batch_size)
    ]
    return torch.stack(samples), 0


monarch_matmul_op: Any = register(
    Definition(
        schema="monarch_matmul(Tensor x, Tensor[] factors) -> Tensor",
        check=_check,
        impl=_impl,
        fake=_fake,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        autocast=(0, 1),
    )
)

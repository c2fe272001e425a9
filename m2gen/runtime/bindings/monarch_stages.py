"""A Monarch product stage by stage: a block-diagonal product for each factor, permutations between.

Whoever calls says what multiplies: an operator, which is differentiable, or the kernels of a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from m2gen.planner.monarch.problem import inner_widths

Product = Callable[[Tensor, Tensor, int], Tensor]  # (x, factor, number of the stage)


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


def widths(factors: Sequence[Tensor]) -> list[int]:
    """How far apart a block's neighbours lie in the vector, for each stage."""
    return inner_widths([(f.shape[0], f.shape[1], f.shape[2]) for f in factors])


def inputs_and_result(
    x: Tensor, factors: Sequence[Tensor], product: Product, result: bool = True
) -> tuple[list[Tensor], Tensor]:
    """Every stage's input, gathered into blocks, and the result; without it the last product is not made."""
    inputs, many = [], len(factors) > 1
    for i, (factor, width) in enumerate(zip(factors, widths(factors), strict=True)):
        x = gather_blocks(x, factor, width) if many else x
        inputs.append(x)
        if result or i < len(factors) - 1:
            x = product(x, factor, i)
            x = scatter_blocks(x, factor) if many else x
    return inputs, x


def gradients(
    dy: Tensor,
    x: Tensor,
    factors: Sequence[Tensor],
    needs: Sequence[bool],
    product: Product,
    back: Product,
    outer: Product,
) -> list[Tensor | None]:
    """Those in x and in each factor, from the last stage to the first; None where one is not wanted.

    `back` multiplies by a factor's transpose, `outer` takes (dy, x) of a stage and gives its factor's gradient. What
    the stages read is computed again."""
    many, apart = len(factors) > 1, widths(factors)
    inputs = inputs_and_result(x, factors, product, result=False)[0] if any(needs[1:]) else []
    grads: list[Tensor | None] = [None] * len(needs)
    for i in reversed(range(len(factors))):
        nblocks, block_out, block_in = factors[i].shape
        dy = swap(dy, block_out, nblocks) if many else dy
        if needs[1 + i]:
            grads[1 + i] = outer(dy, inputs[i], i)
        if not any(needs[: 1 + i]):
            return grads
        dy = back(dy, factors[i].transpose(1, 2), i)
        dy = swap(dy, apart[i], block_in) if many else dy
    grads[0] = dy if needs[0] else None
    return grads

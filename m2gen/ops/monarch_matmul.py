"""monarch_matmul: an order-p Monarch matrix times vectors, M = (prod P_i B_i) P_0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from m2gen.ops import _check as check
from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, register
from m2gen.ops.blockdiag_linear import blockdiag_linear_op, outer_blocks
from m2gen.planner.monarch.problem import inner_widths as inner_widths
from m2gen.runtime import executor
from m2gen.runtime.bindings.monarch_stages import gradients, inputs_and_result


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
    factors = check.factors_of("monarch_matmul", factors)
    check.monarch_matmul(x, factors)
    y: Tensor = monarch_matmul_op(x, factors)
    return y


def _shapes(factors: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    return [(f.shape[0], f.shape[1], f.shape[2]) for f in factors]


def _check(x: Tensor, factors: Sequence[Tensor]) -> None:
    check.stages("monarch_matmul", x, factors)
    inner_widths(_shapes(factors))


def _by_stages(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The product by differentiable operators, one for each factor."""
    return inputs_and_result(x, factors, _product)[1]


def _product(x: Tensor, factor: Tensor, _: int) -> Tensor:
    y: Tensor = blockdiag_linear_op(x, factor, None)
    return y


def _fake(x: Tensor, factors: list[Tensor]) -> Tensor:
    return x.new_empty((*x.shape[:-1], factors[-1].shape[0] * factors[-1].shape[1]))


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    x, factors = args
    wanted = [bool(needs[0]), *map(bool, needs[1])]
    plain = not any(_of_the_older_vmap(t) for t in (dy, x, *factors))
    found = (monarch_backward_op if plain else backward_by_stages)(dy, x, factors, wanted)
    grads = [grad if need else None for grad, need in zip(found, wanted, strict=True)]
    return [grads[0], grads[1:]]


def _of_the_older_vmap(x: Tensor) -> bool:
    """Whether x is a batch of `is_grads_batched` or `vectorize`: that vmap takes no operator with a list of tensors."""
    return bool(torch._C._dispatch_keys(x).has(torch._C.DispatchKey.AutogradOther))


def backward_by_stages(dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool]) -> list[Tensor]:
    """All gradients by differentiable operators, stage by stage from the last; empty where one is not wanted."""

    def outer(dy: Tensor, x: Tensor, i: int) -> Tensor:
        return outer_blocks(dy, x, factors[i])

    found = gradients(dy, x, factors, needs, _product, _product, outer)
    return [x.new_empty(0) if grad is None else grad.contiguous() for grad in found]


def _jvp(args: Args, tangents: Args) -> Tensor:
    """Linear in x and in each factor: one product for each tangent."""
    x, factors = args
    dx, dfactors = tangents
    older = any(t is not None and _of_the_older_vmap(t) for t in (dx, *dfactors))
    product = _by_stages if older else monarch_matmul_op
    terms = [] if dx is None else [product(dx, factors)]
    for i, dfactor in enumerate(dfactors):
        if dfactor is not None:
            terms.append(product(x, [*factors[:i], dfactor, *factors[i + 1 :]]))
    return torch.stack(terms).sum(0)


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, factors: list[Tensor]) -> tuple[Tensor, int]:
    dims = in_dims[1] if isinstance(in_dims[1], list | tuple) else [in_dims[1]] * len(factors)
    if all(dim is None for dim in dims):
        return monarch_matmul_op(x.movedim(in_dims[0], 0), factors), 0
    samples = [
        monarch_matmul_op(_at(i, in_dims[0], x), [_at(i, dim, f) for f, dim in zip(factors, dims, strict=True)])
        for i in range(info.batch_size)
    ]
    return torch.stack(samples), 0


monarch_matmul_op: Any = register(
    Definition(
        schema="monarch_matmul(Tensor x, Tensor[] factors) -> Tensor",
        check=_check,
        impl=executor.monarch,
        fake=_fake,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        autocast=(0, 1),
    )
)


def _bwd_check(dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> None:
    operands.monarch_backward(dy, x, factors, needs)
    inner_widths(_shapes(factors))


def _bwd_impl(dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool]) -> list[Tensor]:
    found = executor.monarch_gradients(dy, x, factors, needs)
    return [x.new_empty(0) if grad is None else grad for grad in found]


def _bwd_fake(dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool]) -> list[Tensor]:
    return [x.new_empty(t.shape if need else 0) for t, need in zip((x, *factors), needs, strict=True)]


def _bwd_vmap(
    info: Any, in_dims: tuple[Any, ...], dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool]
) -> tuple[list[Tensor], list[int]]:
    """Sample by sample; all at once where nothing is summed over rows and the factors are shared."""
    dims = in_dims[2] if isinstance(in_dims[2], list | tuple) else [in_dims[2]] * len(factors)
    if not any(needs[1:]) and all(dim is None for dim in dims):
        pairs = ((dy, in_dims[0]), (x, in_dims[1]))
        dy, x = (t.expand(info.batch_size, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in pairs)
        dx, *none = monarch_backward_op(dy, x, factors, needs)
        dx = dx if needs[0] else dx.new_empty(info.batch_size, 0)
        return [dx, *(one.new_empty(info.batch_size, 0) for one in none)], [0] * len(needs)
    samples = [
        monarch_backward_op(
            _at(i, in_dims[0], dy),
            _at(i, in_dims[1], x),
            [_at(i, dim, f) for f, dim in zip(factors, dims, strict=True)],
            needs,
        )
        for i in range(info.batch_size)
    ]
    return [torch.stack(grads) for grads in zip(*samples, strict=True)], [0] * len(needs)


def _at(i: int, dim: int | None, x: Tensor) -> Tensor:
    """Sample i."""
    return x if dim is None else x.select(dim, i)


monarch_backward_op: Any = register(
    Definition(
        schema="monarch_backward(Tensor dy, Tensor x, Tensor[] factors, bool[] needs) -> Tensor[]",
        check=_bwd_check,
        impl=_bwd_impl,
        fake=_bwd_fake,
        composed=backward_by_stages,
        vmap=_bwd_vmap,
    )
)

"""Products with block-diagonal weights by generated Triton kernels: tensors in, tensors out.

Rows are tensors (rows, a, c, entry) of any strides; block number a * C + c. `blocks_of`, `before_stage` and
`behind_stage` make such views of (rows, n): contiguous blocks, and the permutations around a Monarch's stage.
Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.add_parts import AddPartsSpec
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import FusedProduct
from m2gen.planner.blockdiag.tiles import BlockdiagSizes, Part, candidates
from m2gen.runtime.build.limits import live
from m2gen.runtime.build.triton_kernel import DTYPES, emulated, launch


class Epilogue(NamedTuple):
    """What follows the product, in this order."""

    bias: Tensor | None = None  # (nblocks * N,)
    activation: str | None = None
    glu: bool = False
    residual: Tensor | None = None  # like the result


class Gradients(NamedTuple):
    """None where it was not wanted. The residual's gradient is dy itself."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Kernels(NamedTuple):
    """Those of the gradients; None where the best is to be found."""

    dz: BlockdiagSpec | None = None
    dx: BlockdiagSpec | None = None
    dw: Candidate[BlockdiagSpec] | None = None


class FusedKernel:
    """One planned product, and the gradient in its weight."""

    def __init__(self, problem: BlockDiagProblem, step: FusedProduct) -> None:
        self.problem, self.step = problem, step

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """x (..., n_in) by weight (nblocks, block_out, block_in) -> (..., results), contiguous."""
        of = self.problem
        y = x.new_empty((*x.shape[:-1], of.results))
        into = blocks_of(y.view(of.rows, of.results), of.result_blocks)
        beside = None if residual is None else blocks_of(_rows(residual, of.rows, of.results), of.result_blocks)
        epilogue = Epilogue(bias, of.activation, of.glu, beside)
        product(blocks_of(_rows(x, of.rows, of.n_in), of.blocks), weight, epilogue, into, self.step.spec)
        return y

    def outer(self, dy: Tensor, x: Tensor) -> Tensor:
        """(nblocks, block_out, block_in): for each block the sum over rows of dy x^T."""
        of = self.problem
        dy, x = _rows(dy, of.rows, of.n_out), _rows(x, of.rows, of.n_in)
        return weight_gradients(blocks_of(dy, of.blocks), blocks_of(x, of.blocks), of.bias, self._of_weight)[0]

    def gradients(self, dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, needs: Sequence[bool]) -> Gradients:
        """Those in x, weight and bias, contiguous, None where one is not wanted, given that of `product`'s result."""
        of, step = self.problem, self.step
        dy, rows = _rows(dy, of.rows, of.results), _rows(x, of.rows, of.n_in)
        dx = x.new_empty(x.shape) if needs[0] else None
        into = None if dx is None else blocks_of(dx.view(of.rows, of.n_in), of.blocks)
        found = gradients(
            blocks_of(dy, of.result_blocks),
            blocks_of(rows, of.blocks),
            weight,
            Epilogue(bias, of.activation, of.glu),
            (needs[0], needs[1], needs[2]),
            into,
            Kernels(step.dz, step.dx, self._of_weight),
        )
        return found._replace(x=dx)

    @property
    def _of_weight(self) -> Candidate[BlockdiagSpec]:
        return Candidate(self.step.dw, 0.0, 0.0, self.step.parts_of_rows)


def _rows(x: Tensor, rows: int, width: int) -> Tensor:
    """x (..., width) as (rows, width), the numbers of a row side by side."""
    x = x.resolve_neg().reshape(rows, width)
    return x if x.stride(1) == 1 else x.contiguous()


def blocks_of(x: Tensor, nblocks: int) -> Tensor:
    """(rows, nblocks * K) -> (rows, nblocks, 1, K): blocks that lie one behind another."""
    return x.view(x.shape[0], nblocks, 1, x.shape[1] // nblocks)


def before_stage(x: Tensor, block_in: int, inner: int) -> Tensor:
    """(rows, n) -> (rows, A, C, K): entry j of block (a, c) lies at a K C + j C + c, C = inner."""
    return x.view(x.shape[0], x.shape[1] // (block_in * inner), block_in, inner).transpose(2, 3)


def behind_stage(y: Tensor, nblocks: int) -> Tensor:
    """(rows, n) -> (rows, nblocks, 1, N): entry o of block b lies at o nblocks + b."""
    return y.view(y.shape[0], y.shape[1] // nblocks, nblocks, 1).permute(0, 2, 3, 1)


def product(
    x: Tensor,
    weight: Tensor,
    epilogue: Epilogue | None = None,
    y: Tensor | None = None,
    spec: BlockdiagSpec | None = None,
) -> Tensor:
    """x (rows, A, C, K) by weight (nblocks, N, K), then the epilogue, to y (rows, A', C', N), by default contiguous.

    A C = nblocks; A' C' as well, or half of it with a gate: y = activation(first half) * second half + residual.
    """
    after = Epilogue() if epilogue is None else epilogue
    x, weight = x.resolve_neg(), weight.resolve_neg()
    rows, nblocks, width = x.shape[0], weight.shape[0], weight.shape[1]
    y = x.new_empty((rows, nblocks // 2 if after.glu else nblocks, 1, width)) if y is None else y
    if y.numel() == 0:
        return y
    spec = _choice(x, weight, after, y).spec if spec is None else spec
    beside = y if after.residual is None else after.residual.resolve_neg()
    _run(spec, x, weight, after, beside, y)
    return y


def before_epilogue(
    dy: Tensor, x: Tensor, weight: Tensor, epilogue: Epilogue, spec: BlockdiagSpec | None = None
) -> Tensor:
    """The gradient in z = x weight + bias, (rows, A, C, N) for all blocks of the weight, given dy (rows, A', C', N).

    z is computed again: writing it in the forward pass and reading it here would move more than that costs.
    """
    if epilogue.activation is None and not epilogue.glu:
        return dy
    dy, x, weight = dy.resolve_neg(), x.resolve_neg(), weight.resolve_neg()
    rows, outer, inner, width = dy.shape
    dz = dy.new_empty((rows, 2 * outer if epilogue.glu else outer, inner, width))
    if dz.numel():
        spec = _choice(x, weight, epilogue, dy, "dz").spec if spec is None else spec
        _run(spec, x, weight, epilogue, dy, dz)
    return dz


def weight_gradients(
    dz: Tensor, x: Tensor, bias: bool, choice: Candidate[BlockdiagSpec] | None = None
) -> tuple[Tensor, Tensor | None]:
    """(nblocks, N, K), the sum over rows of dz^T x for each block, and (nblocks * N,), that of dz. The same bits in
    every call: rows are summed in parts of a fixed number, and these in their order."""
    dz, x = dz.resolve_neg(), x.resolve_neg()
    rows, nblocks, depth, width = x.shape[0], x.shape[1] * x.shape[2], x.shape[3], dz.shape[3]
    dw = x.new_empty((nblocks, width, depth))
    dbias = x.new_empty((nblocks * width,)) if bias else None
    if rows == 0 or dw.numel() == 0:
        dw.zero_()
        return dw, None if dbias is None else (dbias.zero_() if rows == 0 else dz.sum(0).flatten())
    if choice is None:
        sizes = BlockdiagSizes(
            rows, nblocks, depth, width, DTYPES[x.dtype], bias, apart_x=_apart(x), apart_y=_apart(dz)
        )
        choice = candidates(sizes, live(x.device), "dw")[0]
    spec, parts = choice.spec, choice.parts
    into, into_bias = dw, dw if dbias is None else dbias
    if parts > 1:
        into = x.new_empty((parts, dw.numel()), dtype=torch.float32)
        into_bias = x.new_empty((parts, width * nblocks if bias else 1), dtype=torch.float32)
    tiles = -(-width // spec.block_n) * -(-depth // spec.block_k) * -(-nblocks // spec.blocks)
    sizes_ = (rows, nblocks, depth, width, dz.shape[2], x.shape[2], parts)
    launch(_here(spec, x), tiles * parts, dz, x, into, into_bias, *sizes_, *dz.stride(), *x.stride())
    if parts > 1:
        add_parts(into, dw)
        if dbias is not None:
            add_parts(into_bias, dbias)
    return dw, dbias


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    epilogue: Epilogue,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    dx: Tensor | None = None,
    kernels: Kernels | None = None,
) -> Gradients:
    """Those of x (to `dx`, by default laid out like x), weight and bias, each where it is wanted: three launches, and
    what adds parts."""
    kernels = Kernels() if kernels is None else kernels
    dz = before_epilogue(dy, x, weight, epilogue, kernels.dz)
    if wanted[0]:
        into = torch.empty_like(x) if dx is None else dx
        dx = product(dz, weight.transpose(1, 2), y=into, spec=kernels.dx)
    of_bias = wanted[2] and epilogue.bias is not None
    if not wanted[1] and not of_bias:
        return Gradients(dx if wanted[0] else None, None, None)
    dweight, dbias = weight_gradients(dz, x, of_bias if kernels.dw is None else kernels.dw.spec.bias, kernels.dw)
    return Gradients(dx if wanted[0] else None, dweight if wanted[1] else None, dbias if of_bias else None)


def add_parts(parts: Tensor, total: Tensor) -> None:
    """total = parts (n, ...) float32, added in their order."""
    spec = AddPartsSpec(dtype=DTYPES[total.dtype], emulated=emulated(total.dtype))
    launch(spec, -(-total.numel() // spec.block), parts, total, parts.shape[0], total.numel())


def _run(spec: BlockdiagSpec, x: Tensor, weight: Tensor, after: Epilogue, beside: Tensor, y: Tensor) -> None:
    rows, _, inner_x, depth = x.shape
    nblocks, width, _ = weight.shape
    blocks = nblocks // 2 if after.glu else nblocks
    tiles = -(-rows // spec.block_r) * -(-width // spec.block_n) * -(-blocks // spec.blocks)
    bias = weight if after.bias is None else after.bias.resolve_neg().contiguous()
    sizes = (rows, blocks, depth, width, inner_x, y.shape[2])
    strides = (*x.stride(), *weight.stride(), *beside.stride(), *y.stride())
    launch(_here(spec, x), tiles, x, weight, bias, beside, y, *sizes, *strides)


def _here(spec: BlockdiagSpec, x: Tensor) -> BlockdiagSpec:
    return replace(spec, emulated=True) if emulated(x.dtype) else spec


def _choice(
    x: Tensor, weight: Tensor, after: Epilogue, y: Tensor, part: Part = "fwd", limits: DeviceLimits | None = None
) -> Candidate[BlockdiagSpec]:
    """The kernel that is expected to be the fastest."""
    sizes = BlockdiagSizes(
        rows=x.shape[0],
        blocks=weight.shape[0],
        depth=weight.shape[2],
        width=weight.shape[1],
        dtype=DTYPES[x.dtype],
        bias=after.bias is not None,
        activation=after.activation,
        glu=after.glu,
        residual=after.residual is not None,
        apart_x=_apart(x),
        apart_y=_apart(y),
    )
    return candidates(sizes, live(x.device) if limits is None else limits, part)[0]


def _apart(x: Tensor) -> bool:
    """Whether a block's entries have other blocks' between them."""
    between = [x.stride(dim) for dim in (1, 2) if x.shape[dim] > 1]
    return x.shape[3] > 1 and bool(between) and x.stride(3) > min(between)

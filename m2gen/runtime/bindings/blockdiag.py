"""Products with block-diagonal weights, and the weight's gradient: by generated C++ kernels, or by PyTorch's products.

A row of a native product has the same bits in any company: alone, among others, in whatever place, with any number of
threads. PyTorch's library chooses its sums by the number of rows. The weight's gradient, a sum over rows, depends on
all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import CompileError
from m2gen.log import fallback
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import LibraryProduct, NativeProduct
from m2gen.planner.gate.problem import GateProblem
from m2gen.runtime.bindings import gate
from m2gen.runtime.bindings.gate import ACTIVATIONS
from m2gen.runtime.build.cpp_kernel import compile_together, load
from m2gen.runtime.build.scratch import on_huge_pages


class LibraryKernel:
    """A product by PyTorch, of any dtype, on any device."""

    def __init__(self, problem: BlockDiagProblem, step: LibraryProduct) -> None:
        self.problem, self.step, self.gate = problem, step, None
        if step.gate is not None:
            half = GateProblem(n=problem.results, rows=problem.rows, dtype=problem.dtype, activation=problem.activation)
            self.gate = gate.NativeKernel(half, step.gate)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """x (..., n_in) by weight (nblocks, block_out, block_in) -> (..., results), contiguous."""
        if self.problem.blocks == 1:  # its bias is added before the sums are rounded
            # PyTorch reads between rows that lie apart, in 16 bits, and a NaN there spoils results
            y = F.linear(x.contiguous(), weight[0], bias)
        else:
            y = matmul_blocks(x, weight)
            y = y if bias is None else y.add_(bias)
        glu, activation = self.problem.glu, self.problem.activation
        y = applied(y, glu, activation).contiguous() if self.gate is None else self.gate.gated(y)
        return y if residual is None else y.add_(residual)

    def outer(self, dy: Tensor, x: Tensor) -> Tensor:
        """(nblocks, block_out, block_in): for each block the sum over rows of dy x^T."""
        return outer_blocks(dy, x, self.problem.blocks)

    def gradients(self, *operands: Any) -> None:
        """None: the operator composes them."""


class NativeKernel:
    """A product by generated C++. Raises CompileError where a kernel does not compile."""

    def __init__(self, problem: BlockDiagProblem, step: NativeProduct) -> None:
        self.problem, self.step = problem, step
        self.dtype = torch.float64 if step.spec.dtype == "fp64" else torch.float32
        compile_together(step.spec, step.pack, step.outer)
        self.kernel = load(step.spec)
        self.pack = None if step.pack is None else load(step.pack)
        self.panels = step.panels(problem)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
        """x (..., n_in) by weight (nblocks, block_out, block_in) -> (..., results), contiguous."""
        step, of, dtype = self.step, self.problem, x.dtype
        x, weight = self._plain(x), self._plain(weight)
        packs = self.pack is None
        packed = weight if packs else self._packed(weight)
        rows = _side_by_side(x.reshape(of.rows, of.n_in))
        bias = None if bias is None else self._plain(bias).contiguous()
        beside = None if residual is None else _side_by_side(self._plain(residual).reshape(of.rows, of.results))
        y = on_huge_pages(x.new_empty((*x.shape[:-1], of.results)))
        items, together = step.work(of, torch.get_num_threads())
        pointers = [0 if t is None else t.data_ptr() for t in (rows, packed, bias, beside, y)]
        steps = [rows.stride(0), 0 if beside is None else beside.stride(0), of.results]
        sizes = [of.rows, of.blocks, of.block_in, of.block_out, *steps, step.pieces, together]
        self.kernel.run(pointers, [*sizes, int(packs), *weight.stride()], items, parallel=step.parallel)
        return y if dtype == y.dtype else y.to(dtype)

    def _plain(self, x: Tensor) -> Tensor:
        """x with its numbers as they lie in memory, in the dtype of the arithmetic."""
        return x.resolve_neg().to(self.dtype)

    def _packed(self, weight: Tensor) -> Tensor:
        """The weight in panels, as tiles read it."""
        of, width = self.problem, self.step.spec.width
        assert self.pack is not None  # noqa: S101  # the caller has looked
        packed = torch.empty(of.blocks * self.panels * of.block_in * width, dtype=weight.dtype)
        sizes = [of.blocks, of.block_in, of.block_out, *weight.stride()]
        pointers = [weight.data_ptr(), packed.data_ptr()]
        self.pack.run(pointers, sizes, of.blocks * self.panels, parallel=self.step.parallel_pack)
        return packed

    def outer(self, dy: Tensor, x: Tensor) -> Tensor:
        """(nblocks, block_out, block_in): for each block the sum over rows of dy x^T; the same bits with any number of
        threads."""
        of, spec = self.problem, self.step.outer
        if spec is None:
            return outer_blocks(dy, x, of.blocks)
        try:
            kernel = load(spec)
        except CompileError as error:
            fallback(f"gradients of block-diagonal weights are done by PyTorch: {error}")
            return outer_blocks(dy, x, of.blocks)
        dtype = x.dtype
        dy, x = _side_by_side(self._plain(dy)), _side_by_side(self._plain(x))
        dw = torch.empty(of.blocks, of.block_out, of.block_in, dtype=x.dtype)
        pointers = [dy.data_ptr(), x.data_ptr(), dw.data_ptr()]
        sizes = [of.rows, of.blocks, of.block_in, of.block_out, dy.stride(0), x.stride(0), self.step.outer_rows]
        kernel.run(pointers, sizes, self.step.outer_work(of), parallel=self.step.parallel_outer)
        return dw if dtype == dw.dtype else dw.to(dtype)

    def gradients(self, *operands: Any) -> None:
        """None: the operator composes them."""


def _side_by_side(x: Tensor) -> Tensor:
    """x (rows, width) with the numbers of a row side by side."""
    return x if x.stride(1) == 1 else x.contiguous()


# -- by PyTorch, of any size: nothing at all, too ----------------------------------------------------------------------


def as_rows(x: Tensor) -> Tensor:
    """x (..., n) as (rows, n); of no size at all, too, where reshape does not know how many rows there are."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def matmul_blocks(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., nblocks * block_in) by weight (nblocks, block_out, block_in), as plain differentiable torch."""
    nblocks, block_out, block_in = weight.shape
    if nblocks == 1:
        return F.linear(x, weight[0])
    rows = as_rows(x)
    rows = rows.reshape(rows.shape[0], nblocks, block_in).transpose(0, 1)
    y = torch.bmm(rows, weight.transpose(1, 2))
    return y.transpose(0, 1).reshape(*x.shape[:-1], nblocks * block_out)


def applied(y: Tensor, glu: bool, activation: str | None) -> Tensor:
    """What is done to a product's result: the activation, or that of its first half times its second half."""
    if not glu:
        return ACTIVATIONS[activation](y)
    half, rest = y.chunk(2, dim=-1)
    return ACTIVATIONS[activation](half) * rest


def outer_blocks(dy: Tensor, x: Tensor, nblocks: int) -> Tensor:
    """dy (rows, nblocks * block_out) and x (rows, nblocks * block_in) -> (nblocks, block_out, block_in)."""
    if nblocks == 1:
        return (dy.t() @ x)[None]
    rows = x.shape[0]
    columns = dy.reshape(rows, nblocks, dy.shape[1] // nblocks).permute(1, 2, 0)
    return torch.bmm(columns, x.reshape(rows, nblocks, x.shape[1] // nblocks).transpose(0, 1))

"""Monarch products and their gradients by generated Triton kernels: tensors in, tensors out.

Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.monarch import MonarchSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.monarch.problem import MonarchProblem, inner_widths
from m2gen.planner.monarch.steps import FusedMonarch
from m2gen.runtime.bindings import blockdiag_triton
from m2gen.runtime.bindings.blockdiag_triton import before_stage, behind_stage, blocks_of
from m2gen.runtime.build.triton_kernel import emulated, launch


class FusedKernel:
    """One planned product, and all its gradients."""

    def __init__(self, problem: MonarchProblem, step: FusedMonarch) -> None:
        self.problem, self.step = problem, step
        self.widths = inner_widths(step.factors)

    def product(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """x (..., n_in) by the Monarch matrix with these factors, (..., n_out), contiguous."""
        rows, factors = self._rows(x, self.problem.n_in), [f.resolve_neg() for f in factors]
        if self.step.whole is not None:
            y = both(self.step.whole, rows, factors[0], factors[1])
        else:
            y = self._stages(rows, factors)[-1]
        return y.view(*x.shape[:-1], self.problem.n_out)

    def gradients(self, dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
        """Those in x and in each factor, None where `needs` says that one is not wanted; what the stages read is
        computed again. The same bits in every call."""
        of, step, factors = self.problem, self.step, [f.resolve_neg() for f in factors]
        rows, back = self._rows(x, of.n_in), self._rows(dy, of.n_out)
        found: list[Tensor | None] = [None] * len(needs)
        if needs[0] and step.whole_back is not None:
            turned = [f.transpose(1, 2) for f in reversed(factors)]
            found[0] = both(step.whole_back, back, turned[0], turned[1]).view(x.shape)
        if not any(needs[1:]) and (found[0] is not None or not needs[0]):
            return found
        inputs = [rows, *self._stages(rows, factors[:-1])] if any(needs[1:]) else []
        for i in reversed(range(len(factors))):
            if needs[1 + i]:
                choice = Candidate(step.dw[i], 0.0, 0.0, step.parts_of_rows[i])
                gradient = self._behind(back, i), self._before(inputs[i], i)
                found[1 + i] = blockdiag_triton.weight_gradients(*gradient, False, choice)[0]
            if not (any(needs[1 : 1 + i]) or (needs[0] and found[0] is None)):
                break
            back = self._stage(step.back[i], back, factors[i].transpose(1, 2), i, turned=True)
            if i == 0:
                found[0] = back.view(x.shape)
        return found

    def _stages(self, rows: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
        """What each stage gives, (rows, numbers)."""
        found: list[Tensor] = []
        for i, factor in enumerate(factors):
            rows = self._stage(self.step.stages[i], rows, factor, i)
            found.append(rows)
        return found

    def _stage(self, spec: BlockdiagSpec, rows: Tensor, factor: Tensor, i: int, turned: bool = False) -> Tensor:
        """One stage, or with its factor turned the way back."""
        y = rows.new_empty((rows.shape[0], factor.shape[0] * factor.shape[1]))
        read, write = (self._behind, self._before) if turned else (self._before, self._behind)
        blockdiag_triton.product(read(rows, i), factor, None, write(y, i), spec)
        return y

    def _before(self, rows: Tensor, i: int) -> Tensor:
        """What stage i reads, as its blocks."""
        nblocks, _, block_in = self.step.factors[i]
        return before_stage(rows, block_in, self.widths[i]) if len(self.widths) > 1 else blocks_of(rows, nblocks)

    def _behind(self, rows: Tensor, i: int) -> Tensor:
        """What stage i gives, as its blocks."""
        nblocks = self.step.factors[i][0]
        return behind_stage(rows, nblocks) if len(self.widths) > 1 else blocks_of(rows, nblocks)

    def _rows(self, x: Tensor, n: int) -> Tensor:
        x2 = x.resolve_neg().reshape(self.problem.rows, n)
        return x2 if x2.stride(1) == 1 or n == 1 else x2.contiguous()


def both(spec: MonarchSpec, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x (rows, c k), its rows anywhere, by factors (c, n, k) and (n, o, c) -> (rows, n o)."""
    y = x.new_empty((x.shape[0], second.shape[0] * second.shape[1]))
    spec = replace(spec, emulated=True) if emulated(x.dtype) else spec
    strides = (x.stride(0), *first.stride(), *second.stride(), y.stride(0))
    launch(spec, -(-x.shape[0] // spec.block_r), x, first, second, y, x.shape[0], *strides)
    return y

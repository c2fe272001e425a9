"""Generated C++ for a CPU, see native_products.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.blockdiag_mm import BlockdiagMmSpec
from m2gen.kernels.spec import recast
from m2gen.planner.blockdiag.native_products import native_products, unable
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import NativeProduct
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Native:
    """`family`: of kernels that take the calls of `BlockdiagMmSpec`'s."""

    name: str = "native"
    family: type[BlockdiagMmSpec] = BlockdiagMmSpec

    def reject(self, problem: BlockDiagProblem, limits: DeviceLimits) -> str | None:
        return unable(problem, limits)

    def left_out(self, problem: BlockDiagProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for step in native_products(problem, limits):
            yield Plan(problem, limits.arch, self.name, (self._recast(step),))

    def _recast(self, step: NativeProduct) -> NativeProduct:
        if self.family is type(step.spec):
            return step
        pack, outer = (None if one is None else recast(one, self.family) for one in (step.pack, step.outer))
        return replace(step, spec=recast(step.spec, self.family), pack=pack, outer=outer)

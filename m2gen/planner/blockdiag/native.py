"""Generated C++ for a CPU, see native_products.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.planner.blockdiag.native_products import native_products, unable
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Native:
    name: str = "native"

    def reject(self, problem: BlockDiagProblem, limits: DeviceLimits) -> str | None:
        return unable(problem, limits)

    def left_out(self, problem: BlockDiagProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for step in native_products(problem, limits):
            yield Plan(problem, limits.arch, self.name, (step,))

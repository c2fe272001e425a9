"""PyTorch's own products: of any size and dtype, on any device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.planner.blockdiag.cost import library_estimate
from m2gen.planner.blockdiag.native_products import unable
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import LibraryProduct
from m2gen.planner.gate import solvers as gates
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.gate.steps import NativeGate
from m2gen.planner.languages import no_cpp
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Library:
    name: str = "library"

    def reject(self, problem: BlockDiagProblem, limits: DeviceLimits) -> str | None:
        if DTYPES[problem.dtype].bytes > 2 and unable(problem, limits) is None:
            return "its sums depend on the number of rows, and a row's result is not to depend on its company"
        needed = library_estimate(problem, limits).working_set
        if needed > limits.memory_bytes:
            return f"it needs {needed / 2**30:.1f} GiB of {limits.memory_bytes / 2**30:.1f} GiB memory"
        return None

    def left_out(self, problem: BlockDiagProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[Plan]:
        gate = None
        if problem.glu and no_cpp(limits) is None:
            half = GateProblem(n=problem.results, rows=problem.rows, dtype=problem.dtype, activation=problem.activation)
            chosen = gates.cheapest(half, limits)
            gate = chosen.body if chosen is not None and isinstance(chosen.body, NativeGate) else None
        step = LibraryProduct(library_estimate(problem, limits), problem.blocks, gate)
        yield Plan(problem, limits.arch, self.name, (step,))

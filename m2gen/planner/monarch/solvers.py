"""Products stage by stage, on any device; and one generated C++ kernel for all stages, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.planner.languages import no_cpp
from m2gen.planner.monarch.cost import native_estimate, staged_estimate
from m2gen.planner.monarch.factorings import factorings, why_none
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.monarch.run import fits, spec_of
from m2gen.planner.monarch.steps import NativeMonarch, StagedMonarch
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Staged:
    name: str = "staged"

    def reject(self, problem: MonarchProblem, limits: DeviceLimits) -> str | None:
        return None if next(factorings(problem), None) else why_none(problem)

    def left_out(self, problem: MonarchProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: MonarchProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for factors in factorings(problem):
            step = StagedMonarch(staged_estimate(problem, factors, limits), factors)
            yield Plan(problem, limits.arch, self.name, (step,))


@dataclass(frozen=True, slots=True)
class Native:
    name: str = "native"

    def reject(self, problem: MonarchProblem, limits: DeviceLimits) -> str | None:
        if why := no_cpp(limits):
            return why
        if problem.dtype not in ("fp32", "fp64"):
            return f"its kernels are of 32 and 64 bits, not {problem.dtype}"
        if next(factorings(problem), None) is None:
            return why_none(problem)
        if next(self.candidates(problem, limits), None) is None:
            return "its blocks are too large: a product for each factor is as good"
        return None

    def left_out(self, problem: MonarchProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: MonarchProblem, limits: DeviceLimits) -> Iterator[Plan]:
        spec = spec_of("fwd", problem.dtype, limits.vector_bytes, limits.arch)
        for factors in factorings(problem):
            if fits(factors):
                step = NativeMonarch(native_estimate(problem, factors, spec, limits), factors, spec)
                yield Plan(problem, limits.arch, self.name, (step,))

"""Products stage by stage, on any device; and one generated C++ kernel for all stages, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.monarch_cpp import MonarchCppSpec
from m2gen.kernels.spec import recast
from m2gen.planner.blockdiag.solvers import cheapest
from m2gen.planner.blockdiag.steps import Product
from m2gen.planner.languages import no_cpp
from m2gen.planner.monarch.cost import native_estimate, staged_estimate
from m2gen.planner.monarch.factorings import factorings, why_none
from m2gen.planner.monarch.fused import Fused
from m2gen.planner.monarch.problem import MonarchProblem, Shape, stage_problems, turned
from m2gen.planner.monarch.run import backward_run, fits, forward_runs, spec_of
from m2gen.planner.monarch.steps import NativeMonarch, StagedMonarch
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Staged:
    name: str = "staged"

    def reject(self, problem: MonarchProblem, limits: DeviceLimits) -> str | None:
        if next(factorings(problem), None) is None:
            return why_none(problem)
        if next(self.candidates(problem, limits), None) is None:
            return "the product with one of its factors has no plan: too large for the memory"
        return None

    def left_out(self, problem: MonarchProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: MonarchProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for factors in factorings(problem):
            stages = _products(problem, factors, limits)
            back = _products(problem, turned(factors), limits)
            if stages and back:
                step = StagedMonarch(staged_estimate(problem, factors, stages, limits), factors, stages, back)
                yield Plan(problem, limits.arch, self.name, (step,))


def _products(problem: MonarchProblem, factors: tuple[Shape, ...], limits: DeviceLimits) -> tuple[Product, ...] | None:
    """What multiplies by each factor; None where one has no legal plan."""
    found = [cheapest(one, limits) for one in stage_problems(problem, factors)]
    bodies = tuple(plan.body for plan in found if plan is not None and isinstance(plan.body, Product))
    return bodies if len(bodies) == len(factors) else None


@dataclass(frozen=True, slots=True)
class Native:
    """`family`: of kernels that take the calls of `MonarchCppSpec`'s."""

    name: str = "native"
    family: type[MonarchCppSpec] = MonarchCppSpec

    def reject(self, problem: MonarchProblem, limits: DeviceLimits) -> str | None:
        if why := no_cpp(limits):
            return why
        if next(factorings(problem), None) is None:
            return why_none(problem)
        if next(self.candidates(problem, limits), None) is None:
            return "its blocks are too large: a product for each factor is as good"
        return None

    def left_out(self, problem: MonarchProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: MonarchProblem, limits: DeviceLimits) -> Iterator[Plan]:
        of = DTYPES[problem.dtype].compute, limits.vector_bytes, limits.arch
        spec = recast(spec_of("fwd", *of), self.family)
        for factors in factorings(problem):
            if not fits(factors):
                continue
            of_x, of_all = (
                backward_run(problem.rows, factors, replace(spec, part="bwd"), summed) for summed in (False, True)
            )
            # of open factors one way each: what tells them apart is the order
            for run in forward_runs(problem.rows, factors, spec)[: None if problem.factors else 1]:
                estimate = native_estimate(problem, factors, spec, run, limits)
                yield Plan(
                    problem, limits.arch, self.name, (NativeMonarch(estimate, factors, spec, run, of_x, of_all),)
                )


SOLVERS = (Staged(), Fused(), Native())

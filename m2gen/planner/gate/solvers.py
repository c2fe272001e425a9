"""A gate by PyTorch's operators, on any device; and by one generated C++ kernel, on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.gate import GateSpec
from m2gen.planner.gate import cost
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.gate.steps import LibraryGate, NativeGate
from m2gen.planner.languages import no_cpp
from m2gen.planner.plan import Plan
from m2gen.planner.ranking import cheapest_of

LEAST_VECTOR = 32  # bytes; narrower units are given such vectors by the compiler
_ALONE = 2**15  # results below which a second thread costs more than it does; PyTorch's own bound
_ITEM = 2**14  # results of an item, about


@dataclass(frozen=True, slots=True)
class Library:
    name: str = "library"

    def reject(self, problem: GateProblem, limits: DeviceLimits) -> str | None:
        if no_cpp(limits) is None:
            return "it rounds otherwise, and a row's result is not to depend on how many rows there are"
        return None

    def left_out(self, problem: GateProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: GateProblem, limits: DeviceLimits) -> Iterator[Plan]:
        yield Plan(problem, limits.arch, self.name, (LibraryGate(cost.estimate(problem, limits, False)),))


@dataclass(frozen=True, slots=True)
class Native:
    """`family`: of kernels that take the calls of `GateSpec`'s."""

    name: str = "native"
    family: type[GateSpec] = GateSpec

    def reject(self, problem: GateProblem, limits: DeviceLimits) -> str | None:
        return no_cpp(limits)

    def left_out(self, problem: GateProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: GateProblem, limits: DeviceLimits) -> Iterator[Plan]:
        yield Plan(problem, limits.arch, self.name, (_step(problem, limits, self.family),))


def _step(problem: GateProblem, limits: DeviceLimits, family: type[GateSpec]) -> NativeGate:
    """The generated kernel for a CPU."""
    vector_bytes = max(LEAST_VECTOR, limits.vector_bytes)
    spec = family(part="fwd", activation=problem.activation, dtype=problem.dtype, vector_bytes=vector_bytes)
    together, parallel = max(1, _ITEM // problem.n), problem.numbers >= _ALONE
    return NativeGate(cost.estimate(problem, limits, True), spec, together, parallel)


SOLVERS = (Library(), Native())


def cheapest(problem: GateProblem, limits: DeviceLimits) -> Plan | None:
    """The plan that stands first by its estimate; None where there is no legal one."""
    return cheapest_of(SOLVERS, problem, limits)

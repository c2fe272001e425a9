"""Two ways of gating."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.gate import GateSpec
from m2gen.planner.gate import cost
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.step import Body, Terms


@dataclass(frozen=True, slots=True)
class Gate(Body[GateProblem]):
    """The gate, and its gradient."""

    legend: ClassVar = cost.LEGEND
    notes: ClassVar = cost.NOTES

    @property
    def style(self) -> str:
        return self.choice

    def lines(self, problem: GateProblem) -> list[str]:
        return [f"rows      {problem.rows} of 2 x {problem.n}", f"way       {self.what}"]


@dataclass(frozen=True, slots=True)
class LibraryGate(Gate):
    """PyTorch's elementwise operators."""

    @property
    def choice(self) -> str:
        return "elementwise"

    @property
    def what(self) -> str:
        return "PyTorch's elementwise operators"

    @property
    def row(self) -> tuple[str, ...]:
        return self.choice, "5"

    def terms(self, problem: GateProblem, body: Body[GateProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.values(problem, limits, False), cost.library)

    def expected(self, problem: GateProblem, limits: DeviceLimits) -> float:
        return cost.estimate(problem, limits, False).seconds

    def __str__(self) -> str:
        return "(library-gate)"


@dataclass(frozen=True, slots=True)
class NativeGate(Gate):
    """One generated C++ kernel forward and one backward; `together` rows are one item of work, which a thread alone
    does where they are not `parallel`."""

    spec: GateSpec
    together: int
    parallel: bool

    @property
    def choice(self) -> str:
        return f"{self.spec.name}, {self.together} rows an item"

    @property
    def style(self) -> str:
        return "one kernel"

    @property
    def what(self) -> str:
        return f"{self.spec.name}, {self.together} rows an item"

    @property
    def row(self) -> tuple[str, ...]:
        return "one kernel", "3"

    def parts(self, problem: GateProblem) -> dict[str, GateSpec]:
        """The gate "fwd", and its gradient "bwd"."""
        return {"fwd": self.spec, "bwd": replace(self.spec, part="bwd")}

    def kernels(self, problem: GateProblem, gradients: bool = True) -> tuple[GateSpec, ...]:
        return tuple(self.parts(problem).values()) if gradients else (self.spec,)

    def terms(self, problem: GateProblem, body: Body[GateProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.values(problem, limits, True), cost.native)

    def expected(self, problem: GateProblem, limits: DeviceLimits) -> float:
        return cost.estimate(problem, limits, True).seconds

    def __str__(self) -> str:
        return f"(native-gate {self.choice})"

"""Two ways of turning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.turn import TurnSpec
from m2gen.planner.step import UNTRIED, Body, Terms
from m2gen.planner.turn import cost
from m2gen.planner.turn.problem import TurnProblem


@dataclass(frozen=True, slots=True)
class Turn(Body[TurnProblem]):
    """The copy; its gradient is a copy back."""

    legend: ClassVar = cost.LEGEND
    notes: ClassVar = cost.NOTES

    @property
    def style(self) -> str:
        return self.choice

    def lines(self, problem: TurnProblem) -> list[str]:
        return [f"turned    {problem.b} of {problem.n} x {problem.h}", f"way       {self.what}"]


@dataclass(frozen=True, slots=True)
class LibraryTurn(Turn):
    """PyTorch's copy."""

    @property
    def choice(self) -> str:
        return "copy"

    @property
    def what(self) -> str:
        return "PyTorch's copy"

    @property
    def row(self) -> tuple[str, ...]:
        return self.choice, "-"

    def terms(self, problem: TurnProblem, body: Body[TurnProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.values(problem, limits), cost.library)

    def expected(self, problem: TurnProblem, limits: DeviceLimits) -> float:
        return cost.estimate(problem, limits).seconds

    def __str__(self) -> str:
        return "(library-turn)"


@dataclass(frozen=True, slots=True)
class FusedTurn(Turn):
    """One generated Triton kernel, a tile a program. Its estimate is that of its tiles (planner/turn/tiles.py)."""

    spec: TurnSpec

    @property
    def untried(self) -> str:
        return UNTRIED

    @property
    def choice(self) -> str:
        return self.spec.name

    @property
    def what(self) -> str:
        return f"{self.spec.name}, tiles of {self.spec.block_r} x {self.spec.block_c}"

    @property
    def row(self) -> tuple[str, ...]:
        return "one kernel", f"{self.spec.block_r} x {self.spec.block_c}"

    def parts(self, problem: TurnProblem) -> Mapping[str, TurnSpec]:
        return {"fwd": self.spec}

    def kernels(self, problem: TurnProblem, gradients: bool = True) -> tuple[TurnSpec, ...]:
        return (self.spec,)

    def expected(self, problem: TurnProblem, limits: DeviceLimits) -> float:
        return self.estimate.seconds

    def __str__(self) -> str:
        return f"(fused-turn {self.choice})"

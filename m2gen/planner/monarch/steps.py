"""Two ways of multiplying by a Monarch matrix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.monarch import MonarchSpec
from m2gen.planner.monarch import cost
from m2gen.planner.monarch.formulas import LEGEND, NOTES, native, staged
from m2gen.planner.monarch.problem import MonarchProblem, Shape, parameters
from m2gen.planner.step import Body, Terms


@dataclass(frozen=True, slots=True)
class MonarchStep(Body[MonarchProblem]):
    """The product with these `factors`, the first one first."""

    legend: ClassVar = LEGEND
    notes: ClassVar = NOTES

    factors: tuple[Shape, ...]

    @property
    def choice(self) -> str:
        return ",".join("x".join(map(str, shape)) for shape in self.factors)

    @property
    def style(self) -> str:
        return f"order {len(self.factors)}"

    @property
    def what(self) -> str:
        return f"order {len(self.factors)}"

    @property
    def row(self) -> tuple[str, ...]:
        numbers = parameters(self.factors)
        return str(len(self.factors)), self._shown, f"{numbers}", f"{2 * numbers}"

    @property
    def _shown(self) -> str:
        """Equal neighbours written once."""
        runs = [("{} x {} x {}".format(*shape), len(list(same))) for shape, same in groupby(self.factors)]
        return ", ".join(text if count == 1 else f"{text} times {count}" for text, count in runs)

    def lines(self, problem: MonarchProblem) -> list[str]:
        numbers, dense = parameters(self.factors), problem.n_in * problem.n_out
        return [
            f"order     {len(self.factors)}",
            f"factors   {self._shown}   (nblocks x out x in, the first one first)",
            f"numbers   {numbers}, of a dense matrix's {dense}: one in {dense / numbers:.3g}",
            self._who(),
        ]

    def _who(self) -> str:
        """The line that says what computes."""
        raise NotImplementedError

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        raise NotImplementedError

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StagedMonarch(MonarchStep):
    """A product for each factor, planned as a problem of its own, and permutations between them."""

    def _who(self) -> str:
        return "stages    a block-diagonal product for each factor, permutations between are copies"

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.staged_values(problem, self.factors, limits), staged)

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        return cost.staged_estimate(problem, self.factors, limits).seconds

    def __str__(self) -> str:
        return f"(staged-monarch {self.choice})"


@dataclass(frozen=True, slots=True)
class NativeMonarch(MonarchStep):
    """One generated C++ kernel for all stages, and one for all gradients."""

    spec: MonarchSpec

    def _who(self) -> str:
        return f"kernel    {self.spec.name}, all stages"

    def parts(self, problem: MonarchProblem) -> dict[str, MonarchSpec]:
        """The product "fwd", its gradients "bwd", and the "sum" of weights' gradients of parts of the rows."""
        return {
            "fwd": self.spec,
            "bwd": replace(self.spec, part="bwd"),
            "sum": replace(self.spec, part="sum"),
        }

    def kernels(self, problem: MonarchProblem, gradients: bool = True) -> tuple[MonarchSpec, ...]:
        return tuple(self.parts(problem).values()) if gradients else (self.spec,)

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.native_values(problem, self.factors, self.spec, limits), native)

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        return cost.native_estimate(problem, self.factors, self.spec, limits).seconds

    def __str__(self) -> str:
        return f"(native-monarch {self.choice} {self.spec.name})"

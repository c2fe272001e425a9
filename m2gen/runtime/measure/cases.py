"""What can be measured and tried: one row an op."""

from __future__ import annotations

from typing import Any

from m2gen.errors import PlanError
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.problem import Problem
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.turn.problem import TurnProblem
from m2gen.runtime.measure.blockdiag_case import BlockDiagCase
from m2gen.runtime.measure.case import Case
from m2gen.runtime.measure.fftconv_case import FftConvCase
from m2gen.runtime.measure.gate_case import GateCase
from m2gen.runtime.measure.monarch_case import MonarchCase
from m2gen.runtime.measure.shortconv_case import ShortconvCase
from m2gen.runtime.measure.turn_case import TurnCase

_CASES: dict[type[Problem], type[Case[Any]]] = {
    FftConvProblem: FftConvCase,
    BlockDiagProblem: BlockDiagCase,
    MonarchProblem: MonarchCase,
    ShortconvProblem: ShortconvCase,
    GateProblem: GateCase,
    TurnProblem: TurnCase,
}


def case_of(problem: Problem) -> type[Case[Any]]:
    """The class of a problem's cases. Raises PlanError for a problem whose plans are not measured."""
    if not problem.measured:
        what = "its plans are not to be compared by their times"
        raise PlanError(f"tuning {problem}", what, "give the factors that m2gen plan shows")
    return _CASES[type(problem)]

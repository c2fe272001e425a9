"""What can be measured and tried: one row an op."""

from __future__ import annotations

from typing import Any

from m2gen.errors import PlanError
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.problem import Problem
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.runtime.measure.blockdiag_case import BlockDiagCase
from m2gen.runtime.measure.case import Case
from m2gen.runtime.measure.fftconv_case import FftConvCase
from m2gen.runtime.measure.gate_case import GateCase
from m2gen.runtime.measure.shortconv_case import ShortconvCase

_CASES: dict[type[Problem], type[Case[Any]]] = {
    FftConvProblem: FftConvCase,
    BlockDiagProblem: BlockDiagCase,
    ShortconvProblem: ShortconvCase,
    GateProblem: GateCase,
}


def case_of(problem: Problem) -> type[Case[Any]]:
    """The class of a problem's cases. Raises PlanError for an op whose plans are not measured."""
    if type(problem) not in _CASES:
        known = ", ".join(kind.grammar.op for kind in _CASES)
        raise PlanError(f"tuning {problem}", f"plans of {problem.op} are not measured", f"tune problems of {known}")
    return _CASES[type(problem)]

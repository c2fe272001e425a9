"""What can be planned, in one explicit table, a row an op: what is not listed here does not exist."""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.planner.blockdiag import solvers as blockdiag
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import FusedProduct, LibraryProduct, NativeProduct
from m2gen.planner.fftconv import solvers as fftconv
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FilterSpectrum, FusedConv, SpectralConv
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.fftconv.steps_turned import TurnedConv, TurnedPasses
from m2gen.planner.gate import solvers as gate
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.gate.steps import LibraryGate, NativeGate
from m2gen.planner.monarch import solvers as monarch
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.monarch.steps import FusedMonarch, NativeMonarch, StagedMonarch
from m2gen.planner.problem import Problem
from m2gen.planner.ranking import Solver
from m2gen.planner.shortconv import solvers as shortconv
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.shortconv.steps import FusedShortconv, LibraryShortconv, NativeShortconv
from m2gen.planner.step import Step
from m2gen.planner.turn import solvers as turn
from m2gen.planner.turn.problem import TurnProblem
from m2gen.planner.turn.steps import FusedTurn, LibraryTurn


class Op(NamedTuple):
    """The class of its problems, its solvers in the order of preference, and the steps that its plans have."""

    problem: type[Problem]
    solvers: tuple[Solver, ...]
    steps: tuple[type[Step[Any]], ...]


_ROWS = (
    Op(
        FftConvProblem,
        fftconv.SOLVERS,
        (FilterSpectrum, SpectralConv, FusedConv, TurnedConv, PassesConv, TurnedPasses, NativeConv),
    ),
    Op(
        BlockDiagProblem,
        blockdiag.SOLVERS,
        (LibraryProduct, FusedProduct, NativeProduct),
    ),
    Op(
        MonarchProblem,
        monarch.SOLVERS,
        (StagedMonarch, FusedMonarch, NativeMonarch),
    ),
    Op(
        ShortconvProblem,
        shortconv.SOLVERS,
        (LibraryShortconv, FusedShortconv, NativeShortconv),
    ),
    Op(GateProblem, gate.SOLVERS, (LibraryGate, NativeGate)),
    Op(TurnProblem, turn.SOLVERS, (LibraryTurn, FusedTurn)),
)
OPS: dict[str, Op] = {row.problem.grammar.op: row for row in _ROWS}

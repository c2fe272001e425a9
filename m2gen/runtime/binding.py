"""A plan to the computation that does it: one row for each step that gives a result."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from m2gen.errors import M2GenError
from m2gen.planner.blockdiag.steps import FusedProduct, LibraryProduct, NativeProduct
from m2gen.planner.fftconv.steps import FusedConv, SpectralConv
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.fftconv.steps_turned import TurnedConv, TurnedPasses
from m2gen.planner.gate.steps import LibraryGate, NativeGate
from m2gen.planner.monarch.problem import MonarchProblem, stage_problems, turned
from m2gen.planner.monarch.steps import FusedMonarch, NativeMonarch, StagedMonarch
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.shortconv.steps import FusedShortconv, LibraryShortconv, NativeShortconv
from m2gen.planner.step import Body
from m2gen.planner.turn.steps import FusedTurn, LibraryTurn
from m2gen.runtime.bindings import (
    blockdiag,
    blockdiag_triton,
    gate,
    monarch,
    monarch_triton,
    shortconv,
    shortconv_triton,
    turn,
)
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.native import NativeKernel
from m2gen.runtime.bindings.passes import PassesKernel
from m2gen.runtime.bindings.spectral import SpectralKernel
from m2gen.runtime.bindings.turned import TurnedKernel, TurnedPassesKernel


def _staged(problem: MonarchProblem, step: StagedMonarch) -> monarch.StagedKernel:
    """The products with the factors, each as its own step says."""
    ways = (problem, step.factors, step.stages), (problem, turned(step.factors), step.back)
    return monarch.StagedKernel(
        *(
            [_bound(of, body) for of, body in zip(stage_problems(problem, shapes), bodies, strict=True)]
            for problem, shapes, bodies in ways
        )
    )


BINDINGS: dict[type[Body[Any]], Callable[[Any, Any], Any]] = {
    SpectralConv: SpectralKernel,
    FusedConv: FusedKernel,
    TurnedConv: TurnedKernel,
    PassesConv: PassesKernel,
    TurnedPasses: TurnedPassesKernel,
    NativeConv: NativeKernel,
    LibraryProduct: blockdiag.LibraryKernel,
    NativeProduct: blockdiag.NativeKernel,
    FusedProduct: blockdiag_triton.FusedKernel,
    StagedMonarch: _staged,
    FusedMonarch: monarch_triton.FusedKernel,
    NativeMonarch: monarch.NativeKernel,
    LibraryShortconv: shortconv.LibraryKernel,
    NativeShortconv: shortconv.NativeKernel,
    FusedShortconv: shortconv_triton.FusedKernel,
    LibraryGate: gate.LibraryKernel,
    NativeGate: gate.NativeKernel,
    LibraryTurn: turn.LibraryKernel,
    FusedTurn: turn.FusedKernel,
}


def bound_anew(chosen: Plan) -> Any:
    """The same, which keeps nothing of other calls, nor they of its."""
    return _bound(chosen.problem, chosen.body)


@lru_cache(maxsize=4096)
def kernel_of(chosen: Plan) -> Any:
    """The computation of a plan, bound once; what it can be asked depends on the op.

    Raises CompileError where its kernel does not compile."""
    return _bound(chosen.problem, chosen.body)


def _bound(problem: Problem, body: Body[Any]) -> Any:
    if type(body) not in BINDINGS:
        kind = type(body).__name__
        raise M2GenError(f"what computes {body}", f"there is none for a {kind}", "add its row to runtime/binding.py")
    return BINDINGS[type(body)](problem, body)

"""A turning copy by PyTorch, on any device; by generated Triton, on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.spec import recast
from m2gen.kernels.turn import TurnSpec
from m2gen.planner.languages import no_triton
from m2gen.planner.plan import Plan
from m2gen.planner.step import Estimate
from m2gen.planner.turn import cost, tiles
from m2gen.planner.turn.problem import TurnProblem
from m2gen.planner.turn.steps import FusedTurn, LibraryTurn
from m2gen.planner.turn.tiles import TurnSizes

_MOST = 4  # tiles that are ranked


@dataclass(frozen=True, slots=True)
class Library:
    name: str = "library"

    def reject(self, problem: TurnProblem, limits: DeviceLimits) -> str | None:
        return None

    def left_out(self, problem: TurnProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: TurnProblem, limits: DeviceLimits) -> Iterator[Plan]:
        yield Plan(problem, limits.arch, self.name, (LibraryTurn(cost.estimate(problem, limits)),))


@dataclass(frozen=True, slots=True)
class Fused:
    """`family`: of kernels that take the calls of `TurnSpec`'s."""

    name: str = "fused"
    family: type[TurnSpec] = TurnSpec

    def reject(self, problem: TurnProblem, limits: DeviceLimits) -> str | None:
        if why := no_triton(limits):
            return why
        return "its tiles are of 16 or 32 bits, not fp64" if problem.dtype == "fp64" else None

    def left_out(self, problem: TurnProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: TurnProblem, limits: DeviceLimits) -> Iterator[Plan]:
        sizes = TurnSizes(problem.b, problem.n, problem.h, problem.dtype)
        for one in tiles.candidates(sizes, limits)[:_MOST]:
            estimate = Estimate(0.0, one.bytes, 1, one.bytes, one.seconds)
            yield Plan(problem, limits.arch, self.name, (FusedTurn(estimate, recast(one.spec, self.family)),))


SOLVERS = (Library(), Fused())

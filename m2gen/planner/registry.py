"""The solvers, in one explicit tuple: what is not listed here does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from m2gen.device.limits import DeviceLimits
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.solvers.composed import Composed
from m2gen.planner.solvers.fused import Fused
from m2gen.planner.solvers.library import Library
from m2gen.planner.solvers.native import Native


class Solver(Protocol):
    """One way of doing a problem. Pure: it never times anything and never asks a device."""

    @property
    def name(self) -> str:
        """As it is printed in plans."""

    def reject(self, problem: Problem, limits: DeviceLimits) -> str | None:
        """Why it cannot do the problem on the device, or None where it can. Legality, never taste."""

    def candidates(self, problem: Problem, limits: DeviceLimits) -> Iterator[Plan]:
        """Legal plans; called only where nothing was rejected."""

    def left_out(self, problem: Problem, limits: DeviceLimits) -> Iterable[tuple[str, str]]:
        """(kernel, reason) of what would fit and must not run."""


SOLVERS: tuple[Solver, ...] = (Library(), Composed(), Fused(), Native())

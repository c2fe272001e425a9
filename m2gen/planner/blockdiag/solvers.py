"""The ways of doing a product with a block-diagonal weight: for the registry, and for ops that are made of products."""

from __future__ import annotations

from m2gen.device.limits import DeviceLimits
from m2gen.planner.blockdiag.fused import Fused
from m2gen.planner.blockdiag.library import Library
from m2gen.planner.blockdiag.native import Native
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.plan import Plan
from m2gen.planner.ranking import cheapest_of

SOLVERS = (Library(), Fused(), Native())


def cheapest(problem: BlockDiagProblem, limits: DeviceLimits) -> Plan | None:
    """The plan that stands first by its estimate; None where there is no legal one."""
    return cheapest_of(SOLVERS, problem, limits)

"""The legal plans of some solvers in the order of their estimates, and why the others are not legal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

from m2gen.config import config
from m2gen.device.limits import DeviceLimits
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.step import UNTRIED_ARE, Reluctance, duration

_LAST = 1e9  # times the estimate


class Solver(Protocol):
    """One way of doing the problems of its op. Pure: it never times anything and never asks a device."""

    @property
    def name(self) -> str:
        """As it is printed in plans."""

    def reject(self, problem: Any, limits: DeviceLimits) -> str | None:
        """Why it cannot do the problem on the device, or None where it can. Legality, never taste."""

    def candidates(self, problem: Any, limits: DeviceLimits) -> Iterator[Plan]:
        """Legal plans; called only where nothing was rejected."""

    def left_out(self, problem: Any, limits: DeviceLimits) -> Iterable[tuple[str, str]]:
        """(kernel, reason) of what would fit and must not run."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """The legal plans, best first, (solver, reason) for every solver that has none, and (kernel, reason) for every
    kernel that would fit and must not run."""

    columns: tuple[str, ...]  # titles of the plans' `body.row`
    plans: tuple[Plan, ...]
    rejections: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...] = ()

    def best(self, solver: str) -> Plan | None:
        """The first plan of `solver`."""
        return next((plan for plan in self.plans if plan.solver == solver), None)


def ranked(solvers: Iterable[Solver], problem: Problem, limits: DeviceLimits) -> Ranking:
    """All candidates by estimated seconds, equals in the order of the solvers and of each solver's own preference; one
    whose kernels few problems share stands behind others that are a little slower (`Body.reluctance`), and one whose
    kernels no device has run behind all others where M2GEN_UNTRIED says so."""
    plans: list[Plan] = []
    rejections: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    for solver in solvers:
        reason = solver.reject(problem, limits)
        if reason is None:
            plans += (_allowed(plan, limits) for plan in solver.candidates(problem, limits))
        else:
            rejections.append((solver.name, reason))
        left_out += solver.left_out(problem, limits)
    cheapest = sorted(plans, key=_order)
    if warnings := (*_behind(cheapest), *_warnings(left_out)):
        cheapest = [replace(plan, left_out=warnings) for plan in cheapest]
    return Ranking(problem.columns, tuple(cheapest), tuple(rejections), tuple(dict.fromkeys(left_out)))


@lru_cache(maxsize=8192)
def cheapest_of(solvers: tuple[Solver, ...], problem: Problem, limits: DeviceLimits) -> Plan | None:
    """The plan that stands first; None where there is no legal one."""
    return next(iter(ranked(solvers, problem, limits).plans), None)


def _allowed(plan: Plan, limits: DeviceLimits) -> Plan:
    """The plan, where M2GEN_UNTRIED says so without what no device has run and it can do without."""
    avoids = plan.body.untried is not None and config().untried == "avoid"
    return (plan.plainer(limits) or plan) if avoids else plan


def _reluctance(plan: Plan) -> Reluctance | None:
    """Why a plan stands behind others that are slower."""
    untried, how = plan.body.untried, config().untried
    if untried is not None and how == "avoid":
        return Reluctance(_LAST, f"{untried}: {UNTRIED_ARE[how]}")
    return plan.body.reluctance


def _order(plan: Plan) -> float:
    reluctance = _reluctance(plan)
    return plan.seconds * (1.0 if reluctance is None else reluctance.factor)


def _behind(plans: list[Plan]) -> Iterator[str]:
    """Of each reason for standing behind: the cheapest plan that is estimated faster than the first."""
    first = plans[0].seconds if plans else 0.0
    faster = [plan for plan in plans if plan.seconds < first]
    reasons: dict[str, list[Plan]] = {}
    for plan in faster:
        if (reluctance := _reluctance(plan)) is not None:
            reasons.setdefault(reluctance.why, []).append(plan)
    for why, those in reasons.items():
        best = min(those, key=lambda plan: plan.seconds)
        yield f"{best.choice}, estimated {duration(best.seconds)}: {why}"


def _warnings(left_out: list[tuple[str, str]]) -> tuple[str, ...]:
    """Each reason once, with the number of kernels and the first of their names."""
    reasons: dict[str, dict[str, None]] = {}
    for name, why in left_out:
        reasons.setdefault(why, {})[name] = None
    return tuple(f"{why}; {len(names)} kernels, such as {next(iter(names))}" for why, names in reasons.items())

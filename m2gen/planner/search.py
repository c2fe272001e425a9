"""Every legal plan in the order of its estimate, and why the others are not legal. Deterministic, remembered."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from m2gen import log
from m2gen.device.limits import DeviceLimits
from m2gen.errors import PlanError
from m2gen.planner.plan import Plan, duration
from m2gen.planner.problem import Problem
from m2gen.planner.registry import SOLVERS


@dataclass(frozen=True, slots=True)
class Ranking:
    """The legal plans, cheapest first, and (solver, reason) for every solver that has none."""

    plans: tuple[Plan, ...]
    rejections: tuple[tuple[str, str], ...]

    def best(self, solver: str) -> Plan | None:
        """The cheapest plan of `solver`."""
        return next((plan for plan in self.plans if plan.solver == solver), None)


@lru_cache(maxsize=1024)
def rank(problem: Problem, limits: DeviceLimits) -> Ranking:
    """All candidates by estimated seconds; equals by FLOP, memory, and text, so that no order depends on chance."""
    plans: list[Plan] = []
    rejections: list[tuple[str, str]] = []
    for solver in SOLVERS:
        reason = solver.reject(problem, limits)
        if reason is None:
            plans += solver.candidates(problem, limits)
        else:
            rejections.append((solver.name, reason))
    return Ranking(tuple(sorted(plans, key=_key)), tuple(rejections))


def _key(plan: Plan) -> tuple[float, float, float, str]:
    cost = plan.estimate
    return cost.seconds, cost.flop, sum(step.estimate.working_set for step in plan.steps), str(plan)


@lru_cache(maxsize=16384)
def plan(problem: Problem, limits: DeviceLimits) -> Plan:
    """The cheapest legal plan; PlanError with every solver's reason where there is none."""
    ranking = rank(problem, limits)
    if not ranking.plans:
        reasons = "; ".join(f"{solver}: {reason}" for solver, reason in ranking.rejections)
        raise PlanError(
            f"plan of {problem} on {limits.arch}",
            f"no solver can do it: {reasons}",
            "use a smaller n or b, or a device with more memory",
        )
    log.once(f"{ranking.plans[0]}: {reason(ranking)}")
    return ranking.plans[0]


def reason(ranking: Ranking) -> str:
    """Why the first plan was chosen: its estimate against every other solver's best, and who was rejected."""
    chosen = ranking.plans[0]
    bests = {plan.solver: plan.estimate.seconds for plan in reversed(ranking.plans) if plan.solver != chosen.solver}
    against = [f"{solver} {duration(seconds)}" for solver, seconds in bests.items()]
    against += [f"{solver} (rejected: {why})" for solver, why in ranking.rejections]
    return f"estimated {duration(chosen.estimate.seconds)} against {'; '.join(against) or 'no other solver'}"

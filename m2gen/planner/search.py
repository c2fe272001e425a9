"""Every legal plan in the order of its estimate, and why the others are not legal. Deterministic, remembered."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache

from m2gen import log
from m2gen.device.limits import DeviceLimits
from m2gen.errors import PlanError, WisdomError
from m2gen.planner.advice import Advice, Knowledge, advise, company
from m2gen.planner.choice import by_choice, digest
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.ranking import Ranking as Ranking
from m2gen.planner.ranking import ranked
from m2gen.planner.registry import OPS
from m2gen.planner.step import duration

RIGORS = ("estimate", "measure", "wisdom_only")


@lru_cache(maxsize=1024)
def rank(problem: Problem, limits: DeviceLimits) -> Ranking:
    """What the solvers of the problem's op can do, remembered."""
    return ranked(OPS[problem.op].solvers, problem, limits)


@lru_cache(maxsize=16384)
def plan(problem: Problem, limits: DeviceLimits, wisdom: Knowledge | None = None, rigor: str = "estimate") -> Plan:
    """The plan to run; its `origin` says how it was found. PlanError with every solver's reason where there is none.

    Rigor, in FFTW's words. "estimate": what wisdom says of the problem, else of the nearest one, else the cheapest by
    estimate; nothing is timed. "measure": a problem without wisdom of its own is timed now, by `wisdom.measure`.
    "wisdom_only": WisdomError where the problem itself was never measured in these circumstances. Of an op whose plans
    cannot be measured yet (`Problem.measured`) both are "estimate".
    """
    ranking = rank(problem, limits)
    if not ranking.plans:
        reasons = "; ".join(f"{solver}: {reason}" for solver, reason in ranking.rejections)
        raise PlanError(
            f"plan of {problem} on {limits.arch}",
            f"no solver can do it: {reasons}",
            problem.remedy,
        )
    advice, ranking = _advice(problem, limits, ranking, wisdom or Knowledge(()), rigor)
    if advice.plan is None:
        chosen = replace(ranking.plans[0], origin=f"estimate: {advice.origin}")
        log.once(f"{chosen}: {reason(ranking)}; {advice.origin}")
        return chosen
    log.once(f"{advice.plan}: {advice.origin}")
    return replace(advice.plan, origin=f"wisdom: {advice.origin}")


def _in_company(problem: Problem, limits: DeviceLimits, known: Knowledge, ranking: Ranking) -> Ranking:
    """The plans whose results have the bits that each of those done together has alone; all, where none has."""
    if all(one.body.arithmetic is None for one in ranking.plans):
        return ranking
    wanted = _arithmetic(problem, limits, known)
    those = tuple(one for one in ranking.plans if wanted is not None and one.body.arithmetic == wanted)
    return replace(ranking, plans=those) if those else ranking


def _arithmetic(problem: Problem, limits: DeviceLimits, known: Knowledge) -> Hashable:
    """That of the largest problem measured here of those that differ in company alone; else that of the problem of one
    alone; None where nothing has to agree."""
    for other, record in company(problem, limits.arch, known):
        plans = rank(other, limits).plans
        found = by_choice(plans).get(record.choice)
        if found is not None and digest(plans) == record.key.candidates:
            return found.body.arithmetic
    return None if problem.alone == problem else plan(problem.alone, limits, known).body.arithmetic


def _advice(
    problem: Problem, limits: DeviceLimits, every: Ranking, known: Knowledge, rigor: str
) -> tuple[Advice, Ranking]:
    """What wisdom says, after a measurement where the rigor asks for one; and the plans that it says it of."""
    if rigor not in RIGORS:
        raise PlanError(f"rigor {rigor!r}", "no such rigor", f"use one of {', '.join(RIGORS)}")

    def digest_of(other: Problem) -> str:
        return digest(rank(other, limits).plans)

    ranking = _in_company(problem, limits, known, every)
    found = advise(problem, limits.arch, ranking.plans, known, digest_of)
    if not problem.measured:
        return found, ranking
    if rigor == "measure" and not found.exact:
        if known.measure is None:
            raise PlanError(
                f"measuring {problem} on {limits.arch}",
                "a named target is not at hand",
                "plan for auto, on that device",
            )
        record = known.measure(problem, limits)
        if record is not None:
            more = replace(known, records=(*known.records, record))
            ranking = _in_company(problem, limits, more, every)
            found = advise(problem, limits.arch, ranking.plans, more, digest_of)
    if rigor == "wisdom_only" and not found.exact:
        raise WisdomError(
            f"wisdom for {problem} on {limits.arch}",
            found.origin if found.plan is None else f"there is none of its own; one would plan {found.origin}",
            f"run m2gen tune {problem}, or plan with rigor estimate",
        )
    return found, ranking


def reason(ranking: Ranking) -> str:
    """Why the first plan was chosen: its estimate against every other solver's best, and who was rejected."""
    chosen = ranking.plans[0]
    bests = {plan.solver: plan.seconds for plan in reversed(ranking.plans) if plan.solver != chosen.solver}
    against = [f"{solver} {duration(seconds)}" for solver, seconds in bests.items()]
    against += [f"{solver} (rejected: {why})" for solver, why in ranking.rejections]
    return f"estimated {duration(chosen.seconds)} against {'; '.join(against) or 'no other solver'}"

"""What wisdom says of a problem: its own entry, else the nearest one of the architecture, else nothing, and why.

Wisdom orders legal plans, it makes none: an entry is followed where its choice is among the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import log2
from typing import Protocol

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.errors import M2GenError
from m2gen.log import fallback
from m2gen.planner.choice import by_choice
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.step import duration

FARTHEST = 2.0  # an entry of half the length is as far
_TRUSTED = 1.5  # a nearest entry's style is followed up to so many times the best estimate
_CIRCUMSTANCES = {"processor": 1.0, "threads": 0.25, "compiler": 0.1}


class Key(Protocol):
    """What an entry of wisdom is about (cache/wisdom.py)."""

    @property
    def problem(self) -> str: ...
    @property
    def arch(self) -> str: ...
    @property
    def processor(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def candidates(self) -> str: ...
    @property
    def compiler(self) -> str: ...


class Record(Protocol):
    """An entry of wisdom, as the planner needs it."""

    @property
    def key(self) -> Key: ...
    @property
    def choice(self) -> str: ...
    @property
    def style(self) -> str: ...
    @property
    def default(self) -> str: ...
    @property
    def seconds(self) -> Mapping[str, float]: ...
    @property
    def date(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Circumstances:
    """Where plans will run; an empty field is unknown, and not compared."""

    processor: str = ""
    threads: int = 0
    compiler: str = ""


@dataclass(frozen=True, slots=True)
class Advice:
    """A plan, or None; in words where it comes from, or why there is none."""

    plan: Plan | None
    origin: str
    exact: bool = False


@dataclass(frozen=True, eq=False)  # compared by identity: it is a key of the plans remembered
class Knowledge:
    """The records of one architecture, and how to get another (rigor "measure")."""

    records: Sequence[Record]
    here: Circumstances = Circumstances()
    measure: Callable[[Problem, DeviceLimits], Record | None] | None = None

    @cached_property
    def problems(self) -> list[tuple[Problem, Record]]:
        """Every record with its problem; one whose text is no problem is left out with a line in the log."""
        found = []
        for record in self.records:
            try:
                found.append((parse(record.key.problem), record))
            except M2GenError as error:  # noqa: PERF203
                fallback(f"wisdom left out: {error}")
        return found

    @cached_property
    def companies(self) -> dict[Problem, list[tuple[Problem, Record]]]:
        """`problems` by that of one alone: no two ops have equal ones."""
        found: dict[Problem, list[tuple[Problem, Record]]] = {}
        for other, record in self.problems:
            found.setdefault(other.alone, []).append((other, record))
        return found


def advise(
    problem: Problem, arch: str, plans: tuple[Plan, ...], known: Knowledge, digest_of: Callable[[Problem], str]
) -> Advice:
    """The record of the problem itself in these circumstances, else the nearest one's style, else None.

    `digest_of` gives the digest of a problem's candidates as they are now: a record that chose among others is stale.
    """
    near = _nearest(problem, arch, known)
    if not near:
        return Advice(None, f"no wisdom for {arch} within a factor of 2 of {problem.main}")
    stale = 0
    for distance, differing, other, record in near:
        if digest_of(other) != record.key.candidates:
            stale += 1
            continue
        if distance == 0:
            own = _own(record, plans)
            if own is not None:
                return own
        if record.choice == record.default:
            where = f"{record.key.problem}, which differs in {', '.join(differing)}"
            return Advice(plans[0], f"the estimate, which was right for the nearest, {where}")
        if (plan := _like(record, plans)) is not None:
            return Advice(plan, f"like the nearest, {record.key.problem}, which differs in {', '.join(differing)}")
    _, differing, _, record = near[0]
    why = f"differs in {', '.join(differing) or 'its candidates'}, and its way is none here"
    if stale == len(near):
        why = "chose among other candidates than there are now"
    return Advice(None, f"the nearest wisdom, {record.key.problem}, {why}")


def _own(record: Record, plans: tuple[Plan, ...]) -> Advice | None:
    """What the problem's own record says of `plans`: its choice, or the fastest measured of those that give the bits of
    other batches; None where it knows none."""
    where, known = f"measured {record.date[:10]} on {record.key.processor}", by_choice(plans)
    if record.choice in known:
        took = f", {duration(record.seconds[record.choice])} a call" if record.choice in record.seconds else ""
        return Advice(known[record.choice], f"{where}{took}", exact=True)
    among = {name: seconds for name, seconds in record.seconds.items() if name in known}
    if not among:
        return None
    best = known[min(among, key=lambda name: among[name])]
    return Advice(best, f"{where}; the fastest with the bits of larger batches", exact=True)


def company(problem: Problem, arch: str, known: Knowledge) -> list[tuple[Problem, Record]]:
    """The records in these circumstances of problems that differ from this one in company alone, the largest first, of
    equals the newest."""
    those = [one for one in known.companies.get(problem.alone, ()) if one[1].key.arch == arch]
    here = [one for one in those if _distance(one[0], one[0], one[1].key, known.here)[0] == 0]
    return sorted(here, key=lambda one: (one[0].least_bytes, one[1].date), reverse=True)


def _nearest(problem: Problem, arch: str, known: Knowledge) -> list[tuple[float, list[str], Problem, Record]]:
    """(distance, fields that differ, problem, record) of what is near, nearest first, of equals the newest."""
    found = []
    for other, record in known.problems:
        if record.key.arch == arch and _comparable(problem, other):
            distance, differing = _distance(problem, other, record.key, known.here)
            if distance <= FARTHEST:
                found.append((distance, differing, other, record))
    newest_first = sorted(found, key=lambda one: one[3].date, reverse=True)
    return sorted(newest_first, key=lambda one: one[0])


def _comparable(problem: Problem, other: Problem) -> bool:
    if type(problem) is not type(other) or DTYPES[problem.dtype].compute != DTYPES[other.dtype].compute:
        return False
    return all(getattr(problem, name) == getattr(other, name) for name in problem.nearness.equal)


def _distance(problem: Problem, other: Problem, key: Key, here: Circumstances) -> tuple[float, list[str]]:
    """How far a record is, and the fields in which it differs."""
    distance, differing, near = 0.0, [], problem.nearness
    for one in fields(problem):  # type: ignore[arg-type]  # every problem is a dataclass
        asked, there = getattr(problem, one.name), getattr(other, one.name)
        if asked != there:
            differing.append(one.name)
            sizes = one.name in near.doublings
            distance += near.doublings[one.name] * abs(log2(asked / there)) if sizes else near.differences[one.name]
    found = {"processor": here.processor, "threads": here.threads, "compiler": here.compiler}
    for name, asked in found.items():
        if asked and asked != getattr(key, name):
            differing.append(f"{name} ({getattr(key, name)}, not {asked})")
            distance += _CIRCUMSTANCES[name]
    return distance, differing


def _like(record: Record, plans: tuple[Plan, ...]) -> Plan | None:
    """The best of the plans that are done in the record's way, unless the estimate is much against it."""
    limit = _TRUSTED * plans[0].seconds
    return next((plan for plan in plans if plan.seconds <= limit and plan.style == record.style), None)

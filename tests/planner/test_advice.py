"""Wisdom in planning: an entry of its own, the nearest one, none; what differs is said; only candidates are run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from m2gen.cache import wisdom as store
from m2gen.device.limits import LIMITS, target
from m2gen.errors import PlanError, WisdomError
from m2gen.planner import search
from m2gen.planner.advice import Circumstances, Knowledge, advise
from m2gen.planner.choice import by_choice, digest
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.testing.corpus import corpus

LIMIT = target("avx512")
PROBLEM = parse("fftconv n=6000 h=64 b=2 fp32 causal")
HERE = Circumstances("a processor", 1, "g++ 12")


@dataclass(frozen=True)
class Key:
    problem: str = str(PROBLEM)
    arch: str = "avx512"
    processor: str = "a processor"
    threads: int = 1
    candidates: str = digest(search.rank(PROBLEM, LIMIT).plans)
    compiler: str = "g++ 12"


@dataclass(frozen=True)
class Record:
    key: Key
    choice: str
    style: str
    default: str = "another"
    date: str = "2026-11-24"
    seconds: dict[str, float] = field(default_factory=dict)


def record_of(problem: Problem = PROBLEM, at: int = 1, **key: object) -> Record:
    """A record that names the plan at place `at` of the ranking."""
    plans = search.rank(problem, LIMIT).plans
    found = Key(problem=str(problem), candidates=digest(plans))
    return Record(replace(found, **key), plans[at].choice, plans[at].style)  # type: ignore[arg-type]


def planned(*records: Record, problem: Problem = PROBLEM, rigor: str = "estimate"):  # type: ignore[no-untyped-def]
    return search.plan(problem, LIMIT, Knowledge(records, HERE), rigor)


@pytest.mark.parametrize("arch", sorted(LIMITS))
def test_choices_tell_all_candidates_apart(arch: str) -> None:
    for entry in corpus():
        plans = search.rank(entry.problem, target(arch)).plans
        assert len(by_choice(plans)) == len(plans)
        assert all(plan.style.startswith(plan.solver) for plan in plans)
        least = min(plans, key=lambda plan: plan.body.estimate.working_set)
        assert digest(reversed(plans)) == digest(plans) != digest(plan for plan in plans if plan is not least)


def test_its_own_entry_is_followed() -> None:
    for at in (0, 1, 5, -1):
        record = record_of(at=at)
        plan = planned(record)
        assert plan.choice == record.choice
        assert plan.origin == "wisdom: measured 2026-11-24 on a processor"
        assert plan.origin in plan.explain()
        assert planned(record, rigor="wisdom_only") == plan


def test_without_wisdom_the_estimate_decides_and_says_so() -> None:
    plan = planned()
    assert plan == search.rank(PROBLEM, LIMIT).plans[0] == search.plan(PROBLEM, LIMIT)
    assert plan.origin == "estimate: no wisdom for avx512 within a factor of 2 of n=6000"


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"threads": 2}, "threads (2, not 1)"),
        ({"compiler": "clang 17"}, "compiler (clang 17, not g++ 12)"),
        ({"processor": "another"}, "processor (another, not a processor)"),
    ],
)
def test_a_miss_says_which_fields_differ(fields: dict[str, object], part: str) -> None:
    record = record_of(at=1, **fields)
    plan = planned(record)
    assert part in plan.origin and plan.origin.startswith("wisdom: like the nearest")
    assert plan.style == record.style
    with pytest.raises(WisdomError, match=r"there is none of its own.*[Rr]un m2gen tune fftconv n=6000"):
        planned(record, rigor="wisdom_only")


def test_a_choice_among_other_candidates_is_stale() -> None:
    """For the problem itself and for its neighbours: a changed solver's new plans are not hidden."""
    for problem in (PROBLEM, replace(PROBLEM, n=6100)):
        plan = planned(record_of(problem, at=1, candidates="0" * 12))
        assert plan == search.plan(PROBLEM, LIMIT)
        assert plan.origin.endswith("chose among other candidates than there are now")
    with pytest.raises(WisdomError, match="among other candidates"):
        planned(record_of(at=1, candidates="0" * 12), rigor="wisdom_only")


def test_the_nearest_shape_wins() -> None:
    near, far = replace(PROBLEM, n=6100), replace(PROBLEM, n=3500)
    odd_last = next(i for i, plan in enumerate(search.rank(near, LIMIT).plans) if "odd last" in plan.style)
    close, distant = record_of(near, odd_last), record_of(far, 2)
    for records in ((close, distant), (distant, close)):
        plan = planned(*records)
        assert f"like the nearest, {near}, which differs in n" in plan.origin
        assert plan.style == close.style
    other_batch = record_of(replace(PROBLEM, b=3, h=100), odd_last)
    assert "which differs in h, b" in planned(distant, other_batch).origin


def test_what_is_added_takes_the_wisdom_without() -> None:
    record = record_of()
    adding = planned(record, problem=replace(PROBLEM, add=True))
    assert adding.choice == record.choice and "which differs in add" in adding.origin


def test_a_nearest_entry_that_confirms_the_estimate() -> None:
    record = record_of(replace(PROBLEM, n=6100), 0)
    plan = planned(replace(record, default=record.choice))
    assert plan == search.rank(PROBLEM, LIMIT).plans[0]
    assert "the estimate, which was right for the nearest" in plan.origin


def test_too_far_is_not_near() -> None:
    for other in (
        replace(PROBLEM, n=12001),
        replace(PROBLEM, n=2999),
        replace(PROBLEM, dtype="fp64"),
        replace(PROBLEM, layout="BLH"),
    ):
        assert planned(record_of(other)).origin.startswith("estimate: no wisdom")
    assert planned(record_of(arch="avx2")).origin.startswith("estimate: no wisdom")


def test_a_nearest_entry_cannot_name_what_the_estimate_is_much_against() -> None:
    slow = replace(PROBLEM, n=6100)
    composed = next(i for i, plan in enumerate(search.rank(slow, LIMIT).plans) if plan.solver == "composed")
    plan = planned(record_of(slow, composed))
    assert plan == search.plan(PROBLEM, LIMIT)
    assert "its way is none here" in plan.origin


@pytest.mark.parametrize("text", ["rm -rf /", "", "library 8", "native 3x3x3 channels 1, spectra kept"])
def test_a_choice_that_is_no_candidate_is_not_run(text: str) -> None:
    record = replace(record_of(), choice=text, style=text)
    assert planned(record) == search.plan(PROBLEM, LIMIT)


def test_a_record_of_no_problem_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of()
    bad = replace(record, key=replace(record.key, problem="fftconv n=0"))
    assert planned(bad, record).choice == record.choice


def test_unknown_circumstances_are_not_compared() -> None:
    record = record_of(threads=64, compiler="x", processor="y")
    found = advise(
        PROBLEM, "avx512", search.rank(PROBLEM, LIMIT).plans, Knowledge((record,)), lambda _: record.key.candidates
    )
    assert found.exact and found.plan is not None and found.plan.choice == record.choice


def test_measuring_is_asked_once_and_only_by_its_rigor() -> None:
    asked: list[Problem] = []
    record = record_of(at=3)

    def measure(problem: Problem, limits: object) -> Record:
        asked.append(problem)
        return record

    known = Knowledge((), HERE, measure)
    assert search.plan(PROBLEM, LIMIT, known) == search.plan(PROBLEM, LIMIT) and not asked
    for _ in range(2):
        assert search.plan(PROBLEM, LIMIT, known, "measure").choice == record.choice
    assert asked == [PROBLEM]
    assert search.plan(PROBLEM, LIMIT, Knowledge((record,), HERE, measure), "measure").choice == record.choice
    assert asked == [PROBLEM]


def test_rigors_that_cannot_be_had() -> None:
    with pytest.raises(PlanError, match="not at hand"):
        search.plan(PROBLEM, LIMIT, Knowledge(()), "measure")
    with pytest.raises(PlanError, match="Use one of estimate, measure, wisdom_only"):
        search.plan(PROBLEM, LIMIT, None, "guess")


# -- company: the same bits in any batch -------------------------------------------------------------------------------


def batch(b: int) -> Problem:
    return parse(f"fftconv n=2048 h=768 b={b} fp32 bidirectional skip blh")


def others(problem: Problem) -> list[int]:
    """Places of plans that sum in another order than the first."""
    plans = search.rank(problem, LIMIT).plans
    first = plans[0].body.arithmetic
    return [i for i, one in enumerate(plans) if one.body.arithmetic not in (None, first)]


def test_a_batch_is_planned_as_one_sequence_is() -> None:
    """Whatever was measured: nothing, of one, of many, of both with another choice."""
    few, many = others(batch(1)), others(batch(8))
    plans = search.rank(batch(1), LIMIT).plans
    for records in (
        (),
        (record_of(batch(1), few[0]),),
        (record_of(batch(8), many[-1]),),
        (record_of(batch(1), few[0]), record_of(batch(8), many[-1])),
        (record_of(batch(8), 0), record_of(batch(1), few[0])),
    ):
        found = {planned(*records, problem=batch(b)).body.arithmetic for b in (1, 2, 5, 8, 64)}
        assert len(found) == 1, records
    assert plans[few[0]].body.arithmetic != search.rank(batch(8), LIMIT).plans[many[-1]].body.arithmetic


def test_of_records_that_disagree_the_larger_batch_decides_and_the_other_gives_its_times() -> None:
    plans = search.rank(batch(1), LIMIT).plans
    large = record_of(batch(8), others(batch(8))[0])
    wanted = planned(large, problem=batch(8)).body.arithmetic
    alike = [one.choice for one in plans if one.body.arithmetic == wanted]
    small = replace(record_of(batch(1), 0), seconds={plans[0].choice: 1.0, alike[-1]: 2.0, alike[0]: 3.0})
    found = planned(large, small, problem=batch(1))
    assert found.choice == alike[-1] and "with the bits of larger batches" in found.origin
    assert planned(large, small, problem=batch(1), rigor="wisdom_only") == found
    elsewhere = replace(large, key=replace(large.key, threads=99))  # measured in other circumstances: no say in it
    assert planned(elsewhere, small, problem=batch(1)).choice == plans[0].choice


@pytest.mark.parametrize("arch", ["avx2", "avx512"])
def test_shipped_wisdom_keeps_the_bits_of_a_batch(arch: str) -> None:
    limits = target(arch)
    known = Knowledge(store.shipped(arch))
    for problem, _ in known.problems:
        if isinstance(problem, FftConvProblem) and problem.b > 1:
            alone, together = (search.plan(one, limits, known).body.arithmetic for one in (problem.alone, problem))
            assert alone == together, problem

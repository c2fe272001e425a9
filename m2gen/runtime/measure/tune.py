"""Tuning: the planner's best candidates of a problem are checked against the reference and timed as deployed.

On a GPU each generated kernel is tried once in a process of its own (m2gen/runtime/measure/trial.py): one that faults
costs the candidate, not the process.

The estimate's choice is the default. Another plan is recorded only where it was faster in the same rounds by more than
the noise; among equals the planner's own order decides. So an entry never names a plan slower than the default, and
tuning twice gives the same names but where plans are equally fast. The filter is transformed in every call, as in
training; only whether spectra are kept from call to call is measured with filters that stay.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from m2gen import log
from m2gen.cache import wisdom as store
from m2gen.device.limits import DeviceLimits
from m2gen.errors import M2GenError, PlanError
from m2gen.planner import search
from m2gen.planner.choice import digest
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.build import cpp_kernel
from m2gen.runtime.build.limits import default_device, live
from m2gen.runtime.measure import first_use, trial, wisdom
from m2gen.runtime.measure.case import Case
from m2gen.runtime.measure.cases import case_of
from m2gen.runtime.measure.timer import Samples, best_of, interleaved

BEST = 8  # candidates of the likely solver
# A plan that is not faster by more than this is not faster. Within a process ratios are known to half a percent; from
# one process to the next they were seen to move by up to 5 % (one core of a Zen 5, virtual machine).
NOISE = 0.05
KEEP_NOISE = (
    0.12  # the same for keeping spectra or not, which depends on what else is in the caches: up to 20 % were seen
)
SECONDS = 6.0  # of timing a problem, at most
_LIKELY = 1.6  # times the best estimate: candidates beyond are not tried
_HOPELESS = 1.5  # times the best time of the first rounds: not timed further
_SLOWEST = 0.5  # seconds a call: another solver's best is not tried beyond, by estimate
_FIRST_ROUNDS = 3


@dataclass
class Outcome:
    """What came of one problem: its entry, or why there is none."""

    problem: Problem
    entry: store.Entry | None = None
    why: str = ""
    dropped: dict[str, str] = field(default_factory=dict)
    samples: dict[str, Samples] = field(default_factory=dict)
    unchanging: dict[str, Samples] = field(default_factory=dict)  # with filters that stay
    measured: Problem | None = None  # a smaller one, where it was too large


def tune_all(
    problems: Iterable[Problem],
    limits: DeviceLimits | None = None,
    *,
    budget: float = 600.0,
    again: bool = False,
    best: int = BEST,
) -> Iterator[Outcome]:
    """Tune problems one after the other within `budget` seconds; each result is kept at once, so a tuning that is
    stopped goes on where it was. Problems tuned before in these circumstances are passed over unless `again`."""
    here = limits or live(default_device())
    todo = list(dict.fromkeys(problems))
    started, tuned = time.perf_counter(), 0
    for i, problem in enumerate(todo):
        try:
            case_of(problem)
        except PlanError as error:
            yield Outcome(problem, why=str(error))
            continue
        if not again and _known(problem, here):
            yield Outcome(problem, why="tuned before")
            continue
        spent = time.perf_counter() - started
        left = wisdom.agreed(budget - spent)
        if left <= (wisdom.agreed(spent) / tuned if tuned else 0.0):
            yield Outcome(problem, why="the budget is spent")
            continue
        yield tune(problem, here, seconds=min(SECONDS, left / (len(todo) - i)), best=best)
        tuned += 1


def _known(problem: Problem, limits: DeviceLimits) -> bool:
    """Whether rank 0 has an entry of its own for the problem."""
    try:
        search.plan(problem, limits, wisdom.knowledge(limits, torch.get_num_threads()), "wisdom_only")
        found = True
    except M2GenError:
        found = False
    return wisdom.agreed(found)


def tune(problem: Problem, limits: DeviceLimits, *, seconds: float = SECONDS, best: int = BEST) -> Outcome:
    """Tune one problem on the live device `limits`, about `seconds` of timing. With several ranks rank 0 measures and
    all take its entry: a collective call."""
    outcome = _measured(problem, limits, seconds, best) if wisdom.rank() == 0 else Outcome(problem)
    outcome.entry = wisdom.agreed(outcome.entry)
    if outcome.entry is not None:
        if wisdom.rank() == 0:
            store.put(outcome.entry)
        wisdom.remember(outcome.entry)
    return outcome


def measure(problem: Problem, limits: DeviceLimits) -> store.Entry | None:
    """The entry of a problem that is tuned now, since rigor "measure" asks for it."""
    log.fallback(f"{problem} is being tuned, as rigor measure asks; m2gen tune does it ahead of time")
    return tune(problem, limits).entry


def _measured(problem: Problem, limits: DeviceLimits, seconds: float, best: int) -> Outcome:
    outcome = Outcome(problem)
    ranking = search.rank(problem, limits)
    plans = contenders(ranking, best)
    kind = case_of(problem)
    outcome.measured = kind.reduced(problem)
    case = kind(outcome.measured, _device(limits))
    kernels = _sound(plans, case, outcome)
    if not kernels:
        outcome.why = "; ".join(f"{name}: {why}" for name, why in outcome.dropped.items()) or "no solver can do it"
        return outcome
    outcome.samples = _contest(kernels, case, seconds)
    default = next(iter(kernels))
    # a plan that left the contest early was slower than the noise allows
    finalists = {name: one for name, one in outcome.samples.items() if len(one.seconds) > _FIRST_ROUNDS}
    winner = plans[best_of(finalists or outcome.samples, default, NOISE)]
    winner, outcome.unchanging = _keeping(winner, ranking, case, seconds / 4)
    outcome.entry = _entry(problem, limits, ranking, winner, plans[default], outcome)
    return outcome


def _device(limits: DeviceLimits) -> torch.device:
    return torch.device("cpu") if limits.kind == "cpu" else default_device()


def contenders(ranking: search.Ranking, best: int) -> dict[str, Plan]:
    """By choice: the `best` cheapest plans that differ in more than whether spectra are kept, those much dearer left
    out, and the cheapest of each other solver unless it would take seconds."""
    found: dict[str, Plan] = {}
    first, *others = ranking.plans
    others.sort(key=lambda plan: plan.estimate.seconds)  # which kernels are shared is no matter here
    for plan in (first, *others):
        alike = _other_keep(plan) in found.values()
        likely = plan.estimate.seconds <= _LIKELY * first.estimate.seconds
        if likely and len(found) < best and not alike:
            found[plan.choice] = plan
    for solver in {plan.solver: None for plan in ranking.plans}:
        best_of_it = ranking.best(solver)
        if best_of_it is not None and best_of_it.estimate.seconds < _SLOWEST:
            found.setdefault(best_of_it.choice, best_of_it)
    return found


def _other_keep(plan: Plan) -> Plan:
    """The plan that keeps from call to call what this one makes anew, or the other way; itself where there is none."""
    other = plan.body.kept_otherwise
    return plan if other is None else replace(plan, steps=(*plan.steps[:-1], other))


def _sound(plans: dict[str, Plan], case: Case[Any], outcome: Outcome) -> dict[str, Any]:
    """The kernels that compile, run and are right, in the planner's order.

    What may take the process with it is tried in another before.
    """
    plans = {name: plan for name, plan in plans.items() if not _faulty(name, plan, case.device, outcome)}
    both = case, case.opposite()
    _compile(plans.values())
    found: dict[str, Any] = {}
    for i, (name, plan) in enumerate(plans.items()):
        why = _trial(plan, both[i % 2])  # what another candidate left in memory is wrong for this one
        if why is None:
            found[name] = kernel_of(_for(plan, case.problem))
        else:
            outcome.dropped[name] = why
    return found


def _faulty(name: str, plan: Plan, device: torch.device, outcome: Outcome) -> bool:
    """Whether a process of its own says that the plan is to be dropped, which is noted."""
    if not trial.alone(plan, device):
        return False
    why = trial.fault(plan, outcome.measured or outcome.problem, device)
    if why is not None:
        outcome.dropped[name] = why
    else:
        first_use.right(plan, live(device))
    return why is not None


def _for(plan: Plan, measured: Problem) -> Plan:
    """The plan, for the problem that is measured in its stead."""
    return replace(plan, problem=measured)


def _trial(plan: Plan, case: Case[Any]) -> str | None:
    """Why a plan is dropped, None where it computes the reference's answer."""
    try:
        return case.wrong(case.call(kernel_of(_for(plan, case.problem))))
    except (M2GenError, RuntimeError, ValueError, OSError) as error:
        return f"it fails: {' '.join(str(error).split())[:300]}"


def _compile(plans: Iterable[Plan]) -> None:
    """Compile generated C++ of all plans at once; what does not compile is found again, and dropped, at its trial."""
    kernels = [spec for plan in plans for spec in plan.body.kernels(plan.problem, gradients=False)]
    specs = [spec for spec in dict.fromkeys(kernels) if spec.template.startswith("cpp/")]

    def load(spec: Any) -> None:
        with suppress(M2GenError, OSError):
            cpp_kernel.load(spec)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(load, specs))


def _contest(kernels: dict[str, Any], case: Case[Any], seconds: float) -> dict[str, Samples]:
    """A few rounds of all; then, for the time that is left, of those that can still win, and of the default."""
    started = time.perf_counter()

    def run(names: Iterable[str], seconds: float, least: int, most: int) -> dict[str, Samples]:
        calls = {name: partial(case.call, kernels[name]) for name in names}
        return interleaved(calls, case.device, seconds=seconds, least=least, most=most)

    found = run(kernels, 0.0, _FIRST_ROUNDS, _FIRST_ROUNDS)
    default = next(iter(found))
    limit = _HOPELESS * min(min(one.seconds) for one in found.values())
    going = [name for name, one in found.items() if name == default or min(one.seconds) <= limit]
    if len(going) > 1:
        found |= run(going, seconds - (time.perf_counter() - started), 7, 101)
    return found


def _keeping(winner: Plan, ranking: search.Ranking, case: Case[Any], seconds: float) -> tuple[Plan, dict[str, Samples]]:
    """The winner with what it keeps or makes anew, whichever is faster where weights stay."""
    both = [plan for plan in ranking.plans if plan in (winner, _other_keep(winner))]
    if len(both) < 2:
        return winner, {}
    calls = {plan.choice: case.staying(kernel_of(_for(plan, case.problem))) for plan in both}
    samples = interleaved(calls, case.device, seconds=seconds, least=7)
    best = best_of(samples, both[0].choice, KEEP_NOISE)
    return next(plan for plan in both if plan.choice == best), samples


def _entry(
    problem: Problem,
    limits: DeviceLimits,
    ranking: search.Ranking,
    winner: Plan,
    default: Plan,
    outcome: Outcome,
) -> store.Entry:
    here = wisdom.circumstances(limits, torch.get_num_threads())
    seconds, unchanging = (
        {name: float(f"{one.median:.4g}") for name, one in found.items()}
        for found in (outcome.samples, outcome.unchanging)
    )
    if winner.choice not in seconds:  # timed with filters that change, where keeping makes no difference
        seconds[winner.choice] = seconds[_other_keep(winner).choice]
    key = store.Key(
        problem=str(problem),
        arch=limits.arch,
        processor=here.processor,
        threads=here.threads,
        candidates=digest(ranking.plans),
        compiler=here.compiler,
    )
    return store.Entry(
        key=key,
        choice=winner.choice,
        style=winner.style,
        default=default.choice,
        measured=str(outcome.measured or problem),
        seconds=seconds,
        unchanging=unchanging,
        dropped=outcome.dropped,
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )

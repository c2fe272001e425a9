"""The public `m2gen.plan`: a problem and a target's name in, a plan out."""

from __future__ import annotations

from functools import lru_cache

from m2gen.cache import wisdom as store
from m2gen.device.limits import DeviceLimits, target
from m2gen.planner import search
from m2gen.planner.advice import Knowledge
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse


def limits_of(name: str = "auto") -> DeviceLimits:
    """The table's row called `name`; "auto" is the device at hand (a GPU where there is one)."""
    if name != "auto":
        return target(name)
    from m2gen.runtime.build.limits import default_device, live  # late: planning for a named target needs no torch

    return live(default_device())


def plan(problem: str | Problem, target: str = "auto", rigor: str = "estimate") -> Plan:
    """The plan of `problem` on `target`; its `origin` says how it was found, `explain()` everything else.

    `problem` is a `Problem` or its text, such as `"fftconv n=8192 h=768 b=4 bf16 causal gated"`; `target` is "auto" or
    an architecture such as "sm90" or "avx2". Nothing is run and nothing is timed with rigor "estimate": what was
    measured of the problem decides, else what was measured of the nearest one, else the cost model. "measure" tunes a
    problem that was not tuned before, on the device at hand; "wisdom_only" raises WisdomError for such a problem. A
    problem whose kernels were compiled ahead (M2GEN_COMPILED_DIR) has the plan that they were compiled for.
    """
    asked, limits = _problem(problem), limits_of(target)
    if target == "auto" and (compiled := _ahead(asked, limits)) is not None:
        return compiled
    found = search.plan(asked, limits, known(target), rigor)
    return found if target != "auto" or found.body.untried is None else _sound(found, limits)


def _sound(found: Plan, limits: DeviceLimits) -> Plan:
    """What calls would take in its place, where it is known already that its kernels must not run here."""
    from m2gen.runtime.measure import first_use  # late: as below

    return first_use.sound(found, limits, check=False)


def _ahead(problem: Problem, limits: DeviceLimits) -> Plan | None:
    """The plan that was compiled ahead, which runs."""
    from m2gen.runtime.build import ahead  # late: as above

    return ahead.plan(problem, limits)


def known(target: str = "auto") -> Knowledge:
    """The wisdom for a target: in the circumstances at hand, or, for a named one, in any."""
    if target != "auto":
        return _anywhere(store.known(limits_of(target).arch))
    import torch  # late, as above

    from m2gen.runtime.measure import tune, wisdom

    return wisdom.knowledge(limits_of(), torch.get_num_threads(), tune.measure)


@lru_cache(maxsize=16)
def _anywhere(entries: tuple[store.Entry, ...]) -> Knowledge:
    """One value for the same entries: plans are remembered by it."""
    return Knowledge(entries)


def ranking(problem: str | Problem, target: str = "auto") -> search.Ranking:
    """Every legal plan, cheapest first, and every rejected solver with its reason."""
    return search.rank(_problem(problem), limits_of(target))


def _problem(problem: str | Problem) -> Problem:
    return parse(problem) if isinstance(problem, str) else problem

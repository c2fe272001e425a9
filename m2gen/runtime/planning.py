"""The public `m2gen.plan`: a problem and a target's name in, a plan out."""

from __future__ import annotations

from m2gen.device.limits import DeviceLimits, target
from m2gen.planner import search
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem


def limits_of(name: str = "auto") -> DeviceLimits:
    """The table's row called `name`; "auto" is the device at hand (a GPU where there is one)."""
    if name != "auto":
        return target(name)
    from m2gen.runtime.limits import default_device, live  # late: planning for a named target needs no torch

    return live(default_device())


def plan(problem: str | Problem, target: str = "auto") -> Plan:
    """The cheapest legal plan of `problem` on `target`, by estimate.

    `problem` is a `Problem` or its text, such as `"fftconv n=8192 h=768 b=4 bf16 causal gated"`; `target` is "auto" or
    an architecture such as "sm90" or "avx2". Nothing is run and nothing is timed. A problem whose kernels were compiled
    ahead (M2GEN_COMPILED_DIR) has the plan that they were compiled for.
    """
    asked, limits = _problem(problem), limits_of(target)
    return _ahead(asked, limits) or search.plan(asked, limits) if target == "auto" else search.plan(asked, limits)


def _ahead(problem: Problem, limits: DeviceLimits) -> Plan | None:
    """The plan that was compiled ahead, which runs."""
    from m2gen.runtime import ahead  # late: as above

    return ahead.plan(problem, limits)


def ranking(problem: str | Problem, target: str = "auto") -> search.Ranking:
    """Every legal plan, cheapest first, and every rejected solver with its reason."""
    return search.rank(_problem(problem), limits_of(target))


def _problem(problem: str | Problem) -> Problem:
    return Problem.parse(problem) if isinstance(problem, str) else problem

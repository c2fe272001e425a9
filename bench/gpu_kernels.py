"""Several kernels of each problem of `python -m bench gpu`: what `m2gen tune --fit` learns most from, since the order
among them is fitted, too. Those of the next plans of the ranking, whose plans the calls do not follow.

Each is a job of its own: a kernel that faults costs itself alone, and one that is wrong is no result. They are launched
as calls launch them, spectra kept, in a CUDA graph; of a gated problem with its gates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import m2gen
from bench.device import Clock
from bench.gpu_operands import copying, drawn, posed_as, relative
from bench.timing import rounded, summary
from bench.workers import Job, Row
from m2gen.device.limits import DeviceLimits
from m2gen.planner import search
from m2gen.planner.fftconv.fused import LARGEST
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.runtime import executor
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.spectral import Operands
from m2gen.runtime.build.limits import live

MOST = 4  # kernels of a problem that are measured beside the planned one
_WRONG = 0.02  # relative error of a kernel that is not measured


def some(problem: FftConvProblem) -> range:
    """The places of the kernels that there may be: larger problems have none that does all in one launch."""
    return range(MOST if problem.n <= LARGEST else 0)


def others(problem: FftConvProblem, limits: DeviceLimits, planned: Plan) -> list[Plan]:
    """The best plans with one generated kernel for the whole convolution, each with another one than those before and
    than the plan that calls follow. On a CPU, to try all this, the next plans, whatever they are."""
    known, found = {_kernel(planned)}, []
    for plan in search.rank(problem, limits).plans:
        if (limits.kind == "cpu" or plan.solver == "fused") and _kernel(plan) not in known:
            known.add(_kernel(plan))
            found.append(plan)
    return found[:MOST]


def _kernel(plan: Plan) -> Any:
    return plan.body.spec if plan.solver == "fused" else plan.choice  # type: ignore[attr-defined]


def jobs(problem: FftConvProblem, device: str, rounds: int) -> list[Job]:
    """A job for each kernel; one that there is not has no rows."""
    text = str(problem)
    return [Job(f"kernel {place + 1} beside {text}", measure, (text, device, rounds, place)) for place in some(problem)]


def compiling(problem: FftConvProblem, device: str, gigabytes: float) -> list[Job]:
    """One that compiles all of a problem's."""
    text = str(problem)
    return [Job(f"kernels beside {text}", compile_all, (text, device), gigabytes)] if some(problem) else []


def _found(text: str, device: str) -> list[Plan]:
    posed, limits = posed_as(parse(text)), live(torch.device(device))
    return others(posed, limits, executor.planned(posed, limits, torch.get_num_threads()))


def compile_all(text: str, device: str) -> list[Row]:
    """Call each on few rows, as `gpu.compile_plan` does."""
    problem = parse(text)
    rows = next((rows for rows in (32, 16) if problem.b % rows == 0), problem.b)
    for plan in _found(text, device):
        few = replace(problem, b=rows) if plan.solver == "fused" else problem
        y = kernel_of(plan).forward(Operands(**drawn(few, device)))
        torch.sum(y).item()  # waits
    return []


def measure(text: str, device: str, rounds: int, place: int) -> list[Row]:
    """The row of the kernel at that place. Raises M2GenError where its result is wrong."""
    plans = _found(text, device)
    if place >= len(plans):
        return []
    plan, problem, clock = plans[place], parse(text), Clock(device)
    x = drawn(problem, device)
    kept = m2gen.prepare_filter(x["k"], mode=problem.mode)
    kernel, operands = kernel_of(plan), Operands(**x | {"k": kept.k})
    error = relative(problem, x, kernel.forward(operands))
    if not error < _WRONG:  # also true for NaN
        raise m2gen.M2GenError(f"{name_of(plan)} on {text}", f"it is wrong: its error is {error:.2g}", "report it")
    ms = clock.times(clock.graph(lambda: kernel.forward(operands)), rounds)
    floor = clock.times(copying(problem, x["u"]), rounds)
    row: dict[str, Any] = {"group": "gpu kernels", "problem": text, "ms": {"m2gen": summary(ms)}, "ratio": {}}
    row |= {"times": rounded({"m2gen": ms}), "error": {"m2gen": error}, "floor_ms": summary(floor)["median"]}
    return [row | told(plan)]


def name_of(plan: Plan) -> str:
    """The forward kernel's name, or the solver's where there is none."""
    spec = getattr(plan.body, "spec", None)
    return plan.solver if spec is None else str(spec.name)


def told(plan: Plan) -> Row:
    """What a row of "gpu kernels" says of its kernel."""
    programs = getattr(plan.body, "programs", None)
    row = {"part": "fwd", "kernel": name_of(plan), "estimate_ms": 1e3 * plan.body.estimate.seconds, "plan": str(plan)}
    return row | ({} if programs is None else {"programs": programs})

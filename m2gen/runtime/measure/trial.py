"""A plan tried in a process of its own, so that a kernel that faults costs the plan and not the program.

An illegal address ends a process's use of its GPU for good, and no exception brings it back. So a plan whose kernels
this process has not run before is given to another, which compiles it, runs it forward and backward on a small problem
and on the real one, holds results against float64, writes its verdict to a file and ends. A signal, an exit, a hang or
a wrong number is the plan's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from m2gen import log
from m2gen.errors import M2GenError
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.stored import plan_from_json
from m2gen.runtime.build.cpp_kernel import gradients_follow
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure import ready
from m2gen.runtime.measure.cases import case_of
from m2gen.testing.poison import poisoned

SECONDS = 300.0  # for one plan: compiling takes most of it
# What the other process does first: it imports what this one would, and nothing of the user's main program.
_BEGIN = (
    "import json, sys; request = json.load(open(sys.argv[1])); sys.path[:] = request['path']; "
    "from m2gen.runtime.measure.trial import answer; answer(request)"
)
COMMAND = (sys.executable, "-c", _BEGIN)


def alone(plan: Plan, device: torch.device) -> bool:
    """Whether a plan is tried in a process of its own: generated kernels on a GPU."""
    return device.type == "cuda" and bool(plan.body.kernels(plan.problem))


class Trial(NamedTuple):
    """What came of one: why the plan is not to run, None where it is right; and whether that will be so again, as it is
    not the circumstances' doing."""

    why: str | None
    lasting: bool = True


@lru_cache(maxsize=1024)
def fault(plan: Plan, measured: Problem, device: torch.device, seconds: float = SECONDS) -> str | None:
    """Why `plan` is dropped, None where it runs and is right; asked once for the same plan and problem."""
    why = tried(plan, measured, device, seconds).why
    if why is not None:
        log.fallback(f"a candidate for {plan.problem} is dropped: {plan.body}: {why}")
    return why


def tried(plan: Plan, measured: Problem, device: torch.device, seconds: float | None = None) -> Trial:
    """A trial of the plan in a process of its own, `seconds` at most, by default SECONDS."""
    seconds = SECONDS if seconds is None else seconds
    with tempfile.TemporaryDirectory(prefix="m2gen-trial-") as folder:
        request, verdict, errors = (Path(folder) / name for name in ("request", "verdict", "errors"))
        said = {"plan": plan.to_json(), "measured": str(measured), "device": str(device), "path": sys.path}
        request.write_text(json.dumps({**said, "threads": torch.get_num_threads(), "verdict": str(verdict)}))
        with errors.open("w") as stderr:
            try:
                done = subprocess.run(
                    [*COMMAND, str(request)], stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, timeout=seconds
                )
            except subprocess.TimeoutExpired:
                return Trial(f"it was not done after {seconds:.0f} s", _began(verdict).exists())
            except OSError as error:
                return Trial(f"it could not be tried: {error}", False)
        if not verdict.exists():
            lines = errors.read_text(errors="replace").strip().splitlines()
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            why = " ".join(f"its process ended with {how}: {lines[-1] if lines else 'without a word'}".split())[:300]
            return Trial(why, _began(verdict).exists())
        return Trial(**json.loads(verdict.read_text()))


def _began(verdict: Path) -> Path:
    """A file that is there once the other process has used the device: what ends it before is not the plan's fault."""
    return verdict.with_suffix(".began")


def answer(request: dict[str, Any]) -> None:
    """The other process's whole life: the plan's verdict, written to the file that the request names.

    The verdict is moved into place when everything has been waited for; a process that dies before leaves none.
    """
    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    place = Path(request["verdict"])
    plan, measured = plan_from_json(request["plan"]), parse(request["measured"])
    torch.ones(1, device=device).item()
    _began(place).touch()
    lasting = True
    try:
        why = judged(plan, measured, device)
    except torch.OutOfMemoryError as error:
        why, lasting = f"there is no room to try it: {' '.join(str(error).split())[:300]}", False
    unfinished = place.with_suffix(".part")
    unfinished.write_text(json.dumps(Trial(why, lasting)._asdict()))
    unfinished.rename(place)


@contextmanager
def _gradients_follow() -> Iterator[None]:
    """Inside, kernels of gradients are compiled beside those of the forward pass."""
    before = gradients_follow.set(True)
    try:
        yield
    finally:
        gradients_follow.reset(before)


def judged(plan: Plan, measured: Problem, device: torch.device) -> str | None:
    """Why a plan fails or is wrong, here and now: forward and every gradient on a few rows of the problem, then on all
    of `measured`; of a large one a sample of the result, and that gradients are numbers."""
    kind = case_of(measured)
    try:
        with poisoned(), _gradients_follow():
            for problem in (kind.small(measured), measured):
                ready.expect(replace(plan, problem=problem), live(device))
                case = kind(problem, device)
                look = "wrong_in_a_sample" if case.large else "wrong_somewhere"
                for one in (case, case.opposite()):  # what the first left in memory is wrong for the second
                    if why := getattr(one, look)(replace(plan, problem=problem)):
                        return str(why)
    except torch.OutOfMemoryError:
        raise
    except (M2GenError, RuntimeError, ValueError, OSError) as error:
        return f"it fails: {' '.join(str(error).split())[:300]}"
    return None

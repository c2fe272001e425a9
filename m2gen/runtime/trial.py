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
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2gen import log
from m2gen.errors import M2GenError
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.runtime.binding import Kernel, kernel_of
from m2gen.runtime.spectral import Gradients, Operands
from m2gen.runtime.verify import negated, oracle
from m2gen.testing.exact import BOUND, NAMES, STAGED, exact, relative
from m2gen.testing.operands import operands
from m2gen.testing.poison import poisoned

SECONDS = 300.0  # for one plan: compiling takes most of it
_BATCH, _CHANNELS = 3, 2  # of the small problem
_LARGE = 2**22  # numbers in a tensor: of more, not all results are looked at
# What the other process does first: it imports what this one would, and nothing of the user's main program.
_BEGIN = (
    "import json, sys; request = json.load(open(sys.argv[1])); sys.path[:] = request['path']; "
    "from m2gen.runtime.trial import answer; answer(request)"
)
COMMAND = (sys.executable, "-c", _BEGIN)


def alone(plan: Plan, device: torch.device) -> bool:
    """Whether a plan is tried in a process of its own: Triton's kernels on a GPU."""
    return device.type == "cuda" and isinstance(plan.body, FusedConv)


@lru_cache(maxsize=1024)
def fault(plan: Plan, measured: FftConvProblem, device: torch.device, seconds: float = SECONDS) -> str | None:
    """Why `plan` is dropped, None where it runs and is right; asked once for the same plan and problem."""
    why = _asked(plan, measured, device, seconds)
    if why is not None:
        log.fallback(f"a candidate for {plan.problem} is dropped: {plan.body}: {why}")
    return why


def _asked(plan: Plan, measured: FftConvProblem, device: torch.device, seconds: float) -> str | None:
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
                return f"it was not done after {seconds:.0f} s"
            except OSError as error:
                return f"it could not be tried: {error}"
        if not verdict.exists():
            lines = errors.read_text(errors="replace").strip().splitlines()
            how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            return " ".join(f"its process ended with {how}: {lines[-1] if lines else 'without a word'}".split())[:300]
        why: str | None = json.loads(verdict.read_text())["why"]
        return why


def answer(request: dict[str, Any]) -> None:
    """The other process's whole life: the plan's verdict, written to the file that the request names.

    The verdict is moved into place when everything has been waited for; a process that dies before leaves none.
    """
    device = torch.device(request["device"])
    torch.set_num_threads(request["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    why = judged(Plan.from_json(request["plan"]), FftConvProblem.of(parse(request["measured"])), device)
    place = Path(request["verdict"])
    unfinished = place.with_suffix(".part")
    unfinished.write_text(json.dumps({"why": why}))
    unfinished.rename(place)


def judged(plan: Plan, measured: FftConvProblem, device: torch.device) -> str | None:
    """Why a plan fails or is wrong, here and now: forward and every gradient on a few rows of the problem, then on all
    of `measured`; of a large one some rows forward, and that gradients are numbers."""
    small = replace(measured, b=min(measured.b, _BATCH), h=min(measured.h, _CHANNELS))
    large = measured.b * measured.h * measured.n > _LARGE
    try:
        with poisoned():
            why = _wrong_somewhere(replace(plan, problem=small), device)
            look = _wrong if large else _wrong_somewhere
            return why or look(replace(plan, problem=measured), device)
    except (M2GenError, RuntimeError, ValueError, OSError) as error:
        return f"it fails: {' '.join(str(error).split())[:300]}"


def _wrong_somewhere(plan: Plan, device: torch.device) -> str | None:
    """Every number of the result and of the gradients, in float64 by FFT, and again with the opposite answer."""
    problem = FftConvProblem.of(plan.problem)
    args = tensors(problem, device)
    kernel = kernel_of(plan)
    bound = BOUND[problem.dtype] * (STAGED if isinstance(plan.body, FusedConv) and plan.body.spec.staged else 1)
    for given in (args, {**args, "u": -args["u"]}):  # what the first left in memory is wrong for the second
        x = Operands(**{name: given[name] for name in NAMES if name in given})
        expected, leaves = exact(given)
        found = {"result": kernel.forward(x)}
        dy = torch.randn_like(found["result"])
        wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
        out = _backward(kernel, dy, x)
        found |= {f"gradient of {name}": getattr(out, name) for name in leaves}
        for (what, value), right in zip(found.items(), (expected, *wanted), strict=True):
            if not (error := relative(value, right)) < bound:  # also true for NaN
                return f"it is wrong: {what} is off by {error:.3g}, allowed {bound:.3g}"
    return None


def _wrong(plan: Plan, device: torch.device) -> str | None:
    """Some rows of the result, and that the gradients come to an end and are numbers."""
    problem = FftConvProblem.of(plan.problem)
    args = tensors(problem, device)
    x = Operands(**{name: args[name] for name in NAMES if name in args})
    kernel, reference = kernel_of(plan), oracle(problem, x)
    y = kernel.forward(x)
    why = reference.wrong(y, 1.0) or reference.wrong(kernel.forward(negated(x)), -1.0)
    if why is None and not all(bool(x.isfinite().all()) for x in _tensors(_backward(kernel, y, x))):
        why = "it is wrong: a gradient is not finite"
    return why


def tensors(problem: FftConvProblem, device: torch.device) -> dict[str, Any]:
    """Operands (B, H, L) of the problem in its layout, and the mode."""
    args = operands(problem, device=device)
    if args.pop("layout") == "BLH":
        args |= {name: args[name].mT for name in ("u", "pre_gate", "post_gate") if name in args}
    return args


def _backward(kernel: Kernel, dy: Tensor, x: Operands) -> Gradients:
    given = {name: value for name in NAMES if (value := getattr(x, name)) is not None}
    out = Gradients(**{n: torch.empty_like(t) if t.dim() == 3 else torch.zeros_like(t) for n, t in given.items()})
    kernel.backward(dy, x, out)
    return out


def _tensors(out: Gradients) -> list[Tensor]:
    return [value for name in NAMES if (value := getattr(out, name)) is not None]

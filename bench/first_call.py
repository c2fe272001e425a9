"""What a first forward and backward pass compiles for a GPU, which need not be here: `python -m bench first-call`.

Each row is a process that starts anew, with a cache of Triton's that is empty, from when its own modules are loaded:
one kernel after the other, as a program does it that calls them; and the first one there, the others beside it in other
processes, as m2gen does it. "first" is when the kernels of the forward pass are there, in brackets the seconds of a
core that this process took for it: on a machine that others use, about what it would take alone.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from bench.timing import provenance, write

PROBLEMS = (
    "fftconv n=1024 h=768 b=64 bf16 causal gated",
    "fftconv n=4096 h=768 b=64 fp16 circular gated",
    "fftconv n=4096 h=768 b=64 bf16 causal gated",
    "fftconv n=8192 h=768 b=64 bf16 causal gated",
    "fftconv n=32768 h=768 b=16 bf16 causal gated",
    "fftconv n=1048576 h=192 b=2 bf16 causal gated",
)
WAYS = ("one after the other", "beside one another")


def compiled(text: str, target: str, way: str) -> dict[str, Any]:
    """In a process of its own: seconds to the first kernel and to the last, and the number of kernels."""
    import torch  # noqa: F401 - the program's own

    from m2gen.planner.problems import parse
    from m2gen.runtime import planning
    from m2gen.runtime.build import beforehand
    from m2gen.runtime.build.background import Background
    from m2gen.runtime.build.cross_compile import SERVES, serve_one
    from m2gen.runtime.measure import rehearsed

    problem, limits = parse(text), planning.limits_of(target)
    plan = planning.plan(problem, target)
    rehearsed.jobs(plan, limits, True)
    rehearsed.launches.cache_clear()  # what an operator's first call loads of PyTorch has been loaded
    begun, worked = time.perf_counter(), _cpu()
    jobs = rehearsed.jobs(plan, limits, True)
    if not jobs:
        raise RuntimeError(f"no generated kernel is planned: {plan}")
    beside = Background(SERVES)
    if way == WAYS[1]:
        beside.begin([job.ready for job in jobs[1:]])
    seconds = own = 0.0
    for number, job in enumerate(jobs, start=1):
        beside.needed(job)
        if not beforehand.there(job):
            _do(serve_one, job)
        if number == len(rehearsed.jobs(plan, limits, False)):
            seconds, own = time.perf_counter() - begun, _cpu() - worked
    found = {"first": seconds, "all": time.perf_counter() - begun, "first, of a core": own}
    return found | {"kernels": len(jobs), "plan": str(plan)}


def _cpu() -> float:
    """Seconds that this process and its assembler have had a core: on a machine that others use, what it would take
    alone."""
    return sum(os.times()[:4])


CALL = """
import json, time, torch, m2gen
from bench.gpu import drawn
from m2gen.planner.problems import parse
problem = parse({text!r})
x = {{name: t.requires_grad_() for name, t in drawn(problem, {device!r}).items()}}
dy = torch.randn_like(x["u"])
x["u"].sum().item()  # the device is at work
start = time.perf_counter()
y = m2gen.fftconv(**x, mode=problem.mode)
y[0, 0, 0].item()
first = time.perf_counter() - start
torch.autograd.grad(y, list(x.values()), dy)[0][0, 0, 0].item()
print(json.dumps({{"forward": first, "forward and backward": time.perf_counter() - start}}))
"""


def alone(text: str, device: str) -> dict[str, float]:
    """Seconds of a first call in a process that starts anew and finds nothing compiled, once it has its tensors."""
    with tempfile.TemporaryDirectory(prefix="m2gen-first-call-") as folder:
        empty = {"TRITON_CACHE_DIR": f"{folder}/triton", "M2GEN_CACHE_DIR": f"{folder}/m2gen", "M2GEN_UNTRIED": "trust"}
        code = CALL.format(text=text, device=device)
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | empty, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _do(serve_one: Any, job: Any) -> None:
    if why := serve_one(job).error:
        raise RuntimeError(f"{job.name}: {why}")


def begins(problems: int, rounds: int, target: str) -> list[str]:
    """What is said at the start: how much is done, about how long that takes, what the numbers are."""
    processes = problems * rounds * len(WAYS)
    return [
        f"compiling for {target} what a forward and a backward pass need, nothing cached, {os.cpu_count()} cores",
        f"{processes} processes (problems: {problems}, rounds: {rounds}, ways: {len(WAYS)}) one after the other, of 10 "
        f"to 30 s each on two cores: {max(1, processes // 6)} to {max(1, processes // 2)} minutes; --rounds 1 or "
        "--only n=1024 do less",
        '"first": seconds until the kernels of the forward pass are there, in brackets the seconds of a core that the '
        'process took for them; "all": the number of kernels of both passes, and the seconds until the last is there',
    ]


def main(rounds: int, out: str | None, only: str | None, target: str = "sm90") -> None:
    """Every problem, or those with `only` in them."""
    found, results = provenance(), []
    problems = [text for text in PROBLEMS if only is None or only in text]
    for line in begins(len(problems), rounds, target):
        print(line, flush=True)
    for text in problems:
        times: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        why = ""
        for _ in range(rounds):
            for way in WAYS:
                done, why = _alone(text, target, way)
                if done is not None:
                    times[way].append(done)
        row: dict[str, Any] = {"group": "first call", "problem": text, "times": times, "why": why}
        row["load"] = os.getloadavg()[0]
        results.append(row)
        cells = []
        for way, many in times.items():
            if many:
                what = ("first", "first, of a core", "all")
                first, own, last = (statistics.median(one[name] for one in many) for name in what)
                cells.append(f"{way}: first {first:5.2f} s ({own:.2f}), all {many[0]['kernels']} {last:5.2f} s")
        print(f"{text:48} {'   '.join(cells) or why}", flush=True)
        write(out, found, results)


def _alone(text: str, target: str, way: str) -> tuple[dict[str, Any] | None, str]:
    with tempfile.TemporaryDirectory(prefix="m2gen-first-call-") as folder:
        code = f"import json; from bench.first_call import compiled; print(json.dumps(compiled{(text, target, way)!r}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"TRITON_CACHE_DIR": folder},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found, ""

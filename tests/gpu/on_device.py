"""What tests on a device share: the device, plans checked by a process that lives on until one of them faults, and
stand-ins that let the tests themselves be tried on a CPU, where Triton's interpreter computes (TRITON_INTERPRET=1)."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from m2gen.config import config
from m2gen.device.limits import target
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.stored import plan_from_json
from m2gen.runtime.build.limits import live
from m2gen.runtime.build.workers import Failed, Worker
from m2gen.runtime.measure import trial

CUDA = torch.cuda.is_available()
INTERPRETED = config().triton_interpret and not CUDA
DEVICE = torch.device("cuda" if CUDA else "cpu")
HERE = live(DEVICE) if CUDA or INTERPRETED else target("sm90")  # so that what is collected can be looked at anywhere
NEEDS_DEVICE = [pytest.mark.gpu, pytest.mark.skipif(not (CUDA or INTERPRETED), reason="needs a GPU")]
SECONDS = 300.0  # of one plan

_worker = Worker("on_device:judge")
atexit.register(_worker.stop)


def check(problem: Problem, plan: Plan) -> None:
    """Forward and every gradient against float64, in another process: a fault of one kernel ends no other's test, and
    that process does what comes next until one faults."""
    measured = replace(problem, layout="BHL") if hasattr(problem, "layout") else problem
    try:
        why = _worker.do((plan.to_json(), str(measured), str(DEVICE)), SECONDS)
    except Failed as failed:
        why = failed.why
    if why is not None:
        _worker.stop()
    assert why is None, (why, plan)


def judge(asked: tuple[str, str, str]) -> str | None:
    """The other process: why a plan is wrong."""
    plan, measured, device = plan_from_json(asked[0]), parse(asked[1]), torch.device(asked[2])
    if device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        return trial.judged(plan, measured, device)
    except torch.OutOfMemoryError as error:
        return f"there is no room: {error}"


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def captured(call: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """What the call gives, and what computes it again where it stands: a graph's replay."""
    if not CUDA:
        results = call()
        given = results if isinstance(results, tuple) else (results,)

        def again() -> None:
            found = call()
            for old, new in zip(given, found if isinstance(found, tuple) else (found,), strict=True):
                old.copy_(new)

        return results, again
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # everything is compiled and loaded before
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    wait()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    return results, graph.replay


@contextmanager
def streams(count: int) -> Iterator[list[Any]]:
    """So many streams, as contexts, that have waited for what was done before; all is done at the end."""
    if not CUDA:
        yield [nullcontext() for _ in range(count)]
        return
    found = [torch.cuda.Stream() for _ in range(count)]
    for one in found:
        one.wait_stream(torch.cuda.current_stream())
    yield [torch.cuda.stream(one) for one in found]
    wait()


def size(n: int) -> int:
    """What the interpreter can do in a test's time."""
    return min(n, 300) if INTERPRETED else n

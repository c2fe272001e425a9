"""A data loader's random lengths on a CPU: kernels compiled and the time it takes, with an empty cache; and what it
costs that lengths share rings, beside the ring that is estimated fastest for each."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import m2gen
from bench.timing import interleaved, provenance, ratios, summary
from m2gen.codegen.render import Source
from m2gen.planner import search
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.build import compiler
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure.fftconv_case import FftConvCase

COUNT, LONGEST, CHANNELS = 400, 2048, 256
SAMPLE = 40  # lengths whose plan is timed beside the one estimated fastest


def main(rounds: int, threads: int, out: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "bench.lengths", str(rounds), str(threads)]
        text = subprocess.run(
            words, env={**os.environ, "M2GEN_CACHE_DIR": folder}, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    found = json.loads(text)
    first, logs = found["first calls"], [math.log(row["ratio"]["m2gen"]["median"]) for row in found["results"]]
    print(
        f"{COUNT} random lengths up to {LONGEST}, forward and backward: {first['kernels']} kernels compiled in "
        f"{first['compiling']:.1f} s ({first['busy']:.1f} s of compilers), {first['whole']:.1f} s in all"
    )
    print(
        f"{len(logs)} of {SAMPLE} plans are not the ones estimated fastest; time beside those: "
        f"{math.exp(sum(logs) / SAMPLE):.3f} in geometric mean of {SAMPLE}, "
        f"worst {math.exp(max(logs, default=0.0)):.3f}"
    )
    if out:
        Path(out).write_text(json.dumps(found, indent=1))


def _lengths() -> list[int]:
    draw = random.Random(0)
    return [draw.randint(1, LONGEST) for _ in range(COUNT)]


def first_calls() -> dict[str, Any]:
    """Forward and backward at each length, kernels compiled as they are met."""
    spent: list[tuple[float, float]] = []
    build = compiler.build

    def timed(source: Source, *args: Any) -> bytes:
        start = time.perf_counter()
        made = build(source, *args)
        spent.append((start, time.perf_counter()))
        return made

    compiler.build = timed  # type: ignore[assignment]
    start = time.perf_counter()
    for length in _lengths():
        u, k = (torch.randn(*size, length, requires_grad=True) for size in ((1, CHANNELS), (CHANNELS,)))
        m2gen.fftconv(u, k).sum().backward()
    whole = time.perf_counter() - start
    compiler.build = build
    return {
        "kernels": len(spent),
        "compiling": _covered(spent),
        "busy": sum(stop - begin for begin, stop in spent),
        "whole": whole,
    }


def _covered(spans: list[tuple[float, float]]) -> float:
    """Seconds in which at least one compiler ran."""
    total, reached = 0.0, 0.0
    for begin, stop in sorted(spans):
        total += max(0.0, stop - max(begin, reached))
        reached = max(reached, stop)
    return total


def shared(rounds: int) -> list[dict[str, Any]]:
    """The plans that are not the ones estimated fastest, beside those."""
    cpu, rows = torch.device("cpu"), []
    for length in random.Random(1).sample(_lengths(), SAMPLE):
        problem = FftConvProblem(n=length, h=CHANNELS, b=1, k=length, mode="causal")
        chosen = search.plan(problem, live(cpu))
        fastest = min(search.rank(problem, live(cpu)).plans, key=lambda plan: plan.estimate.seconds)
        if chosen.body == fastest.body:
            continue
        case = FftConvCase(problem, cpu)
        calls = {name: _some(case, kernel_of(plan)) for name, plan in (("m2gen", chosen), ("fastest", fastest))}
        times = interleaved(calls, rounds)
        ms = {name: summary(values) for name, values in times.items()}
        row = {"group": "shared rings", "problem": str(problem), "plans": [chosen.choice, fastest.choice], "ms": ms}
        rows.append(row | {"ratio": {"m2gen": ratios(times["m2gen"], times["fastest"])}})
    return rows


def _some(case: FftConvCase, kernel: Any) -> Callable[[], None]:
    def calls() -> None:
        for _ in range(5):
            case.call(kernel)

    return calls


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    found = {"provenance": provenance(), "first calls": first_calls(), "results": shared(int(sys.argv[1]))}
    print(json.dumps(found))

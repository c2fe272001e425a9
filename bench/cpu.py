"""The long convolution on a CPU: m2gen beside torch.fft on whole tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import m2gen
from bench.timing import interleaved, peak_mib, provenance, ratios, summary
from m2gen.planner.problem import Problem
from m2gen.testing.operands import operands

SIZES = [(1024, 1), (1024, 4), (4096, 1), (8192, 1), (8192, 4), (32768, 1)]
CHANNELS = 768


def whole(u: Tensor, k: Tensor) -> Tensor:
    """The convolution as most models write it: one rfft, product and irfft over the whole tensor, padded to 2 L."""
    size = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., : u.shape[-1]]


def contenders(problem: Problem) -> dict[str, Callable[[], Any]]:
    args = operands(problem)
    u, k = args["u"], args["k"]
    return {"torch.fft": lambda: whole(u, k), "m2gen": lambda: m2gen.fftconv(u, k)}


def peak(problem: Problem, name: str) -> float:
    """Peak memory of one call beyond its inputs, in a process of its own; the output counts."""
    code = (
        "import sys, torch; from bench.cpu import contenders, peak_mib; from m2gen.planner.problem import Problem;"
        "torch.set_num_threads(1); warm = contenders(Problem.parse('fftconv n=16 causal'))[sys.argv[2]]();"
        "print(peak_mib(contenders(Problem.parse(sys.argv[1]))[sys.argv[2]]))"
    )
    run = subprocess.run([sys.executable, "-c", code, str(problem), name], capture_output=True, text=True, check=True)
    return float(run.stdout)


def measure(problem: Problem, rounds: int) -> dict[str, Any]:
    times = interleaved(contenders(problem), rounds)
    return {
        "problem": str(problem),
        "plan": str(m2gen.plan(problem, "auto")),
        "ms": {name: summary(values) for name, values in times.items()},
        "speedup": ratios(times["torch.fft"], times["m2gen"]),
        "peak_mib": {name: peak(problem, name) for name in times},
    }


def main(rounds: int, threads: int, out: str | None) -> None:
    torch.set_num_threads(threads)
    print(json.dumps(provenance()))
    print(f"{'problem':44} {'torch.fft ms':>13} {'m2gen ms':>9} {'speed-up (quartiles)':>22} {'peak MiB':>15}")
    results = []
    for n, batch in SIZES:
        row = measure(Problem(n=n, h=CHANNELS, b=batch), rounds)
        results.append(row)
        ms, gain, mib = row["ms"], row["speedup"], row["peak_mib"]
        print(
            f"{row['problem']:44} {ms['torch.fft']['median']:13.1f} {ms['m2gen']['median']:9.1f} "
            f"{gain['median']:8.2f} ({gain['q1']:.2f} .. {gain['q3']:.2f}) "
            f"{mib['torch.fft']:7.0f} {mib['m2gen']:7.0f}",
            flush=True,
        )
    if out:
        with open(out, "w") as file:
            json.dump({"provenance": provenance(), "results": results}, file, indent=1)


__all__ = ["contenders", "main", "peak_mib"]

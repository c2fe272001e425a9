"""The long convolution on a CPU: m2gen beside torch.fft on whole tensors, scipy.fft and FFTW, H = 768, float32."""

from __future__ import annotations

import ctypes
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import m2gen
from bench import baselines, growth
from bench.fma import copy_gbs, peak_gflops
from bench.timing import interleaved, peak_mib, provenance, ratios, rounded, summary, write
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.testing.operands import operands

POWERS = (1024, 4096, 8192, 16384, 32768)
OTHERS = (784, 6000, 8191, 10007)
CHANNELS = 768
Calls = dict[str, Callable[[], Any]]
_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2  # options of glibc's mallopt


def _problem(n: int, b: int = 1, **more: Any) -> Problem:
    return FftConvProblem(n=n, h=CHANNELS, b=b, **more)


def forward(problem: Problem, everyone: bool = False) -> Calls:
    """The baselines (or torch.fft alone), then m2gen."""
    args = operands(problem)
    u, k, k_rev = args["u"], args["k"], args.get("k_rev")
    if problem.mode == "bidirectional":
        calls: Calls = {"torch.fft": lambda: baselines.torch_fft(u, k, k_rev)}
    else:
        chosen = baselines.available(problem.n) if everyone else {"torch.fft": baselines.torch_fft}
        calls = {name: lambda call=call: call(u, k) for name, call in chosen.items()}
    return calls | {"m2gen": lambda: m2gen.fftconv(**args)}


def backward(problem: Problem) -> Calls:
    """Forward and every gradient."""
    args = operands(problem)
    leaves = [args[name].requires_grad_() for name in ("u", "k")]
    dy = torch.randn_like(args["u"])

    def step(call: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(call(), leaves, dy)

    return {"torch.fft": step(lambda: baselines.torch_fft(*leaves)), "m2gen": step(lambda: m2gen.fftconv(**args))}


def beside(**problems: Problem) -> Calls:
    """m2gen on several problems."""
    every = {name: operands(problem) for name, problem in problems.items()}
    return {name: lambda args=args: m2gen.fftconv(**args) for name, args in every.items()}


def two_threads(problem: Problem) -> Calls:
    args = operands(problem)

    def call(threads: int) -> Callable[[], Any]:
        def run() -> Tensor:
            torch.set_num_threads(threads)
            y = m2gen.fftconv(**args)
            torch.set_num_threads(1)
            return y

        return run

    return {"1 thread": call(1), "2 threads": call(2)}


def kept(problem: Problem) -> Calls:
    """A filter that is transformed in every call beside a prepared one, whose spectra are kept."""
    args = operands(problem)
    prepared = m2gen.prepare_filter(args["k"], mode=problem.mode)
    return {"in every call": lambda: m2gen.fftconv(**args), "prepared": lambda: m2gen.fftconv(args["u"], prepared)}


def groups() -> dict[str, list[tuple[str, Callable[[], Calls]]]]:
    """Every comparison, by group: (what, its calls); the first call of each is what the others are measured by."""
    at_8k = _problem(8192)
    return {
        "causal": [(str(p), lambda p=p: forward(p)) for n in POWERS for p in (_problem(n), _problem(n, 4))],
        "bidirectional": [
            (str(p), lambda p=p: forward(p)) for p in (_problem(n, mode="bidirectional") for n in POWERS)
        ],
        "other lengths": [(str(p), lambda p=p: forward(p)) for p in map(_problem, OTHERS)],
        "libraries": [(str(at_8k), lambda: forward(at_8k, everyone=True))],
        "forward and backward": [(str(p), lambda p=p: backward(p)) for n in (1024, 8192) for p in (_problem(n),)],
        "layouts": [
            (str(p), lambda p=p: beside(BHL=p, BLH=replace(p, layout="BLH"))) for p in map(_problem, (1024, 8192))
        ],
        "dtypes": [
            (str(p), lambda p=p: beside(fp32=p, bf16=replace(p, dtype="bf16"))) for p in (at_8k, _problem(8192, 4))
        ],
        "threads": [(str(p), lambda p=p: two_threads(p)) for p in (at_8k, _problem(8192, 4))],
        "filter": [(str(p), lambda p=p: kept(p)) for p in map(_problem, (512, 1024))],
        "long": [
            (str(p), lambda p=p: forward(p)) for p in (FftConvProblem(n=2**20, h=4), FftConvProblem(n=2**22, h=1))
        ],
        **growth.groups(),
    }  # fmt: skip


def peak(text: str, name: str) -> float:
    """Peak memory of one call beyond its inputs and its output, in a process of its own, in MiB."""
    code = (
        "import sys, torch; from bench.cpu import forward, peak_mib; from m2gen.planner.problem import Problem;"
        "from m2gen.runtime.build import scratch; torch.set_num_threads(1);"
        "warm = parse(sys.argv[1].replace(sys.argv[3], 'h=1')); forward(warm)[sys.argv[2]]();"
        "scratch._free.clear(); print(peak_mib(forward(parse(sys.argv[1]))[sys.argv[2]]))"
    )
    problem = parse(text)
    words = [sys.executable, "-c", code, text, name, f"h={problem.h}"]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    return float(run.stdout) - problem.b * problem.h * problem.n * 4 / 2**20


def gflops(problem: Problem, ms: float) -> float:
    """Rate of 5 N log2 N a complex transform of N = n points: two for each row, one for each filter."""
    flop = problem.h * (2 * problem.b + 1) * 5 * problem.n * math.log2(problem.n)
    return flop / ms / 1e6


def measure(group: str, text: str, calls: Calls, rounds: int) -> dict[str, Any]:
    times = interleaved(calls, rounds)
    first, *others = times
    row: dict[str, Any] = {"group": group, "problem": text}
    row["ms"] = {name: summary(values) for name, values in times.items()}
    row["ratio"] = {name: ratios(times[first], times[name]) for name in others}
    row["times"] = rounded(times)
    if group == "dispatch":
        return row
    plan = m2gen.plan(text, "auto")
    row |= {"plan": str(plan), "flop": plan.estimate.flop, "working_set_mib": plan.body.estimate.working_set / 2**20}
    if "m2gen" in times and group != "forward and backward":
        row["peak_mib"] = {name: peak(text, name) for name in ("torch.fft", "m2gen")}
        row["gflops"] = gflops(parse(text), row["ms"]["m2gen"]["median"])
    return row


def show(row: dict[str, Any]) -> None:
    times = ", ".join(f"{name} {ms['median']:.2f}" for name, ms in row["ms"].items())
    gains = ", ".join(f"{name} {r['median']:.2f} ({r['q1']:.2f} .. {r['q3']:.2f})" for name, r in row["ratio"].items())
    more = f"; peak MiB {', '.join(f'{v:.1f}' for v in row['peak_mib'].values())}" if "peak_mib" in row else ""
    rate = f"; {row['gflops']:.0f} GFLOP/s" if "gflops" in row else ""
    print(f"{row['group']:21} {row['problem']:46} ms: {times}; first/other: {gains}{rate}{more}", flush=True)


def settle_allocator(kept: bool) -> None:
    """What becomes of freed memory. As it is with glibc, in the state of a process that has run a while: what is up to
    32 MiB stays, what is larger is mapped anew at every call, and its first touch costs what the system makes it cost
    (ten times as much where a virtual machine has handed idle memory back to its host). Kept: all of it stays with the
    process, for everyone alike, as allocators made for servers do.
    """
    if kept:
        libc = ctypes.CDLL(None)
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**30)):
            if not libc.mallopt(option, value):
                raise RuntimeError(f"mallopt({option}, {value}) was refused")
    torch.zeros(31 * 2**18)


def main(rounds: int, threads: int, out: str | None, only: str | None = None, memory: str = "fresh") -> None:
    torch.set_num_threads(threads)
    settle_allocator(memory == "kept")
    found = provenance() | {"memory": memory, "fma_peak_gflops": peak_gflops(), "copy_gbs": copy_gbs()}
    print(json.dumps(found))
    results = []
    for group, cases in groups().items():
        for text, calls in cases:
            if only is None or only in group:
                results.append(measure(group, text, calls(), rounds))
                show(results[-1])
                write(out, found, results)  # after every row: nothing is lost if a later one fails
    if only is None or only in "error":
        results += growth.error_rows()
        print(*(f"{row['problem']}: {row['error']}" for row in results if row["group"] == "error"), sep="\n")
    write(out, found, results)


__all__ = ["forward", "main", "peak_mib"]

"""How cost grows: time and memory from 256 to 4M points, error with length, and what a call costs by itself.

Every size has the same number of points in all, H = POINTS / N rows of one, so that calls take similar times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import m2gen
from bench import baselines
from m2gen.planner import search
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problem import Problem
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.spectral import Operands
from m2gen.runtime.build.limits import live
from m2gen.testing.operands import operands

SIZES = tuple(2**i for i in range(8, 23))
POINTS = 2**22
ORDERS = (2, 3, 4)  # of the Monarch done by matrix products alone, beside the generated kernel's log N
LOOP = 1000  # calls timed together, where a call takes microseconds
Calls = dict[str, Callable[[], Any]]


def problem(n: int) -> Problem:
    return FftConvProblem(n=n, h=max(1, POINTS // n))


def growth(asked: Problem) -> Calls:
    """torch.fft on whole tensors, the planner's choice, and Monarchs of fixed order."""
    args = operands(asked)
    u, k = args["u"], args["k"]
    calls: Calls = {"torch.fft": lambda: baselines.torch_fft(u, k), "m2gen": lambda: m2gen.fftconv(**args)}
    ranking = search.rank(asked, live(u.device))
    for order in ORDERS:
        plans = (p for p in ranking.plans if p.solver == "composed" and p.body.transform.order == order)
        if (best := next(plans, None)) is not None:
            calls[f"order {order}"] = partial(kernel_of(best).forward, Operands(u, k))
    return calls


def many(call: Callable[[], Any]) -> Callable[[], None]:
    """LOOP calls at once: milliseconds of all are microseconds of one."""

    def run() -> None:
        for _ in range(LOOP):
            call()

    return run


def dispatch() -> Calls:
    """Operators on next to nothing: PyTorch's own, and m2gen's, in evaluation and in training."""
    x, w, taps, filters = torch.randn(1, 4), torch.randn(4, 4), torch.randn(4, 3), torch.randn(4, 16)
    seq, short = torch.randn(1, 4, 16), torch.randn(1, 4, 8)
    trained = seq.clone().requires_grad_()

    def plain(call: Callable[[], Any]) -> Callable[[], None]:
        with_loop = many(call)

        def run() -> None:
            with torch.no_grad():
                with_loop()

        return run

    return {
        "torch: x * x": plain(lambda: x * x),
        "torch: linear": plain(lambda: F.linear(x, w)),
        "torch: conv1d": plain(lambda: F.conv1d(short, taps[:, None], padding=2, groups=4)),
        "torch: rfft, product, irfft": plain(lambda: baselines.torch_fft(seq, filters)),
        "m2gen: depthwise_conv1d": plain(lambda: m2gen.depthwise_conv1d(short, taps)),
        "m2gen: blockdiag_linear": plain(lambda: m2gen.blockdiag_linear(x, w[None])),
        "m2gen: fftconv": plain(lambda: m2gen.fftconv(seq, filters)),
        "m2gen: fftconv, gradients on": many(lambda: m2gen.fftconv(trained, filters)),
    }


def errors(asked: Problem) -> dict[str, float]:
    """Root-mean-square errors against float64, relative to the result's own: float32, and 16-bit tensors."""
    args = operands(asked)
    u, k = args["u"], args["k"]
    exact = baselines.torch_fft(u.double(), k.double())

    def error(y: Tensor) -> float:
        return ((y.double() - exact).norm() / exact.norm()).item()

    found = {"torch.fft": error(baselines.torch_fft(u, k)), "m2gen": error(m2gen.fftconv(u, k))}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        half = u.to(dtype)
        exact = baselines.torch_fft(half.double(), k.double())  # of the same input: rounding that is not ours
        found[f"m2gen {name}"] = error(m2gen.fftconv(half, k))
    return found


def groups() -> dict[str, list[tuple[str, Callable[[], Calls]]]]:
    return {
        "growth": [(str(p), partial(growth, p)) for p in map(problem, SIZES)],
        "dispatch": [(f"{LOOP} calls", dispatch)],
    }


def error_rows() -> list[dict[str, Any]]:
    asked = [FftConvProblem(n=n, h=min(32, max(1, 2**22 // n))) for n in SIZES]
    return [{"group": "error", "problem": str(p), "error": errors(p)} for p in asked]

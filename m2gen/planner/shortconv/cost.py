"""What a short convolution costs: formulas that print and plan alike (as in planner/fftconv/formulas.py), and their
numbers.

Seconds are FLOP / rate + bytes / bandwidth + calls. Every figure is an estimate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.step import NUMBERS, Arithmetic, Cost, Estimate

LEGEND = (
    "c numbers convolved, w taps, x numbers in, y numbers out, k numbers of filters and biases, e bytes of a number, "
    "a bytes of a number in the arithmetic, A passes over what comes in before (offset, mask), G 1 with a gate, T 1 "
    "where the results are turned behind, X rate of multiply-adds from cache, D memory bandwidth, W bandwidth of "
    "temporaries, t cost of a call"
)
NOTES = (
    "Every figure is an estimate of the cost model. Each tap of a generated kernel costs a load, which is half of the "
    "rate of products in registers."
)


class Values(NamedTuple):
    """The symbols of LEGEND: numbers to plan with, or sympy symbols to print."""

    c: Any
    w: Any
    x: Any
    y: Any
    k: Any
    e: Any
    a: Any
    G: Any
    T: Any
    X: Any
    D: Any
    W: Any
    t: Any
    A: Any = 0


def values(problem: ShortconvProblem, limits: DeviceLimits, native: bool) -> Values:
    dtype = DTYPES[problem.dtype]
    convolved = problem.b * problem.channels * problem.outputs
    slower = limits.fp64_ratio if problem.dtype == "fp64" else 1.0
    wide = DTYPES[dtype.compute].bytes
    return Values(
        c=convolved,
        w=problem.width,
        x=problem.numbers_in,
        y=problem.numbers_out,
        k=problem.channels * (problem.width + problem.bias),
        e=dtype.bytes,
        a=wide,
        G=int(problem.gated),
        T=int(problem.to != ""),
        X=limits.matrix32 * slower / 2,
        D=limits.native_stream(problem.least_bytes) if native else limits.dram_bandwidth,
        W=limits.elementwise * limits.bandwidth(2 * convolved * wide),
        t=limits.native_call or limits.call_seconds if native else limits.call_seconds,
        A=int(problem.offset) + int(problem.masked),
    )


def native(v: Values, a: Arithmetic) -> Cost:
    """One generated kernel: what comes in is read once for all taps; copies before, and one that turns the results."""
    flop = 2 * v.c * v.w + v.G * v.c / 3
    users = v.e * (v.x + v.y + v.k)
    beside = 2 * v.e * (v.T * v.y + v.A * v.x)
    seconds = flop / v.X + users / v.D + beside / v.W + (1 + v.T + v.A) * v.t
    return Cost(flop, users + beside, 1 + v.T + v.A, users + beside / 2, seconds)


def library(v: Values, a: Arithmetic) -> Cost:
    """A padded copy of what comes in, a multiply-add over memory for each tap, a copy of the sums; a gate behind."""
    flop = 2 * v.c * v.w + v.G * v.c / 3
    users = v.e * (v.x + v.y + v.k)
    between = v.a * (v.x + (3 * v.w + 1) * v.c) + v.G * v.e * 5 * v.c / 3 + 2 * v.A * v.e * v.x
    calls = v.w + 3 + 2 * v.G + v.A
    return Cost(flop, users + between, calls, users + v.a * (v.x + v.c), users / v.D + between / v.W + calls * v.t)


def estimate(problem: ShortconvProblem, limits: DeviceLimits, native_: bool) -> Estimate:
    formula = native if native_ else library
    return Estimate(*map(float, formula(values(problem, limits, native_), NUMBERS)))

"""What a gate costs: formulas that print and plan alike (as in planner/fftconv/formulas.py), and their numbers.

Seconds are operations / rate + bytes / bandwidth + calls. Every figure is an estimate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.step import NUMBERS, Arithmetic, Cost, Estimate

LEGEND = (
    "y numbers of the result, e bytes of a number, A operations of an activation, X rate of such operations, D memory "
    "bandwidth, W bandwidth of temporaries, t cost of a call"
)
NOTES = "Every figure is an estimate of the cost model. An activation counts for its polynomial and a product."
_OPERATIONS = {None: 1, "relu": 2, "silu": 24, "gelu": 40}  # of a number, in the kernels' own polynomials


class Values(NamedTuple):
    """The symbols of LEGEND: numbers to plan with, or sympy symbols to print."""

    y: Any
    e: Any
    A: Any
    X: Any
    D: Any
    W: Any
    t: Any


def values(problem: GateProblem, limits: DeviceLimits, native: bool) -> Values:
    each = DTYPES[problem.dtype].bytes
    rate = limits.matrix32 if native else limits.vector32 * 4
    return Values(
        y=problem.numbers,
        e=each,
        A=_OPERATIONS[problem.activation],
        X=rate * (limits.fp64_ratio if problem.dtype == "fp64" else 1.0),
        D=limits.native_stream(problem.least_bytes) if native else limits.dram_bandwidth,
        W=limits.elementwise * limits.bandwidth(problem.numbers * each),
        t=limits.native_call or limits.call_seconds if native else limits.call_seconds,
    )


def native(v: Values, a: Arithmetic) -> Cost:
    """One generated kernel: both halves are read once, the result is written."""
    flop, moved = v.y * v.A, 3 * v.y * v.e
    return Cost(flop, moved, 1, moved, flop / v.X + moved / v.D + v.t)


def library(v: Values, a: Arithmetic) -> Cost:
    """The activation into memory of its own, and a product."""
    flop, users, between = v.y * v.A, 3 * v.y * v.e, 2 * v.y * v.e
    return Cost(flop, users + between, 2, users + between / 2, flop / v.X + users / v.D + between / v.W + 2 * v.t)


def estimate(problem: GateProblem, limits: DeviceLimits, native_: bool) -> Estimate:
    formula = native if native_ else library
    return Estimate(*map(float, formula(values(problem, limits, native_), NUMBERS)))

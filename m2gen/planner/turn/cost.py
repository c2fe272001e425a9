"""What a turning copy costs: formulas that print and plan alike (as in planner/fftconv/formulas.py)."""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.planner.step import NUMBERS, Arithmetic, Cost, Estimate
from m2gen.planner.turn.problem import TurnProblem

# times that PyTorch's copy takes on a GPU beside one at the memory's bandwidth: measured 0.17 to 0.19 ms for 25 M
# numbers of 16 bits on an H100 (2026-11-26, torch 2.11), whose memory gives 3.0 TB/s
_LIBRARY_ON_GPU = 5.4

LEGEND = "m bytes of the tensor, S times that a copy by short pieces takes, D memory bandwidth, t cost of a call"
NOTES = "Every figure is an estimate of the cost model."


class Values(NamedTuple):
    """The symbols of LEGEND: numbers to plan with, or sympy symbols to print."""

    m: Any
    S: Any
    D: Any
    t: Any


def values(problem: TurnProblem, limits: DeviceLimits) -> Values:
    slower = _LIBRARY_ON_GPU if limits.kind == "gpu" else 1.0
    return Values(problem.least_bytes / 2, slower, limits.dram_bandwidth, limits.call_seconds)


def library(v: Values, a: Arithmetic) -> Cost:
    """PyTorch's copy."""
    return Cost(0, 2 * v.m, 1, 2 * v.m, 2 * v.m * v.S / v.D + v.t)


def estimate(problem: TurnProblem, limits: DeviceLimits) -> Estimate:
    return Estimate(*map(float, library(values(problem, limits), NUMBERS)))

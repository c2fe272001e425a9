"""Exponents of growth by least squares on logarithms, and intervals of medians by resampling."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Power(NamedTuple):
    """y = scale x^exponent; `error` is the exponent's standard error."""

    exponent: float
    error: float
    scale: float

    def __call__(self, x: float) -> float:
        return self.scale * x**self.exponent


def power(xs: Sequence[float], ys: Sequence[float]) -> Power:
    """The power law nearest to positive points, in the squares of logarithms. Three points at least."""
    logs = [(math.log(x), math.log(y)) for x, y in zip(xs, ys, strict=True)]
    if len(logs) < 3:
        raise ValueError(f"an exponent needs 3 points, not {len(logs)}")
    mid_x, mid_y = (statistics.fmean(side) for side in zip(*logs, strict=True))
    spread = sum((x - mid_x) ** 2 for x, _ in logs)
    slope = sum((x - mid_x) * (y - mid_y) for x, y in logs) / spread
    rest = sum((y - mid_y - slope * (x - mid_x)) ** 2 for x, y in logs)
    return Power(slope, math.sqrt(rest / (len(logs) - 2) / spread), math.exp(mid_y - slope * mid_x))


def median_interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """95 % of the medians of samples drawn with replacement: the same values give the same interval."""
    if len(values) < 2:
        raise ValueError("an interval needs 2 values")
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[draws * 25 // 1000], medians[draws * 975 // 1000 - 1]

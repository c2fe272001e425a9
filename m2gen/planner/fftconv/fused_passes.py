"""Convolutions whose forward pass is one kernel on chip, and whose gradients are faster in passes over memory.

On chip the filter's gradient needs both spectra and its sums at once, and from 4096 points on registers do not hold
them: that takes launches of their own, each of which reads all that it needs anew. In passes the rows are short enough
for one kernel of all gradients.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.passes import plans
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import Conv, FusedConv
from m2gen.planner.fftconv.steps_passes import PassesConv

SMALLEST = 2**12  # points of a ring


def in_passes(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, conv: FusedConv) -> PassesConv | None:
    """The step for the gradients of such a plan; None where its own kernels are estimated faster."""
    if spec.size < SMALLEST:
        return None
    seconds, back = quickest(replace(problem, add=False), limits)
    return back if back is not None and seconds < _behind(problem, limits, conv) else None


@lru_cache(maxsize=1024)
def quickest(problem: FftConvProblem, limits: DeviceLimits) -> tuple[float, PassesConv | None]:
    """The passes that take the least time for the gradients, and their seconds."""
    bodies = [plan.body for plan in plans(problem, limits, SMALLEST)]
    found = [(_behind(problem, limits, body), body) for body in bodies if isinstance(body, PassesConv)]
    return min(found, key=lambda one: (one[0], one[1].choice), default=(0.0, None))


def _behind(problem: FftConvProblem, limits: DeviceLimits, conv: Conv) -> float:
    return sum(one.seconds for one in conv.launches(problem, limits, gradients=True) if one.back)

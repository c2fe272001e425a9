"""Convolutions whose forward pass is one kernel on chip, and whose gradients are faster in passes over memory.

On chip the filter's gradient needs both spectra and its sums at once, and from 4096 points on registers do not hold
them: that takes launches of their own, each of which reads all that it needs anew. In passes the rows are short enough
for one kernel of all gradients.
"""

from __future__ import annotations

from dataclasses import replace

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.passes import LEAST, quickest
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_passes import PassesConv


def in_passes(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, conv: FusedConv) -> PassesConv | None:
    """The step for the gradients of such a plan; None where its own kernels are estimated faster."""
    if spec.size < LEAST:
        return None
    seconds, back = quickest(replace(problem, add=False), limits)
    return back if back is not None and seconds < conv.seconds_behind(problem, limits) else None

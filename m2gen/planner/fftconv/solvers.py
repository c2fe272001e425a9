"""The ways of doing a long convolution, in the order of preference."""

from __future__ import annotations

from m2gen.planner.fftconv.composed import Composed
from m2gen.planner.fftconv.fused import Fused
from m2gen.planner.fftconv.library import Library
from m2gen.planner.fftconv.native import Native
from m2gen.planner.fftconv.passes import Passes

SOLVERS = (Library(), Composed(), Fused(), Passes(), Native())

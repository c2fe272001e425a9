"""What a fused long convolution launches, forward and for every gradient: bytes and seconds by the cost model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.planner.fftconv.backward import Backward, estimate, of_gradients
from m2gen.planner.fftconv.cost import fused_estimates
from m2gen.planner.fftconv.filters import FilterKernels
from m2gen.planner.fftconv.filters import estimate as filters_estimate
from m2gen.planner.fftconv.launch_cost import STREAMED
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import of_gradient
from m2gen.planner.fftconv.turns import straight
from m2gen.planner.step import Estimate, Launch

FILTER = "spectrum of the filter"  # a launch, or those, that a filter which is kept does not need again


def of_kernels(
    problem: FftConvProblem,
    limits: DeviceLimits,
    spec: FftConvSpec,
    dk: FftConvSpec,
    gradients: bool,
    filters: FilterKernels,
    bwd: Iterable[Backward] = (),
    largest: LargestSpec | None = None,
    turned: bool = False,
) -> tuple[Launch, ...]:
    """The convolution and, with `gradients`, those of every operand; the spectrum of the filter is a step of its own,
    and is made again for the gradients, before which `largest` goes. `turned`: what stands between turns, which have
    the gates."""
    singly = of_gradients(problem, spec, dk, bwd, turned)
    problem = straight(problem) if turned else problem
    forward = _launch(spec.name, fused_estimates(problem, spec, limits)[1])
    behind = _behind(replace(problem, add=False), limits, spec, singly, filters, bwd) if gradients else ()
    first = [] if largest is None or not gradients else [of_largest(largest, problem, limits)]
    return (forward, *(replace(one, back=True) for one in (*first, *behind)))


def _behind(
    problem: FftConvProblem,
    limits: DeviceLimits,
    spec: FftConvSpec,
    singly: Iterable[FftConvSpec],
    filters: FilterKernels,
    bwd: Iterable[Backward],
) -> Iterator[Launch]:
    of_filter, _ = filters.estimates(problem, limits, fused_estimates(problem, replace(spec, add=False), limits))
    of_taps = (
        filters_estimate(filters.back, problem, limits) if filters.back else of_filter
    )  # by PyTorch: as many bytes
    yield _launch(FILTER, of_filter)
    for kernel in bwd:
        yield _launch(kernel.spec.name, estimate(problem, limits, kernel.spec, kernel.programs))
    for one in (one for one in singly if one.part != "bwd"):
        of = replace(problem, pre_gate=one.pre_gate, post_gate=one.post_gate)
        count = of_gradient(problem, limits, spec, one) if one.part == "dk" else 0
        yield _launch(one.name, fused_estimates(of, one, limits, count=count)[1])
    yield _launch("taps of the filter's gradient", of_taps)  # summed, transformed back and placed


def of_largest(spec: LargestSpec, problem: FftConvProblem, limits: DeviceLimits) -> Launch:
    """What comes backward, and a gate, read as a whole."""
    moved = float(problem.b * problem.h * problem.n * DTYPES[spec.dtype].bytes * (1 + spec.gate))
    return Launch(spec.name, moved, moved / (STREAMED * limits.dram_bandwidth) + limits.call_seconds)


def _launch(name: str, of: Estimate) -> Launch:
    return Launch(name, of.bytes, of.seconds, of.flop)

"""What a fused long convolution launches, forward and for every gradient: bytes and seconds by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.cost import fused_estimates
from m2gen.planner.fftconv.filters import FilterKernels, estimate
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import of_gradient
from m2gen.planner.step import Estimate, Launch

FILTER = "spectrum of the filter"  # a launch, or those, that a filter which is kept does not need again


def of_kernels(
    problem: FftConvProblem,
    limits: DeviceLimits,
    spec: FftConvSpec,
    dk: FftConvSpec,
    gradients: bool,
    filters: FilterKernels,
) -> tuple[Launch, ...]:
    """The convolution and, with `gradients`, those of every operand; the spectrum of the filter is a step of its own,
    and is made again for the gradients."""
    forward = _launch(spec.name, fused_estimates(problem, spec, limits)[1])
    plain, of_plain = replace(problem, add=False), replace(spec, add=False)
    behind = _behind(plain, limits, of_plain, dk, filters) if gradients else ()
    return (forward, *(replace(one, back=True) for one in behind))


def _behind(
    problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, dk: FftConvSpec, filters: FilterKernels
) -> Iterator[Launch]:
    of_filter, _ = filters.estimates(problem, limits, fused_estimates(problem, spec, limits))
    of_taps = estimate(filters.back, problem, limits) if filters.back else of_filter  # by PyTorch: as many bytes
    yield _launch(FILTER, of_filter)

    def conv(pre: bool, post: bool, transpose: bool) -> Launch:
        of, one = replace(problem, pre_gate=pre, post_gate=post), replace(spec, pre_gate=pre, post_gate=post)
        one = replace(one, transpose=transpose)
        return _launch(one.name, fused_estimates(of, one, limits)[1])

    yield conv(problem.post_gate, problem.pre_gate, True)  # of u
    if problem.pre_gate:
        yield conv(problem.post_gate, True, True)
    if problem.post_gate:
        yield conv(problem.pre_gate, True, False)
    taps = replace(dk, pre_gate=problem.pre_gate, post_gate=problem.post_gate, skip=problem.skip)
    count = of_gradient(problem, limits, spec, taps)
    yield _launch(taps.name, fused_estimates(problem, taps, limits, count=count)[1])
    yield _launch("taps of the filter's gradient", of_taps)  # summed, transformed back and placed


def _launch(name: str, of: Estimate) -> Launch:
    return Launch(name, of.bytes, of.seconds, of.flop)

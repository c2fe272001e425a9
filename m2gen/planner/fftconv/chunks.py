"""What the chunked solvers share: transform sizes, channels a chunk, and the plan made of two steps."""

from __future__ import annotations

from collections.abc import Iterator

from m2gen.device.limits import DeviceLimits
from m2gen.planner.factor import padded_sizes
from m2gen.planner.fftconv.cost import estimates, working_set, working_sets
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FilterSpectrum, SpectralConv
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.plan import Plan


def sizes(problem: FftConvProblem) -> Iterator[tuple[int, bool]]:
    """(transform size, fold) worth trying; a circular problem also as it is, without folding."""
    if problem.mode == "circular":
        yield problem.n, False
    for size in padded_sizes(problem.linear_size):
        if problem.mode != "circular" or size != problem.n:
            yield size, problem.mode == "circular"


def fits(problem: FftConvProblem, transform: Transform, limits: DeviceLimits, at_once: int = 1) -> bool:
    """Whether `at_once` channels (one is the least that can be done) fit the device's memory."""
    return working_set(problem, transform, at_once) <= limits.memory_bytes


def channels(problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> int:
    """Channels a chunk: as many as keep the working set within the device's chunk size, in chunks of equal size.

    One chunk may be a quarter larger than that: cutting it would cost more calls than the cache gives back.
    """
    fixed, of_one = working_sets(problem, transform, 0, 1)
    most = max(1, int((limits.chunk_bytes - fixed) // (of_one - fixed)))
    pieces = 1 if problem.h <= 1.25 * most else -(-problem.h // most)
    return -(-problem.h // pieces)


def plan(
    problem: FftConvProblem, limits: DeviceLimits, solver: str, transform: Transform, *, fold: bool, at_once: int
) -> Plan:
    """The plan of two steps with `transform`, `at_once` channels a chunk, its estimates filled in."""
    of_filter, of_conv = estimates(problem, transform, at_once, limits)
    steps = (FilterSpectrum(of_filter, transform), SpectralConv(of_conv, transform, at_once, fold))
    return Plan(problem, limits.arch, solver, steps)

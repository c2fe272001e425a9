"""How many programs a fused kernel is launched with, and what each of them does."""

from __future__ import annotations

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.survey import blocks
from m2gen.planner.fftconv.problem import FftConvProblem

_WAVES = 2  # times the programs that all multiprocessors hold at once


def programs(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec) -> int:
    """On chip: a whole number for each channel. Staged: what all multiprocessors hold at once, one scratch each; of the
    filter's gradient at most one for each channel."""
    tiles = -(-problem.b // spec.batch_rows)
    if spec.staged:
        items = problem.h if spec.part == "dk" else problem.h * tiles
        return min(items, limits.cores * blocks(spec, limits))
    wanted = _WAVES * limits.cores * blocks(spec, limits)
    return problem.h * max(1, min(tiles, wanted // problem.h))


def of_gradient(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, dk: FftConvSpec) -> int:
    """Those of the filter's gradient `dk` beside the forward kernel `spec`, whose programs it takes."""
    count = programs(problem, limits, spec)
    if dk.staged:
        return min(count, problem.h)
    return problem.h if spec.staged else count


def most_tiles(problem: FftConvProblem, spec: FftConvSpec, count: int) -> int:
    """Tiles of the program that has most, of `count` programs."""
    tiles = -(-problem.b // spec.batch_rows)
    if not spec.staged:
        return -(-tiles // max(1, count // problem.h))
    if spec.part == "dk":
        return tiles * -(-problem.h // count)
    return -(-problem.h * tiles // count)

"""What the generated Triton kernels of short convolutions launch for gradients: bytes that are read and written once,
and seconds, by the tiles' estimates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.shortconv import ShortconvSpec
from m2gen.planner.shortconv import tiles
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.step import Launch

_SUM = 4  # bytes of a number of a sum


def of_gradients(
    problem: ShortconvProblem, limits: DeviceLimits, back: ShortconvSpec, parts: int
) -> tuple[Launch, ...]:
    """Of a mixer's form in one kernel, or those of weight and bias alone: the gradient in x is a convolution, which is
    planned by itself."""
    found = list(_kernels(problem, limits, back, parts))
    return tuple(replace(one, back=True) for one in found)


def _kernels(problem: ShortconvProblem, limits: DeviceLimits, back: ShortconvSpec, parts: int) -> Iterator[Launch]:
    one = tiles.estimated(tiles.sizes_of(problem), back, limits)
    if back.part == "ds":
        yield Launch(back.name, one.bytes, one.seconds)
        return
    numbers = problem.channels * (back.sums if back.part == "mix_bwd" else problem.width + 1)
    adding = parts > 1
    sums = numbers * _SUM * (2 * parts + 1 if adding else 1)
    yield Launch(back.name, one.bytes - sums * adding + numbers * _SUM * parts * adding, one.seconds)
    if adding:
        moved = float(numbers * (_SUM * parts + DTYPES[problem.dtype].bytes))
        yield Launch("add_parts", moved, limits.call_seconds + moved / limits.dram_bandwidth)

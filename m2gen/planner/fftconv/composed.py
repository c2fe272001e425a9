"""Order-p Monarch transforms as batched matrix products: any order, any radices, for every padded size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.planner.factor import balanced, max_order
from m2gen.planner.fftconv import chunks
from m2gen.planner.fftconv.cost import working_set
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Composed:
    name: str = "composed"

    def reject(self, problem: FftConvProblem, limits: DeviceLimits) -> str | None:
        if any(chunks.fits(problem, transform, limits) for transform, _ in _transforms(problem)):
            return None
        least = min((transform for transform, _ in _transforms(problem)), key=lambda at: working_set(problem, at, 1))
        return (
            f"one channel and the DFT matrices of radices {'x'.join(map(str, least.radices))} need "
            f"{working_set(problem, least, 1) / 2**30:.1f} GiB of {limits.memory_bytes / 2**30:.1f} GiB memory"
        )

    def left_out(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for transform, fold in _transforms(problem):
            if chunks.fits(problem, transform, limits):
                at_once = chunks.channels(problem, transform, limits)
                yield chunks.plan(problem, limits, self.name, transform, fold=fold, at_once=at_once)


def _transforms(problem: FftConvProblem) -> Iterator[tuple[Transform, bool]]:
    """Every order's balanced radices for every padded size: a few dozen to a hundred."""
    for size, fold in chunks.sizes(problem):
        for order in range(1, max_order(size) + 1):
            yield Transform("monarch", size, balanced(size, order)), fold

"""The FFT library, in chunks of channels: in cache on a CPU, within a bound on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.planner.fftconv import chunks
from m2gen.planner.fftconv.cost import working_set
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Library:
    name: str = "library"

    def reject(self, problem: FftConvProblem, limits: DeviceLimits) -> str | None:
        if any(chunks.fits(problem, _transform(size), limits) for size, _ in chunks.sizes(problem)):
            return None
        least = min(working_set(problem, _transform(size), 1) for size, _ in chunks.sizes(problem))
        return f"one channel needs {least / 2**30:.1f} GiB of {limits.memory_bytes / 2**30:.1f} GiB memory"

    def left_out(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for size, fold in chunks.sizes(problem):
            transform = _transform(size)
            for at_once in _channels(problem, transform, limits):
                if chunks.fits(problem, transform, limits, at_once):
                    yield chunks.plan(problem, limits, self.name, transform, fold=fold, at_once=at_once)


def _transform(size: int) -> Transform:
    return Transform("fft", size, ())


def _channels(problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> list[int]:
    """The chunk that fits, and two and four channels, as a lone row can be slow (limits.fft_rows); half and twice of it
    where it has to fit a cache, which is a guess, and not a bound of memory, which is a choice."""
    fitting = chunks.channels(problem, transform, limits)
    guesses = (fitting // 2, 2 * fitting) if limits.kind == "cpu" else ()
    wanted = (max(fitting, 1), max(fitting, 2), max(fitting, 4), *guesses)
    return list(dict.fromkeys(min(problem.h, most) for most in wanted if most))

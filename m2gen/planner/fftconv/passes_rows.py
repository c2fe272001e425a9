"""The kernels between the passes over a large ring, which do the convolutions of its rows, forward and backward.

The filter's spectrum stands in the order of the forward kernel's radices, so a kernel of several gradients has the
same. It reads scratch of both, u * pre and dy * post, once, and writes what comes of each over it: four units of
traffic where kernels of one gradient each take six.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import RADICES, FftConvSpec
from m2gen.kernels.rows import RowsSpec
from m2gen.kernels.survey import variants
from m2gen.planner.fftconv.backward import Backward
from m2gen.planner.fftconv.passes_cost import at_once, rows_estimate
from m2gen.planner.fftconv.problem import FftConvProblem

ONE_EACH = 1.1  # times that a kernel has to be faster whose gradients take one kernel each
INNER = tuple(2**power for power in range(8, 14))  # points of a row
_MANY, _ROWS = 64, 64  # spectra for each multiprocessor, and rows of scratch to each, that kernels are chosen for


@lru_cache(maxsize=4096)
def on_chip(size: int, compute: str, part: str, limits: DeviceLimits) -> FftConvSpec | None:
    """The kernel for the rows: the cheapest by the estimate of a large batch, forward one with whose radices there is a
    kernel of several gradients unless others are clearly cheaper. Transforms are not stacked: what is then a complex
    row are rows of the batch that do not follow one another."""
    dtype = "bf16" if compute == "bf16" else compute
    given = {"ring": "cyclic", "n1": 16, "n2": 16, "dtype": dtype, "compute": compute, "full": True}
    like = RowsSpec(part="dk" if part == "dk" else "fwd", **given)  # type: ignore[arg-type]
    shapes = [replace(like, n1=n1, n2=size // n1) for n1 in RADICES if size // n1 in RADICES]
    found = {one: _seconds(one, limits) for shape in shapes for one in variants(shape, limits)}
    if part == "fwd":
        least = min(found.values(), default=0.0)
        several = {one: of for one, of in found.items() if of <= ONE_EACH * least and _several(one, limits)}
        found = several or found
    return min(found, key=lambda one: (found[one], one.name), default=None)


def with_range(spec: FftConvSpec, ranged: bool) -> FftConvSpec:
    """The kernel that sums the filter's gradient, of what was brought into range before it or of what was not."""
    return replace(spec, ranged=ranged) if isinstance(spec, RowsSpec) else spec


def results(problem: FftConvProblem, wrap: bool) -> tuple[str, ...]:
    """What one kernel of several gradients gives: on a circle that is wrapped onto a longer ring the transpose reads
    other places than the convolution does, which is then a launch of its own."""
    return ("du", "conv", "dk") if problem.post_gate and not wrap else ("du", "dk")


@lru_cache(maxsize=4096)
def together(
    spec: FftConvSpec, dk: FftConvSpec, wanted: tuple[str, ...], channels: int, batch: int, limits: DeviceLimits
) -> Backward | None:
    """The kernel of these gradients beside the forward kernel, for launches on `batch` rows of scratch to each of
    `channels` spectra; None where the compiler gave none, or one of each is quicker."""

    def seconds(one: FftConvSpec, count: int = 0) -> float:
        return rows_estimate(spec.size, channels, batch, one, limits, count).seconds

    choices = [
        (seconds(one, count), Backward(one, count))
        for one in _of_several(spec, wanted, limits)
        for count in _counts(one, channels, limits)
    ]
    singly = seconds(dk) + (len(wanted) - 1) * seconds(spec)
    least, best = min(choices, key=lambda choice: (choice[0], choice[1].spec.name), default=(singly, None))
    return best if least < singly else None


def _counts(spec: FftConvSpec, channels: int, limits: DeviceLimits) -> list[int]:
    """How many programs may share the channels: whole times those that a device holds at once, or one each."""
    once = at_once(spec, limits, waves=1)
    return sorted({min(channels, waves * once) for waves in (1, 2, 3, 4, 8)})


def _several(spec: FftConvSpec, limits: DeviceLimits) -> bool:
    return bool(_of_several(spec, ("du", "dk"), limits))


def _of_several(spec: FftConvSpec, wanted: tuple[str, ...], limits: DeviceLimits) -> list[FftConvSpec]:
    return list(variants(replace(spec, part="bwd", results=wanted), limits))


@lru_cache(maxsize=4096)
def _seconds(spec: FftConvSpec, limits: DeviceLimits) -> float:
    return rows_estimate(spec.size, _MANY * limits.cores, _ROWS, spec, limits).seconds

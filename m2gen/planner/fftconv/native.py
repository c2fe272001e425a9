"""One generated C++ kernel for a CPU: real rows, alone or a channel a lane, on the negacyclic ring, by small radices.

The ring t^(2 M) = -1 of 2 M places holds any problem whose linear result fits, 2 M >= n + max(lo, hi); where the
sequence fits its first M places, the first pass reads real numbers and the last writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.fftconv_cpp import REAL, FftConvCppSpec, codelet, idle
from m2gen.planner.factor import largest_prime, prime_factors
from m2gen.planner.fftconv.cost import native_estimates
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FilterSpectrum
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.languages import no_cpp
from m2gen.planner.plan import Plan

LARGEST_PRIME = 7
SMALLEST = 16  # places of a result; below, the least ring's rounding passes the tolerance of so short a sum
LEAST_VECTOR = 16  # bytes; narrower units are given such vectors by the compiler
_KEPT_BYTES = 8 * 2**20  # of spectra that stay in cache from call to call; larger ones are read slower than made
_GROUP_BYTES = 48 * 2**20  # of the spectra and rows of channels done together
_NEAR_BYTES = 4 * 2**20  # of scratch, up to which more than a vector of channels are done together
_WIDEST = 4  # vectors of channels: runs of 256 bytes of each time step
_LANES_BYTES = 2**19  # of a ring whose lanes are channels: half of a second-level cache of 1 MiB
_RUN = 128  # bytes of each time step that such a ring reads, a pair of lines


@dataclass(frozen=True, slots=True)
class Native:
    name: str = "native"

    def reject(self, problem: FftConvProblem, limits: DeviceLimits) -> str | None:
        if why := no_cpp(limits):
            return why
        if problem.linear_size < SMALLEST:
            return (
                f"{problem.linear_size} places are fewer than {SMALLEST}: a whole ring would round more than their sum"
            )
        candidates = self.candidates(problem, limits)
        if not any(plan.body.estimate.working_set <= limits.memory_bytes for plan in candidates):
            size = -(-problem.linear_size // 2)
            return f"a ring of {size} points does not fit {limits.memory_bytes / 2**30:.1f} GiB memory"
        return None

    def left_out(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        compute = DTYPES[problem.dtype].compute
        vector = max(LEAST_VECTOR, limits.vector_bytes) // REAL[compute][1]
        for leaves in smooth(-(-problem.linear_size // (2 * 4 * vector))):
            if 4 * vector * leaves * 16 <= limits.memory_bytes:
                for radices in orders(leaves):
                    yield from _plans(problem, limits, *_kernels(problem, radices, vector, compute))
        if problem.layout == "BLH":
            yield from _of_lanes(problem, limits, vector, compute)


def _of_lanes(problem: FftConvProblem, limits: DeviceLimits, vector: int, compute: str) -> Iterator[Plan]:
    """Plans that transform a channel in each lane, where there is a vector of channels and its ring stays in cache."""
    vector_bytes = vector * REAL[compute][1]
    leaf = codelet(vector_bytes)
    for leaves in smooth(-(-problem.linear_size // (2 * leaf))):
        widths = [
            wide
            for wide in (4, 2, 1)
            if wide * vector <= problem.h
            and 2 * leaf * leaves * wide * vector_bytes <= _LANES_BYTES
            and (wide == 1 or wide * vector * DTYPES[problem.dtype].bytes <= _RUN)
        ]
        if widths:
            wide = min(widths, key=lambda wide: idle(problem.h, wide * vector))
            rising = tuple(sorted(radices_of(leaves)))
            yield from _plans(problem, limits, *_kernels(problem, rising, vector, compute, leaf, wide))


@lru_cache(maxsize=4096)
def smooth(least: int) -> tuple[int, ...]:
    """Sizes from `least` to the next power of two without large prime factors; what lies between two costs more."""
    power = 1 << (least - 1).bit_length()
    found = [power]
    for odd in range(3, 64, 2):
        twos = power.bit_length() - odd.bit_length()
        if largest_prime(odd) <= LARGEST_PRIME and twos >= 0:
            found += [odd << at for at in (twos - 1, twos) if at >= 0 and least <= odd << at < power]
    return tuple(sorted(set(found)))


@lru_cache(maxsize=4096)
def orders(leaves: int) -> tuple[tuple[int, ...], ...]:
    """The ways of splitting that are worth a measurement, the likely best first.

    Radix 8 before 4 before 2: the fewer passes, the fewer stores. Odd radices first or last, fours before eights or
    behind them, and no eights at all: which is best differs by a few percent from size to size.
    """
    odd = tuple(sorted((prime for prime in prime_factors(leaves) if prime > 2), reverse=True))
    twos = prime_factors(leaves).count(2)
    eights, rest = divmod(twos, 3)
    if rest == 1 and eights:
        eights, rest = eights - 1, 4
    few = (*[8] * eights, *[4] * (rest // 2), *[2] * (rest % 2))
    fours = (*[4] * (twos // 2), *[2] * (twos % 2))
    split = [(few, "first"), (few, "last"), (few[::-1], "first"), (fours, "first")]
    if few == (4, 4):
        split.insert(0, ((8, 2), "first"))
    found = [((*odd, *twos_) if where == "first" else (*twos_, *odd)) or (1,) for twos_, where in split]
    return tuple(dict.fromkeys(found))


def radices_of(leaves: int) -> tuple[int, ...]:
    """The first of `orders`."""
    return orders(leaves)[0]


def _kernels(
    problem: FftConvProblem, radices: tuple[int, ...], vector: int, compute: str, leaf: int | None = None, wide: int = 0
) -> tuple[FftConvCppSpec, FftConvCppSpec, Transform]:
    """The kernel of the convolution and that of its gradients, and their transform."""
    behind, ahead = problem.taps
    points = (leaf or 4 * vector) * prod(radices)
    half = problem.n + (ahead if problem.mode == "circular" else 0) <= points
    half_filter = behind == 0 and ahead < points
    return _remembered(radices, wide, vector, problem.dtype, compute, half, half_filter, problem.add)


@lru_cache(maxsize=4096)
def _remembered(
    radices: tuple[int, ...], wide: int, vector: int, dtype: str, compute: str, half: bool, half_filter: bool, add: bool
) -> tuple[FftConvCppSpec, FftConvCppSpec, Transform]:
    spec = FftConvCppSpec(
        part="fwd",
        radices=radices,
        wide=wide,
        vector=vector,
        dtype=dtype,
        compute=compute,
        half=half,
        half_filter=half_filter,
        add=add,
    )
    return spec, replace(spec, part="bwd", add=False), Transform("monarch", spec.size, spec.factors)


def _plans(
    problem: FftConvProblem, limits: DeviceLimits, spec: FftConvCppSpec, bwd: FftConvCppSpec, transform: Transform
) -> Iterator[Plan]:
    """Every number of channels worth a measurement; where it is not clear whether kept spectra pay, both ways."""
    fold = problem.mode == "circular"
    kept = 2 * problem.h * spec.size * spec.real_bytes
    doubtful = _KEPT_BYTES // 4 < kept <= 8 * _KEPT_BYTES
    for channels in [spec.group] if spec.wide else _channels(problem, spec):
        of_filter, of_conv = native_estimates(problem, spec, channels, limits)
        for keep in (kept <= _KEPT_BYTES, kept > _KEPT_BYTES)[: 2 if doubtful else 1]:
            conv = NativeConv(of_conv, transform, channels, fold, spec, bwd, keep)
            yield Plan(problem, limits.arch, "native", (FilterSpectrum(of_filter, transform), conv))


def _channels(problem: FftConvProblem, spec: FftConvCppSpec) -> list[int]:
    """Channels done together, the likely best first: where they are neighbours in memory, vectors of them, as memory is
    read by runs of lines; fewer where rings are large."""
    if problem.layout == "BHL":
        return [1]
    fitting = _GROUP_BYTES // (spec.size * spec.real_bytes * 4)
    least = min(spec.vector, max(1, fitting, min(4, problem.h)))
    wide = [n for n in (_WIDEST * spec.vector, _WIDEST // 2 * spec.vector) if least < n <= problem.h]
    near = [n for n in wide if spec.scratch_bytes(n, problem.b) <= _NEAR_BYTES]
    return [*near, least, *(n for n in wide if n not in near)]

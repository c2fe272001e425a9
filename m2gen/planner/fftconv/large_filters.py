"""What makes the spectrum of a filter on a large ring, and takes its gradient back to taps: generated kernels, a launch
for each outer stage and one for the rows that are left, or PyTorch's FFT with the copies around it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.errors import PlanError
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.filter_pass import FilterPassSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.kernels.survey import FAMILIES, ROOM
from m2gen.planner.fftconv.filters import PRECISION, radices_of, with_warps
from m2gen.planner.fftconv.launch_cost import TileLaunch, tile_seconds
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.step import NUMBERS, Arithmetic, Cost, Estimate, Launch, Terms

# By the radix of a pass, as many points as four warps keep in registers without a spill on sm90, and of the compiled
# kernels: (columns of a tile, warps, registers of a thread, instructions for each point that it holds, of a tile).
_KNOBS = {16: (128, 4, 167, 60), 32: (64, 4, 236, 81), 64: (32, 4, 221, 93)}
# Largest radix of a pass: a matrix of 64 x 64 in two TF32 halves spills by thousands where it is an operand of mma.sync
_OUTERMOST = {"wgmma": 64, "tcgen05": 64, "mfma": 64, "mma": 32}
# Instructions of a row on chip, and registers, by the points that a thread holds; of the compiled kernels for sm90.
_OWN, _ROW = 900, 75
_REGISTERS, _MORE, _MOST = 96, 8, 255

Kernel = FilterPassSpec | SpectrumSpec
# Seconds that a program takes to begin and end. What others read first (program_seconds) is in each tile here: matrices
# and twiddles, again for each. Taken so that a program takes what filters.py has for it; from no measurement.
_BEGINS = 1e-6
_NARROWER = 6  # float32 products as three of TF32, at half the rate of 16 bits
LEGEND = (
    "H channels, N points of the ring, Q bytes of a number in the spectrum, v outer stages, r sum of all radices, c "
    "chunks, j seconds of the launches"
)


@dataclass(frozen=True, slots=True)
class LargeFilterKernels:
    """Generated kernels in the order of launches: `passes`, `rows`, and back `rows_back`, `back`; or none and `why`."""

    passes: tuple[FilterPassSpec, ...] = ()
    rows: SpectrumSpec | None = None
    rows_back: SpectrumSpec | None = None
    back: tuple[FilterPassSpec, ...] = ()
    why: str = ""

    @property
    def on_chip(self) -> tuple[SpectrumSpec, SpectrumSpec]:
        """The kernels of the rows, there and back."""
        if self.rows is None or self.rows_back is None:
            raise PlanError("the generated kernels of a filter", f"none: {self.why}", "ask where there are some")
        return self.rows, self.rows_back

    @property
    def forward(self) -> tuple[Kernel, ...]:
        return (*self.passes, self.rows) if self.rows is not None else ()

    @property
    def backward(self) -> tuple[Kernel, ...]:
        return (self.rows_back, *self.back) if self.rows_back is not None else ()

    @property
    def parts(self) -> dict[str, Kernel]:
        """By their names in `m2gen show --part`, outermost stage first."""
        stages = {f"spectrum{level}": one for level, one in enumerate(self.passes)}
        stages |= {f"taps{level}": one for level, one in enumerate(reversed(self.back))}
        rows = {"spectrum": self.rows, "taps": self.rows_back}
        return {**stages, **{name: one for name, one in rows.items() if one is not None}}

    @property
    def line(self) -> str:
        """For `explain`."""
        names = ", ".join(one.name for one in self.forward)
        return f"filter    its spectrum by {names or f'PyTorch: {self.why}'}"

    def transform(self, size: int) -> Transform:
        """That of the filters."""
        if self.rows is None:
            return Transform("fft", size, ())
        return Transform("monarch", size, (*(one.n0 for one in self.passes), self.rows.n1, self.rows.n2))


def kernels(
    problem: FftConvProblem,
    outer: tuple[OuterSpec, ...],
    spec: FftConvSpec,
    dk: FftConvSpec,
    limits: DeviceLimits,
) -> LargeFilterKernels:
    """Those for the spectrum that `spec` reads and the sums that `dk` writes, between passes like `outer`."""
    stages, most = tuple(one.n0 for one in outer), _OUTERMOST[FAMILIES[limits.arch]]
    if max(stages) > most:
        return LargeFilterKernels(why=f"{limits.arch} has no float32 pass of radix {max(stages)}, only to {most}")
    ring = outer[0].ring
    forward, rows = _one("fwd", problem, ring, stages, spec, limits)
    back, rows_back = _one("inverse", problem, ring, stages, dk, limits)
    every: tuple[Kernel, ...] = (*forward, rows, rows_back, *back)
    for one in every:
        needed = one.resources(limits.arch).shared_bytes
        if needed > limits.shared_bytes:
            return LargeFilterKernels(
                why=f"{one.name} takes {needed / 1024:.0f} KiB of {limits.shared_bytes / 1024:.0f} KiB shared memory"
            )
    return LargeFilterKernels(forward, rows, rows_back, back[::-1])


def _one(
    part: Literal["fwd", "inverse"],
    problem: FftConvProblem,
    ring: Literal["cyclic", "causal"],
    stages: tuple[int, ...],
    consumer: FftConvSpec,
    limits: DeviceLimits,
) -> tuple[tuple[FilterPassSpec, ...], SpectrumSpec]:
    """The passes one way, outermost first, and the kernel of the rows. Rows that no block transforms in float32 have
    one more stage, whose radix is the rows' kernel's n0."""
    more, n1, n2 = radices_of(consumer, limits)
    precision = PRECISION[FAMILIES[limits.arch]]
    every = (*stages, more) if more > 1 else stages
    passes = []
    for level, n0 in enumerate(every):
        columns, warps, _, _ = _KNOBS[n0]
        one = FilterPassSpec(
            part=part,
            ring=ring if level == 0 else "cyclic",
            n0=n0,
            n1=prod(every[level + 1 :]),
            n2=n1 * n2,
            columns=columns,
            nested=level > 0,
            last=part == "fwd" and level == len(every) - 1,
            two_sided=problem.taps[0] > 0 and level == 0,
            skip=part == "fwd" and problem.skip and level == 0,
            precision=precision,
            num_warps=warps,
        )
        passes.append(one)
    forward = part == "fwd"
    rows = SpectrumSpec(
        part="fwd_inner" if forward else "inverse_inner",
        n0=more,
        n1=n1,
        n2=n2,
        order=(consumer.n1, consumer.n2),
        compute=consumer.compute if forward else "fp32",
        rows=prod(stages) if forward else 1,
        bounds=(prod(every[:-1]), passes[-1].splits) if forward else (0, 0),
        precision=precision,
    )
    return tuple(passes), with_warps(rows, limits)


# -- what they cost ----------------------------------------------------------------------------------------------------


class LargeFilterValues(NamedTuple):
    """The symbols of LEGEND."""

    H: Any
    N: Any
    Q: Any
    v: Any
    r: Any
    c: Any
    j: Any


def large_filter_cost(v: LargeFilterValues, a: Arithmetic) -> Cost:
    """Taps read and bins written, and float32 rows written and read between launches; complex products of a matrix with
    real and imaginary parts, 8 N r FLOP for each radix r."""
    return Cost(
        flop=8 * v.H * v.N * v.r,
        bytes=v.H * v.N * (4 + 16 * v.v + 2 * v.Q),
        launches=(1 + v.v) * v.c,
        working_set=v.H / v.c * v.N * (8 + 2 * v.Q),
        seconds=v.j,
    )


def values(of: LargeFilterKernels, channels: int, problem: FftConvProblem, limits: DeviceLimits) -> LargeFilterValues:
    """The numbers of the spectrum's launches, `channels` at a time."""
    chunks = -(-problem.h // channels)
    radices = of.transform(of.passes[0].size).radices
    return LargeFilterValues(
        H=problem.h,
        N=of.passes[0].size,
        Q=COMPUTE_BYTES[of.on_chip[0].compute],
        v=len(of.passes),
        r=sum(radices),
        c=chunks,
        j=chunks * sum(one.seconds for one in launches(of.forward, problem.h / chunks, limits)),
    )


def terms(of: LargeFilterKernels, channels: int, problem: FftConvProblem, limits: DeviceLimits) -> Terms:
    return Terms(values(of, channels, problem, limits), large_filter_cost)


def estimate(of: LargeFilterKernels, channels: int, problem: FftConvProblem, limits: DeviceLimits) -> Estimate:
    return Estimate(*map(float, large_filter_cost(values(of, channels, problem, limits), NUMBERS)))


def of_taps(of: LargeFilterKernels, channels: int, problem: FftConvProblem, limits: DeviceLimits) -> Estimate:
    """What the way back to taps costs."""
    chunks = -(-problem.h // channels)
    once = list(launches(of.backward, problem.h / chunks, limits))
    flop, moved, seconds = (chunks * sum(getattr(one, name) for one in once) for name in ("flop", "bytes", "seconds"))
    return Estimate(flop, moved, chunks * len(once), seconds=seconds)


def launches(of: tuple[Kernel, ...], channels: float, limits: DeviceLimits) -> Iterator[Launch]:
    """Those for a chunk of channels, in their order."""
    size = next(one.size for one in of if isinstance(one, FilterPassSpec) and not one.nested)
    begins = replace(limits, program_seconds=_BEGINS)
    for one in of:
        moved = channels * size * _bytes(one)
        radices = one.n0 if isinstance(one, FilterPassSpec) else one.n1 + one.n2
        flop = 8 * channels * size * radices
        seconds = tile_seconds(_launch(one, channels * size, moved, flop, limits), begins)
        yield Launch(one.name, moved, seconds, flop)


def _bytes(one: Kernel) -> int:
    """A point."""
    if isinstance(one, FilterPassSpec):
        return 16 if one.nested else 12
    return 8 + 2 * COMPUTE_BYTES[one.compute]


def _launch(one: Kernel, points: float, moved: float, flop: float, limits: DeviceLimits) -> TileLaunch:
    """As programs that do tiles in turn."""
    needs = one.resources(limits.arch)
    if isinstance(one, FilterPassSpec):
        tile = one.n0 * one.columns
        own = one.blocks // one.splits
        _, _, registers, each = _KNOBS[one.n0]
        instructions = each * tile / needs.threads
    else:
        tile, own = one.n1 * one.n2, 1
        held = tile / needs.threads
        registers = int(min(_MOST, _REGISTERS + _MORE * held))
        instructions = _OWN + _ROW * held
    tiles = max(1, round(points / tile))
    by_registers = limits.registers // (registers * needs.threads)
    blocks = max(1, min(by_registers, (limits.shared_bytes + ROOM) // (needs.shared_bytes + ROOM)))
    return TileLaunch(
        moved=moved,
        tiles=tiles,
        programs=max(1, tiles // own),
        flop=flop / tiles,
        instructions=instructions,
        threads=needs.threads,
        blocks=blocks,
        stages=1,
        products=2 if isinstance(one, FilterPassSpec) else 4,
        narrower=_NARROWER,
    )

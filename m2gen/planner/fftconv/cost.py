"""What a plan's steps cost on a device: the numbers of formulas.py put in, and the working sets that limit chunks."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from m2gen.device.limits import DeviceLimits, target
from m2gen.dtypes import DTYPES
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.fftconv_cpp import FftConvCppSpec, idle
from m2gen.kernels.survey import found, held
from m2gen.planner.factor import largest_prime
from m2gen.planner.fftconv.formulas import (
    BLUESTEIN_ABOVE,
    FORMULAS,
    WORKING_SETS,
    Values,
    monarch_stage,
    transform_work,
    user_bytes,
)
from m2gen.planner.fftconv.launch_cost import (
    STREAMED,
    WRITTEN,
    follow,
    lost,
    scratch_wait,
    spill_factor,
    strided_wait,
    tile_waits,
)
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import most_tiles, programs
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.step import NUMBERS, Estimate


def work_case(size: int) -> tuple[str, int]:
    """Which case of T `size` is, and the size to put in it."""
    if largest_prime(size) <= BLUESTEIN_ABOVE:
        return ("odd" if size % 2 else "even"), size
    points = size if size % 2 else size // 2  # of the complex transform
    return "bluestein", 1 << (2 * points - 2).bit_length()


@lru_cache(maxsize=4096)
def _library_work(size: int) -> float:
    return float(transform_work(*work_case(size), NUMBERS))


def working_set(problem: FftConvProblem, transform: Transform, channels: int) -> float:
    """Bytes in use while `channels` channels of the whole batch are convolved."""
    return working_sets(problem, transform, channels)[0]


def working_sets(problem: FftConvProblem, transform: Transform, *channels: int) -> list[float]:
    """The same for several numbers of channels."""
    sizes, bytes_of = _sizes(problem, transform, 1), WORKING_SETS[transform.kind]
    return [float(bytes_of(sizes, some)) for some in channels]


def fused_values(
    problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits, turned: bool = False, count: int = 0
) -> Values:
    """The numbers of a fused kernel's steps, launched with `count` programs (0: as many as planned for it); float32
    products are three in TF32, at half the 16-bit rate each. `turned`: its sequences are turned before and after."""
    count = count or programs(problem, limits, spec)
    of = _of_kernel(spec, limits.arch, limits.registers, limits.shared_bytes)
    resident = min(count, limits.cores * of.held)  # programs at once
    scratch = float(resident * spec.scratch_bytes)
    waits = tile_waits(of.products, spec.num_stages, limits, spec.staged, spec.full)
    if problem.layout == "BLH" and not turned:
        numbers, moved = _across(problem, spec)
        scratch += resident * moved
        spread = problem.n * problem.h * DTYPES[spec.dtype].bytes
        waits += strided_wait(numbers, of.at_once, spread, scratch, of.threads, limits)
    if spec.staged:
        moved = 8 * spec.size * COMPUTE_BYTES[spec.compute]
        waits += scratch_wait(moved, scratch, of.threads, limits)
    return _sizes(problem, Transform("monarch", spec.size, spec.radices), problem.h)._replace(
        W=limits.bandwidth(spec.size * 8 * limits.cores),
        D=STREAMED * limits.dram_bandwidth,
        t=limits.call_seconds,
        n1=spec.n1,
        n2=spec.n2,
        n0=spec.n0 if spec.staged else 0,
        S=int(spec.staged),
        R=spec.batch_rows,
        s=spec.stack,
        Q=COMPUTE_BYTES[spec.compute],
        X=limits.matrix16 / (6 if spec.compute == "fp32" else 1),
        V=limits.vector32,
        A=of.threads,
        I=of.instructions + of.spills * spill_factor(of.spills, of.threads, of.held, of.shared_bytes, limits),
        f=follow(of.threads, limits, spec.staged),
        l=waits,
        m=limits.cores,
        O=of.held,
        q=count,
        u=most_tiles(problem, spec, count),
        o=limits.program_seconds,
        a=lost(scratch, limits) if spec.staged else 0.0,
        w=turned_bytes(problem, spec) if turned else 0,
    )


def _across(problem: FftConvProblem, spec: FftConvSpec) -> tuple[float, float]:
    """Numbers of a tile's sequences, one that is written as several, and their bytes."""
    places, writes = problem.n * spec.batch_rows, int(spec.part == "fwd")
    reads = 2 + problem.gates + problem.add - writes
    return places * (reads + WRITTEN * writes), places * (reads + writes) * DTYPES[spec.dtype].bytes


class _Kernel(NamedTuple):
    """What there is to know of a kernel whatever the problem and the constants."""

    instructions: int
    spills: int
    shared_bytes: int
    threads: int
    held: int
    products: int  # that follow one another in a tile
    at_once: float  # numbers of a tile that a thread reads together


@lru_cache(maxsize=16384)
def _of_kernel(spec: FftConvSpec, arch: str, registers: int, shared_bytes: int) -> _Kernel:
    """For devices of an architecture that differ in registers and shared memory alone."""
    limits = replace(target(arch), registers=registers, shared_bytes=shared_bytes)
    entry, threads = found(spec, arch), spec.resources().threads
    passes, inner = (2, 4) if spec.part == "fwd" else (1, 2)  # two analyses go side by side
    return _Kernel(
        instructions=entry.instructions if entry else 0,
        spills=entry.spills if entry else 0,
        shared_bytes=spec.resources(arch).shared_bytes,
        threads=threads,
        held=held(spec, limits),
        products=passes * spec.loops[0] + inner * spec.loops[1] if spec.staged else inner,
        at_once=spec.rows * (spec.n0 * spec.columns if spec.staged else spec.held * spec.n2) / threads,
    )


def turned_bytes(problem: FftConvProblem, spec: FftConvSpec) -> int:
    """Bytes of a number of a turned input, whose product with the first gate is rounded as the kernel rounds its
    operands, and of a result that is to be turned, not yet rounded where something is still to come."""
    compute = "bf16" if spec.compute == "bf16_emulated" else spec.compute
    read = compute if problem.pre_gate else problem.dtype
    written = "fp32" if problem.post_gate or problem.add else problem.dtype
    return DTYPES[read].bytes + DTYPES[written].bytes


def fused_estimates(
    problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits, turned: bool = False, count: int = 0
) -> tuple[Estimate, Estimate]:
    """What the filter's spectrum and the fused convolution cost; of a kernel of the filter's gradient, its launch."""
    numbers = fused_values(problem, spec, limits, turned, count)
    steps = ("turned" if turned else "fused", "filter"), _step(spec, turned)
    of_filter, of_conv = (Estimate(*map(float, FORMULAS[step](numbers, NUMBERS))) for step in steps)
    return of_filter, of_conv


def fused_seconds(problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits, count: int = 0) -> float:
    """The seconds of a fused kernel's launch alone."""
    return float(FORMULAS[_step(spec, False)](fused_values(problem, spec, limits, False, count), NUMBERS).seconds)


def _step(spec: FftConvSpec, turned: bool) -> tuple[str, str]:
    return ("turned" if turned else "fused"), ("dk" if spec.part == "dk" else "conv")


def native_values(problem: FftConvProblem, spec: FftConvCppSpec, channels: int, limits: DeviceLimits) -> Values:
    """The numbers of a native kernel's steps; where lanes are channels, idle lanes compute, too."""
    slower = limits.fp64_ratio if spec.compute == "fp64" else 1.0
    across = problem.layout == "BLH"
    transform = Transform("monarch", spec.size, spec.factors)
    operations = spec.operations + _beyond(limits.native_passes, spec.radices)
    resident = 2 * channels - 1 if spec.wide else channels  # spectra, and one ring: of a channel, of a group
    sizes = _sizes(problem, transform, resident)
    return sizes._replace(
        D=limits.native_stream(user_bytes(sizes)),
        t=limits.native_call or limits.call_seconds,
        J=operations * (idle(problem.h, spec.group) if spec.wide else 1.0),
        X=limits.native_rate * limits.native_share(spec.size) * slower,
        L=int(across or problem.gates > 0 or problem.add or spec.dtype != spec.compute),
        Y=(limits.native_across if across else limits.native_numbers) * slower,
    )


@lru_cache(maxsize=4096)
def _beyond(passes: tuple[tuple[int, float], ...], radices: tuple[int, ...]) -> float:
    """What passes cost beyond their FLOP."""
    extra = dict(passes)
    return sum(extra.get(radix, 0.0) for radix in radices)


def native_estimates(
    problem: FftConvProblem, spec: FftConvCppSpec, channels: int, limits: DeviceLimits
) -> tuple[Estimate, Estimate]:
    """What the filter's transform and the convolution cost."""
    numbers = native_values(problem, spec, channels, limits)
    costs = (FORMULAS["native", step](numbers, NUMBERS) for step in ("filter", "conv"))
    of_filter, of_conv = (Estimate(*map(float, cost)) for cost in costs)
    return of_filter, of_conv


@lru_cache(maxsize=4096)
def _squares(radices: tuple[int, ...]) -> float:
    return float(sum(radix * radix for radix in radices))


@lru_cache(maxsize=4096)
def _counted(radices: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Each radix with how often it is there, ascending."""
    return tuple((radix, radices.count(radix)) for radix in sorted(set(radices)))


def _sizes(problem: FftConvProblem, transform: Transform, channels: int) -> Values:
    dtype = DTYPES[problem.dtype]
    return Values(
        B=problem.b,
        H=problem.h,
        n=problem.n,
        N=transform.size,
        C=channels,
        e=dtype.bytes,
        c=DTYPES[dtype.compute].bytes,
        G=problem.gates,
        K=int(problem.skip),
        E=int(problem.add),
        p=transform.order,
        R2=_squares(transform.radices),
        T=_library_work(transform.size) if transform.kind == "fft" else 0.0,
    )


def values(problem: FftConvProblem, transform: Transform, channels: int, limits: DeviceLimits, step: str) -> Values:
    """The numbers of a step, "filter" (its spectrum) or "conv"; only F differs between the two."""
    slower = limits.fp64_ratio if DTYPES[problem.dtype].compute == "fp64" else 1.0
    points = work_case(transform.size)[1] if transform.kind == "fft" else transform.size
    rows = channels if step == "filter" else channels * problem.b
    sizes = _sizes(problem, transform, channels)
    working = float(WORKING_SETS[transform.kind](sizes, channels))
    return Values(  # `_replace` from F to P, in a third of its time
        *sizes[:13],
        limits.fft_rate(points, rows) * slower if transform.kind == "fft" else 1.0,
        limits.matrix32 * slower,
        limits.matrix_unit,
        limits.bandwidth(working),
        limits.dram_bandwidth,
        limits.call_seconds,
        math.ceil(math.log(max(points, 2)) / math.log(limits.fft_pass_points)) if transform.kind == "fft" else 1.0,
        o=limits.program_seconds,
    )


def estimate(problem: FftConvProblem, transform: Transform, channels: int, limits: DeviceLimits, step: str) -> Estimate:
    """What the filter's spectrum (step "filter") or the convolution (step "conv") costs."""
    return _total(transform, values(problem, transform, channels, limits, step), step)


def estimates(
    problem: FftConvProblem, transform: Transform, channels: int, limits: DeviceLimits
) -> tuple[Estimate, Estimate]:
    """What the filter's spectrum and the convolution cost."""
    of_filter = values(problem, transform, channels, limits, "filter")
    of_conv = of_filter if transform.kind == "monarch" else values(problem, transform, channels, limits, "conv")
    return _total(transform, of_filter, "filter"), _total(transform, of_conv, "conv")


def _total(transform: Transform, numbers: Values, step: str) -> Estimate:
    flop, moved, launches, working, seconds = FORMULAS[transform.kind, step](numbers, NUMBERS)
    for radix, count in _counted(transform.radices):  # `Cost.plus`, written out: it takes most of planning
        stage = monarch_stage(numbers, NUMBERS, radix, step)
        flop += count * stage.flop
        moved += count * stage.bytes
        launches += count * stage.launches
        seconds += count * stage.seconds
    return Estimate(float(flop), float(moved), float(launches), float(working), float(seconds))

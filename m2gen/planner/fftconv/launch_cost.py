"""What a launch costs whose programs do tiles of on-chip transforms, and one that only streams.

Such a launch is bound by latency before any unit of the device (H100, 2026-11-26: memory 55 %, matrix units 36 %,
issue 28 % busy at 4096 points). One block's tile takes, from its first instruction to its last,

    I f + F / X + l        I instructions f seconds apart, F FLOP at a multiprocessor's rate X, and l, its waits

and the blocks that a multiprocessor holds at once overlap. So there are seconds that the blocks take one after another,
and seconds that memory, matrix units and issue take together; the launch takes the most of these, softly: the fourth
root of the sum of fourth powers. One formula for numbers and for symbols (explain.py).

Constants of a device stand in its row (device/gpus.py); those here are taken for all, fitted with them to the kernels
of bench/results/2026-11-26-gpu-kernels-h100.json and -profile-h100.json (`m2gen tune --fit --from` says how well).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.planner.step import NUMBERS, Arithmetic

STREAMED = 0.9  # share of the data sheet's memory bandwidth that a copy reaches: 3.02 of 3.35 TB/s on an H100
SPILL = 12  # instructions that one which spills counts as: few warps hide it
THRASH = 0.4  # and by how much more where the L1 cache that shared memory leaves does not hold what is spilled
SPILLED = 4 / 3  # bytes a thread keeps for each instruction that spills: written once, read twice
GROUPS = 2.3  # how much slower instructions follow one another in a block of two warp groups, which wait for each other
OUTER = 2.0  # the same with an outer stage, where more of them read and write memory
FULL = 0.75  # share of the wait for data that is left where nothing is masked (1024 points: 0.271 ms, 0.220 without)
KEPT = 0.7  # share of an L2 cache, or of its half, that keeps what is written and read again: the rest streams through
MISSED = 0.3  # how much longer a number of scratch takes that the L2 cache does not keep
# Of a number read by strides, whose neighbours in memory are other channels':
STRIDED_MISSED = 1.3  # how much longer it takes where the L2 cache does not keep its sector for the others
WRITTEN = 3  # reads that writing one counts as: a part of a sector is written, 16 times over
ADDRESSES = 32  # how many a thread has at once; with more, addresses take its registers
FAR, PAGE = 1.6, 2 * 2**20  # how much longer they take where a sequence is spread over more memory than a page
_GROUP = 128  # threads of a warp group


class Together(NamedTuple):
    """Numbers, or symbols, of one launch."""

    moved: Any  # bytes between memory and the device, as they are fetched
    flop: Any  # of all tiles
    instructions: Any  # that a warp issues for a tile
    tiles: Any  # of all programs
    own: Any  # tiles that one program does
    programs: Any
    threads: Any  # of a block
    follow: Any  # seconds from one instruction of a warp to the next
    waits: Any  # seconds that a tile waits
    begins: Any  # seconds that a program takes to begin and end
    bandwidth: Any
    matrix: Any  # rate of products
    vector: Any  # float32 rate, two for each thread's instruction
    cores: Any
    held: Any  # blocks of a multiprocessor at once
    call: Any  # seconds of the call, which goes on while the device does what was called before


def together(of: Together, a: Arithmetic) -> Any:
    """Seconds of the launch."""
    issue = 2 * of.instructions / of.vector  # a tile's, for each thread of a block
    tile = of.instructions * of.follow + of.flop / of.tiles * of.cores / of.matrix + of.waits
    alone = a.ceiling(of.programs / (of.cores * of.held)) * (of.own * tile + of.begins)
    memory, units = of.moved / of.bandwidth, of.flop / of.matrix
    return (alone**4 + memory**4 + units**4 + (of.tiles * issue * of.threads) ** 4 + of.call**4) ** 0.25


class TileLaunch(NamedTuple):
    """A launch to be priced, in numbers. What the compiler makes of a kernel: the survey, or cross_compile."""

    moved: float  # bytes of sequences, spectra and gradients read from memory and written to it, once each
    tiles: int  # of all programs
    programs: int
    flop: float  # of a tile's products
    instructions: float  # that a warp issues for a tile
    threads: int  # of a block
    blocks: int  # that a multiprocessor holds at once
    spills: int = 0  # instructions that write or read spilled registers
    shared_bytes: int = 0  # of a block, where it spills
    stages: int = 2  # of the pipeline; with one nothing is fetched ahead
    products: int = 4  # of a tile that wait for one another: 4 of a convolution, 2 of two analyses side by side
    scratch: float = 0.0  # bytes of its own memory that a tile writes and reads again, all together
    resident: float = 0.0  # bytes of such memory in use at once by all programs that run
    full: bool = False  # nothing is masked
    own: int = 0  # tiles of the program that has most; 0: as even as can be
    narrower: float = 1.0  # how much slower than 16-bit products those are: 6 as three of TF32


def tile_seconds(launch: TileLaunch, limits: DeviceLimits) -> float:
    """Seconds of the launch."""
    spilled = spill_factor(launch.spills, launch.threads, launch.blocks, launch.shared_bytes, limits)
    waits = tile_waits(launch.products, launch.stages, limits, launch.scratch > 0, launch.full)
    waits += scratch_wait(launch.scratch, launch.resident, launch.threads, limits)
    numbers = Together(
        moved=launch.moved + launch.tiles * launch.scratch * lost(launch.resident, limits),
        flop=launch.flop * launch.tiles,
        instructions=launch.instructions + launch.spills * spilled,
        tiles=launch.tiles,
        own=launch.own or -(-launch.tiles // launch.programs),
        programs=launch.programs,
        threads=launch.threads,
        follow=follow(launch.threads, limits, launch.scratch > 0),
        waits=waits,
        begins=limits.program_seconds,
        bandwidth=STREAMED * limits.dram_bandwidth,
        matrix=limits.matrix16 / launch.narrower,
        vector=limits.vector32,
        cores=limits.cores,
        held=launch.blocks,
        call=limits.call_seconds,
    )
    return float(together(numbers, NUMBERS))


def streaming_seconds(moved: float, limits: DeviceLimits, launches: int = 1) -> float:
    """Seconds of a launch, or several, that do nothing but move bytes: a copy, a pass over memory, a sum."""
    return moved / (STREAMED * limits.dram_bandwidth) + launches * limits.call_seconds


def follow(threads: int, limits: DeviceLimits, staged: bool = False) -> float:
    """Seconds from one instruction of a warp to its next."""
    return limits.follow_seconds * (GROUPS if threads > _GROUP else 1.0) * (OUTER if staged else 1.0)


def spill_factor(spills: int, threads: int, blocks: int, shared_bytes: int, limits: DeviceLimits) -> float:
    """Instructions that one which spills counts as."""
    if not spills:
        return 0.0
    left = limits.l1_bytes - blocks * (shared_bytes + 1024)
    return SPILL * (1 + THRASH * max(0.0, 1 - left / (SPILLED * spills * threads * blocks)))


def tile_waits(products: int, stages: int, limits: DeviceLimits, staged: bool = False, full: bool = False) -> float:
    """Seconds a tile waits for products one after another, and for memory, more where nothing is fetched ahead, less
    where nothing is masked; with an outer stage memory is in what scratch takes."""
    if staged:
        return products * limits.product_seconds
    fetched = limits.fetch_seconds * (FULL if full else 1.0) + (limits.unpiped_seconds if stages == 1 else 0.0)
    return products * limits.product_seconds + fetched


def lost(resident: float, limits: DeviceLimits) -> float:
    """The share of `resident` bytes in use at once that the L2 cache does not keep: of one in two halves each keeps
    what its own multiprocessors use."""
    return max(0.0, 1 - KEPT * limits.bandwidths[0][0] / limits.l2_halves / resident) if resident else 0.0


def scratch_wait(scratch: float, resident: float, threads: int, limits: DeviceLimits) -> float:
    """Seconds a tile waits for what it writes and reads again."""
    return limits.scratch_seconds * scratch / threads * (1 + MISSED * lost(resident, limits))


def strided_wait(
    numbers: float, at_once: float, spread: float, resident: float, threads: int, limits: DeviceLimits
) -> float:
    """Seconds a tile waits for `numbers` that are read by strides, `at_once` of them by a thread, of sequences that are
    spread over `spread` bytes of memory."""
    slower = max(1.0, at_once / ADDRESSES) * (FAR if spread > PAGE else 1.0)
    return limits.strided_seconds * numbers / threads * slower * (1 + STRIDED_MISSED * lost(resident, limits))

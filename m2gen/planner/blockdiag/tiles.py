"""Which block-diagonal kernel to run: tiles by the work of the matrix unit and by what they move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag import FROM_SHARED, BlockdiagSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.blockdiag.problem import BlockDiagProblem

Part = Literal["fwd", "dz", "dw"]

_SECTOR = 32  # bytes that memory gives at least
_REACHED = 0.6  # share of the matrix unit's rate that a full tile reaches
_NUMBERS = 128  # of a tile that a thread has at most: sums, and what the epilogue reads beside them
_STEPS = 8  # tiles of rows that a part of the weight's gradient has at least
_WAVES = 2  # times the multiprocessors' number, programs of the weight's gradient at least
_TILES = ((128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64), (32, 32), (16, 32), (16, 16), (128, 256))


@dataclass(frozen=True, slots=True)
class BlockdiagSizes:
    """blocks: of the weight, with a gate twice those of the result. apart_x, apart_y: whether the neighbours in memory
    of a block's entry are other blocks' (a Monarch's inner stages), not the same block's."""

    rows: int
    blocks: int
    depth: int
    width: int
    dtype: str
    bias: bool = False
    activation: str | None = None
    glu: bool = False
    residual: bool = False
    apart_x: bool = False
    apart_y: bool = False

    @property
    def results(self) -> int:
        """Blocks of the result."""
        return self.blocks // 2 if self.glu else self.blocks


def sizes_of(problem: BlockDiagProblem, part: str = "fwd") -> BlockdiagSizes:
    """The problem, or "dz", "dx" or "dw" of its gradients, as the kernels' tiles are chosen by.

    The gradients of x and weight stand behind that of what follows the product: they are of the bare product, and the
    one of x of the turned one."""
    sizes = BlockdiagSizes(
        rows=problem.rows,
        blocks=problem.blocks,
        depth=problem.block_in,
        width=problem.block_out,
        dtype=problem.dtype,
        bias=problem.bias,
        activation=problem.activation,
        glu=problem.glu,
        residual=problem.residual and part == "fwd",
    )
    if part in ("dx", "dw"):
        sizes = replace(sizes, activation=None, glu=False)
    if part == "dx":
        sizes = replace(sizes, depth=sizes.width, width=sizes.depth, bias=False)
    return sizes


def candidates(sizes: BlockdiagSizes, limits: DeviceLimits, part: Part = "fwd") -> list[Candidate[BlockdiagSpec]]:
    """Kernels for one part of a product, the quickest first. The gradient in x is "fwd" of the turned weight."""
    found = (estimated(sizes, one, limits) for one in _specs(sizes, limits, part))
    return sorted(found, key=lambda one: one.seconds)


def estimated(sizes: BlockdiagSizes, spec: BlockdiagSpec, limits: DeviceLimits) -> Candidate[BlockdiagSpec]:
    """What a kernel should cost."""
    return (_gradient if spec.part == "dw" else _product)(sizes, spec, limits)


def _specs(sizes: BlockdiagSizes, limits: DeviceLimits, part: Part) -> Iterator[BlockdiagSpec]:
    """Tiles that the problem can use and the device can hold."""
    most = (sizes.width, sizes.depth) if part == "dw" else (sizes.rows, sizes.width)
    summed = sizes.rows if part == "dw" else sizes.depth
    for blocks in _side_by_side(sizes):
        step = 32 if sizes.dtype == "fp32" or blocks > 1 else 64  # of the sum: 128 bytes where a block stands alone
        for first, second in _TILES:
            if first > _power(most[0]) or second > _power(most[1]):
                continue
            spec = _spec(sizes, limits, part, blocks, (first, second, min(step, _power(summed))))
            if spec is not None:
                yield spec


def _spec(
    sizes: BlockdiagSizes, limits: DeviceLimits, part: Part, blocks: int, tile: tuple[int, int, int]
) -> BlockdiagSpec | None:
    """The kernel of a tile, with as many warps as its sums need and stages as fit twice; None where none fits."""
    first, second, summed = tile
    numbers = blocks * first * second * (1 if part == "dw" else 1 + sizes.glu + (sizes.residual or part == "dz"))
    # half as many where operands are in registers (gfx942 has enough), and where float32's are split there
    crowded = (sizes.dtype == "fp32") + (limits.arch not in (*FROM_SHARED, "gfx942"))
    most = _NUMBERS >> (2 if blocks > 1 else crowded)
    warps = next((w for w in (4, 8) if numbers <= most * 32 * w), None)
    if warps is None:
        return None
    block_r, block_n, block_k = (summed, first, second) if part == "dw" else (first, second, summed)
    steps = -(-sizes.rows // block_r) if part == "dw" else -(-sizes.depth // block_k)
    for stages in (4, 3, 2):
        spec = BlockdiagSpec(
            part=part,
            dtype=sizes.dtype,
            block_r=block_r,
            block_n=block_n,
            block_k=block_k,
            blocks=blocks,
            bias=sizes.bias,
            activation=None if part == "dw" else sizes.activation,
            glu=sizes.glu and part != "dw",
            residual=sizes.residual and part == "fwd",
            precision=precision_of(sizes.dtype, limits),
            num_warps=warps,
            num_stages=stages,
        )
        wanted = limits.shared_bytes // (2 if stages > 2 else 1)
        if spec.resources(limits.arch).shared_bytes <= wanted and (stages <= steps + 1 or stages == 2):
            return spec
    return None


def precision_of(dtype: str, limits: DeviceLimits) -> Literal["tf32", "tf32x3", "ieee"]:
    """How float32 products are made (kernels/blockdiag.py)."""
    if dtype != "fp32":
        return "tf32"
    return "ieee" if limits.arch.startswith("gfx") else "tf32x3"


def _side_by_side(sizes: BlockdiagSizes) -> Iterator[int]:
    """Blocks of a program: one, or several where they are small or their entries lie among one another."""
    yield 1
    if sizes.apart_x or sizes.apart_y or max(sizes.depth, sizes.width) <= 32:
        yield from (n for n in (2, 4, 8, 16) if n <= sizes.results)


def _power(n: int) -> int:
    """The next power of two, 16 at least: what the matrix unit takes."""
    return max(16, 1 << (n - 1).bit_length())


def _flop_seconds(spec: BlockdiagSpec, limits: DeviceLimits, products: float) -> float:
    """Multiply-adds, those with padding included, at the matrix unit's rate for the type."""
    rate = limits.matrix16
    if spec.dtype == "fp32":
        rate = limits.matrix32 if spec.precision == "ieee" else limits.matrix16 / 2 / 3
    first, second = (spec.block_n, spec.block_k) if spec.part == "dw" else (spec.block_r, spec.block_n)
    full = min(1.0, first / 64) * min(1.0, second / 64) ** 0.5 if spec.blocks == 1 else 0.25
    return 2 * products / (rate * _REACHED * max(full, 0.05))


def _waste(apart: bool, spec: BlockdiagSpec) -> float:
    """Bytes that the cache hands out for each that is wanted: it gives whole sectors."""
    return max(1.0, _SECTOR / (DTYPES[spec.dtype].bytes * spec.blocks)) if apart else 1.0


def _product(sizes: BlockdiagSizes, spec: BlockdiagSpec, limits: DeviceLimits) -> Candidate[BlockdiagSpec]:
    each = DTYPES[sizes.dtype].bytes
    tiles_r, tiles_n = -(-sizes.rows // spec.block_r), -(-sizes.width // spec.block_n)
    x = float(sizes.rows * sizes.blocks * sizes.depth * each)
    w = float(sizes.blocks * sizes.depth * sizes.width * each)
    y = float(sizes.rows * sizes.results * sizes.width * each)
    written = y * (2 if sizes.glu else 1) if spec.part == "dz" else y
    beside = y if spec.residual or spec.part == "dz" else 0.0
    moved = x + w + written + beside  # the order of programs keeps x and the weight in the L2 cache
    cached = x * tiles_n * _waste(sizes.apart_x, spec) + w * tiles_r
    cached += (written + beside) * _waste(sizes.apart_y, spec)
    deep = -(-sizes.depth // spec.block_k) * spec.block_k
    products = float(tiles_r * spec.block_r * tiles_n * spec.block_n * deep) * _blocks(sizes.blocks, spec)
    programs = tiles_r * tiles_n * -(-sizes.results // spec.blocks)
    return Candidate(spec, _seconds(limits, spec, (moved, cached, products), programs), moved)


def _gradient(sizes: BlockdiagSizes, spec: BlockdiagSpec, limits: DeviceLimits) -> Candidate[BlockdiagSpec]:
    each = DTYPES[sizes.dtype].bytes
    tiles_n, tiles_k = -(-sizes.width // spec.block_n), -(-sizes.depth // spec.block_k)
    tiles = tiles_n * tiles_k * -(-sizes.blocks // spec.blocks)
    steps = -(-sizes.rows // spec.block_r)
    parts = max(1, min(-(-_WAVES * limits.cores // tiles), steps // _STEPS))
    x = float(sizes.rows * sizes.blocks * sizes.depth * each)
    z = float(sizes.rows * sizes.blocks * sizes.width * each)
    w = float(sizes.blocks * sizes.depth * sizes.width)
    moved = x + z + w * each + (2 * 4 * w * parts if parts > 1 else 0.0)
    cached = x * tiles_n * _waste(sizes.apart_x, spec) + z * tiles_k * _waste(sizes.apart_y, spec)
    products = float(tiles_n * spec.block_n * tiles_k * spec.block_k * steps * spec.block_r)
    products *= _blocks(sizes.blocks, spec)
    seconds = _seconds(limits, spec, (moved, cached, products), tiles * parts)
    return Candidate(spec, seconds + (limits.call_seconds if parts > 1 else 0.0), moved, parts)


def _blocks(blocks: int, spec: BlockdiagSpec) -> int:
    return -(-blocks // spec.blocks) * spec.blocks


def _seconds(limits: DeviceLimits, spec: BlockdiagSpec, work: tuple[float, float, float], programs: int) -> float:
    """The slowest of memory, the L2 cache and the matrix unit, the last two shared among the programs."""
    moved, cached, products = work
    l2 = limits.bandwidths[0][1]
    busy = max(cached / l2, _flop_seconds(spec, limits, products)) * max(1.0, limits.cores / max(programs, 1))
    return limits.call_seconds + max(moved / limits.dram_bandwidth, busy)

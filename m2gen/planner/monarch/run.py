"""How the C++ kernels of a Monarch product are run on a CPU: sizes in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from m2gen.kernels.monarch_cpp import MonarchCppSpec
from m2gen.planner.monarch.problem import Shape

_ALONE = 2**19  # multiplications below which a second thread costs more than it does
_AHEAD_BYTES = 2**15  # of a group's rows that are asked for while the group before is multiplied: they stay in cache
_SUMMED = 32  # rows of a group whose sums are added to a weight's gradient at once, at least
_LARGEST = 512  # numbers along a block's side; of larger ones, columns are read a line for each number
_LONGEST = 2**20  # places of a vector, of which a group of rows needs so many in scratch, several times
_PART = 128  # rows over which a weight's gradient is summed by itself, at least
_PARTS_BYTES = 32 * 2**20  # of the sums of all parts
_MOST_PARTS = 32
_TILES = (1, 2, 4)  # of a group
_CHUNK = 2**13  # numbers that are added up together


@dataclass(frozen=True, slots=True)
class MonarchRun:
    """`lanes` rows are a group, turned and multiplied together. An item of work is `part` rows, of which there are
    `parts`; `parallel`, whether a second thread pays. `ahead`: the next group's rows are asked for beforehand.
    `together` numbers are an item of adding parts up."""

    lanes: int
    part: int
    parts: int
    parallel: bool
    ahead: bool = False
    together: int = _CHUNK


def spec_of(part: Literal["fwd", "bwd", "sum"], dtype: str, vector_bytes: int, arch: str) -> MonarchCppSpec:
    """The kernel for a CPU with vectors of so many bytes; narrower units are given vectors by the compiler."""
    vector_bytes = max(16, vector_bytes)
    registers = 32 if vector_bytes == 64 or arch == "neon" else 16
    return MonarchCppSpec(part=part, dtype=dtype, vector_bytes=vector_bytes, registers=registers)


@lru_cache(maxsize=1024)
def forward_run(rows: int, shapes: tuple[Shape, ...], spec: MonarchCppSpec, tiles: int = 1) -> MonarchRun:
    """An item is a group, of so many tiles' rows: rows do not meet."""
    lanes = _lanes(rows, tiles * spec.tiles[0][0], spec)
    ahead = widest(shapes) * lanes * spec.real_bytes <= _AHEAD_BYTES
    return MonarchRun(lanes, lanes, -(-rows // lanes), _parallel(rows, shapes), ahead)


@lru_cache(maxsize=1024)
def backward_run(rows: int, shapes: tuple[Shape, ...], spec: MonarchCppSpec, summed: bool) -> MonarchRun:
    """Where a weight's gradient is wanted (`summed`), the rows' partition, and with it the order of the sums, follows
    from the sizes alone, never from the number of threads."""
    lanes = _lanes(rows, max(spec.tiles[0][0], _SUMMED // spec.vector), spec)
    if not summed:
        return MonarchRun(lanes, lanes, -(-rows // lanes), _parallel(rows, shapes))
    size = sum(nblocks * n * k for nblocks, n, k in shapes) * spec.real_bytes
    parts = max(1, min(rows // _PART, _MOST_PARTS, _PARTS_BYTES // size))
    part = -(-rows // (parts * lanes)) * lanes
    return MonarchRun(lanes, part, -(-rows // part), _parallel(rows, shapes))


def forward_runs(rows: int, shapes: tuple[Shape, ...], spec: MonarchCppSpec) -> tuple[MonarchRun, ...]:
    """Groups of one tile, which stays in cache, and of more, for which the weights are read less often."""
    return tuple(dict.fromkeys(forward_run(rows, shapes, spec, tiles) for tiles in _TILES))


@lru_cache(maxsize=1024)
def fits(shapes: tuple[Shape, ...]) -> bool:
    """Whether the kernels do such factors well: where blocks are large, a product for each factor is as good or better.
    It depends on no rows: a row's bits are the same in any company."""
    return all(max(n, k) <= _LARGEST for _, n, k in shapes) and widest(shapes) <= _LONGEST


def widest(shapes: Sequence[Shape]) -> int:
    """Places of the longest vector on the way."""
    return max(nblocks * pitch(size) for nblocks, *sizes in shapes for size in sizes)


def pitch(block: int) -> int:
    """Places from one block to the next in scratch: an odd number, so that blocks do not meet in a cache set."""
    return block | 1


def _lanes(rows: int, vectors: int, spec: MonarchCppSpec) -> int:
    """Rows of a group: whole vectors, and no more than there are."""
    return min(-(-rows // spec.vector), vectors) * spec.vector


def _parallel(rows: int, shapes: Sequence[Shape]) -> bool:
    return rows * sum(nblocks * n * k for nblocks, n, k in shapes) >= _ALONE

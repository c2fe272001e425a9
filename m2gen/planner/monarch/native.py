"""How the C++ kernels of a Monarch product are run on a CPU: sizes in, numbers out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from m2gen.kernels.monarch import MonarchSpec

Shape = tuple[int, int, int]  # nblocks, block_out, block_in

_ALONE = 2**19  # multiplications below which a second thread costs more than it does
_NEAR_BYTES = 2**18  # of a group's vectors that stay in a second-level cache of 512 KiB beside the weights
_WIDEST = 8  # vectors of a group
_PART = 128  # rows over which a weight's gradient is summed by itself, at least
_PARTS_BYTES = 64 * 2**20  # of the sums of all parts
_MOST_PARTS = 64
_CHUNK = 2**13  # numbers that are added up together


@dataclass(frozen=True, slots=True)
class MonarchRun:
    """`lanes` rows are a group, turned and multiplied together. An item of work is `part` rows, of which there are
    `parts`; `parallel`, whether a second thread pays. `together` numbers are an item of adding parts up."""

    lanes: int
    part: int
    parts: int
    parallel: bool
    together: int = _CHUNK


def spec_of(part: Literal["fwd", "bwd", "sum"], dtype: str, vector_bytes: int, arch: str) -> MonarchSpec:
    """The kernel for a CPU with vectors of so many bytes; narrower units are given vectors by the compiler."""
    vector_bytes = max(16, vector_bytes)
    registers = 32 if vector_bytes == 64 or arch == "neon" else 16
    return MonarchSpec(part=part, dtype=dtype, vector_bytes=vector_bytes, registers=registers)


@lru_cache(maxsize=1024)
def forward_run(rows: int, shapes: tuple[Shape, ...], spec: MonarchSpec) -> MonarchRun:
    """An item is a group: rows do not meet."""
    lanes = _lanes(rows, 2 * widest(shapes), spec)
    return MonarchRun(lanes, lanes, -(-rows // lanes), _parallel(rows, shapes))


@lru_cache(maxsize=1024)
def backward_run(rows: int, shapes: tuple[Shape, ...], spec: MonarchSpec, summed: bool) -> MonarchRun:
    """Where a weight's gradient is wanted (`summed`), the rows' partition, and with it the order of the sums, follows
    from the sizes alone, never from the number of threads."""
    lanes = _lanes(rows, (len(shapes) + 2) * widest(shapes), spec)
    if not summed:
        return MonarchRun(lanes, lanes, -(-rows // lanes), _parallel(rows, shapes))
    size = sum(nblocks * n * k for nblocks, n, k in shapes) * spec.real_bytes
    parts = max(1, min(rows // _PART, _MOST_PARTS, _PARTS_BYTES // size))
    part = -(-rows // (parts * lanes)) * lanes
    return MonarchRun(lanes, part, -(-rows // part), _parallel(rows, shapes))


def widest(shapes: Sequence[Shape]) -> int:
    """Places of the longest vector on the way."""
    return max(nblocks * pitch(size) for nblocks, *sizes in shapes for size in sizes)


def pitch(block: int) -> int:
    """Places from one block to the next in scratch: an odd number, so that blocks do not meet in a cache set."""
    return block | 1


def _lanes(rows: int, numbers: int, spec: MonarchSpec) -> int:
    """Rows of a group of which `numbers` numbers each stay in cache: whole tiles of vectors, and no more than there
    are."""
    wide = spec.tiles[0][0]
    fitting = _NEAR_BYTES // (numbers * spec.vector_bytes) // wide * wide
    vectors = min(-(-rows // spec.vector), max(wide, min(fitting, _WIDEST)))
    return vectors * spec.vector


def _parallel(rows: int, shapes: Sequence[Shape]) -> bool:
    return rows * sum(nblocks * n * k for nblocks, n, k in shapes) >= _ALONE

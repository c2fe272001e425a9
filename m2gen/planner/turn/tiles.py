"""Which turning kernel to run: tiles by what they move."""

from __future__ import annotations

from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.spec import Candidate
from m2gen.kernels.turn import TurnSpec

_LINE = 32  # bytes that memory gives at least
_SLACK = 4  # times the numbers of a tile that a multiprocessor issues while memory moves one tile


@dataclass(frozen=True, slots=True)
class TurnSizes:
    batch: int
    rows: int
    columns: int
    dtype: str


def candidates(sizes: TurnSizes, limits: DeviceLimits) -> list[Candidate[TurnSpec]]:
    """Kernels for x (batch, rows, columns), the quickest first."""
    found = []
    for block_r, block_c in ((64, 64), (32, 32), (32, 64), (64, 32), (16, 128), (128, 16), (128, 64), (64, 128)):
        warps = max(1, min(8, block_r * block_c // 1024))
        spec = TurnSpec(dtype=sizes.dtype, block_r=block_r, block_c=block_c, num_warps=warps)
        if spec.resources(limits.arch).shared_bytes <= limits.shared_bytes:
            found.append(_candidate(sizes, spec, limits))
    return sorted(found, key=lambda one: one.seconds)


def _candidate(sizes: TurnSizes, spec: TurnSpec, limits: DeviceLimits) -> Candidate[TurnSpec]:
    tiles = sizes.batch * -(-sizes.rows // spec.block_r) * -(-sizes.columns // spec.block_c)
    each = DTYPES[sizes.dtype].bytes
    moved = 2.0 * sizes.batch * sizes.rows * sizes.columns * each
    pieces = 1 + _LINE / (2 * each) * (1 / spec.block_r + 1 / spec.block_c)  # of lines at a tile's ends
    wasted = tiles * spec.block_r * spec.block_c / max(sizes.batch * sizes.rows * sizes.columns, 1) / _SLACK
    idle = limits.cores / max(tiles, 1)  # multiprocessors without work
    busy = moved / limits.dram_bandwidth * pieces * max(1.0, wasted, idle)
    seconds = limits.call_seconds + busy
    return Candidate(spec, seconds, moved)

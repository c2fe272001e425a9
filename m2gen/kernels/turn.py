"""A transposing copy: y[b, c, r] = x[b, r, c], a tile of rows and columns a program.

A tile is read along the memory of x and written along that of y; in between it passes through shared memory, so that
both are whole lines. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m2gen.dtypes import DTYPES
from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSpec:
    """block_r, block_c: rows and columns of a tile, powers of two."""

    dtype: str
    block_r: int = 64
    block_c: int = 64
    num_warps: int = 4

    @property
    def num_stages(self) -> int:
        """There is no loop, so nothing to pipeline."""
        return 1

    @property
    def name(self) -> str:
        """For example turn_fp16_r64_c64_w4."""
        return f"turn_{self.dtype}_r{self.block_r}_c{self.block_c}_w{self.num_warps}"

    @property
    def template(self) -> str:
        return "triton/turn/fwd.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    def launched(self) -> Mapping[str, str]:
        return {"rows": "any", "columns": "any", "stride_xc": "1", "stride_yr": "1"}

    def resources(self, arch: str | None = None) -> Resources:
        """The tile passes through shared memory once; rows are set apart by 16 bytes, for other banks."""
        shared = (self.block_r * DTYPES[self.dtype].bytes + 16) * self.block_c
        return Resources(shared_bytes=shared, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

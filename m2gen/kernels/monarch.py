"""A Monarch product of two factors on a GPU: both stages of a tile of rows in one kernel.

The first factor has c blocks of n x k, the second n blocks of o x c, so that every block of the second reads one number
of each block of the first: between them the tile (c, rows, n) is turned to (n, rows, c) on chip, and nothing else is
permuted but in the addresses of x and y. The gradient in x is the same kernel with the factors turned, the second
first. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from m2gen.dtypes import DTYPES
from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class MonarchSpec:
    """blocks, depth, middle, width: c, k, n, o above. block_r: rows of a tile.

    precision  of float32 products, as in kernels/blockdiag.py
    emulated   for Triton's interpreter, whose bfloat16 arithmetic is wrong
    """

    dtype: str
    blocks: int
    depth: int
    middle: int
    width: int
    block_r: int = 16
    precision: Literal["tf32", "tf32x3", "ieee"] = "tf32"
    num_warps: int = 4
    emulated: bool = False

    @property
    def num_stages(self) -> int:
        """A tile is read at once."""
        return 1

    @property
    def name(self) -> str:
        """For example monarch_fwd_bf16_c32_k32_n32_o32_r16_tf32_w4."""
        sizes = [f"c{self.blocks}", f"k{self.depth}", f"n{self.middle}", f"o{self.width}", f"r{self.block_r}"]
        last = [*["emulated"] * self.emulated, self.precision, f"w{self.num_warps}"]
        return "_".join(["monarch", "fwd", self.dtype, *sizes, *last])

    @property
    def template(self) -> str:
        return "triton/monarch/fwd.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    @property
    def padded(self) -> tuple[int, int, int, int]:
        """blocks, depth, middle and width of the tiles: powers of two, which the matrix unit takes from 16 on."""
        return tuple(max(16, 1 << (n - 1).bit_length()) for n in (self.blocks, self.depth, self.middle, self.width))  # type: ignore[return-value]

    @property
    def numbers(self) -> int:
        """Of the largest tile in registers: the sums of a stage."""
        c, _, n, o = self.padded
        return self.block_r * max(c * n, n * o)

    def launched(self) -> Mapping[str, str]:
        return {"rows": "any", "stride_1k": "1", "stride_2k": "1"}

    def resources(self, arch: str | None = None) -> Resources:
        """Of a stage both operands, the second's first one being what the first gave; or the sums, where they are
        turned, as high and low part of float32's."""
        c, k, n, o = self.padded
        each, r = DTYPES[self.dtype].bytes, self.block_r
        first, second = c * (r * k + k * n), n * (r * c + c * o)
        shared = max(each * first, each * second, (8 if self.dtype == "fp32" else 4) * r * n * max(c, o))
        return Resources(shared_bytes=shared, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

"""An outer stage of a long filter's spectrum on a large ring, in float32: a pass over memory, and the same backwards.

A stage of n0 points over rows of n1 * n2, of which n2 stand in memory as one: "fwd" reads taps, or in place what the
stage outside left (`nested`), "inverse" writes the gradients of the taps there are. Between such passes and the
convolution's order are the kernels of spectrum.py. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.spec import Resources
from m2gen.kernels.survey import FAMILIES

_BLOCKS = 4  # of columns that a program does, where there are as many: fewer sums for the rows' programs to read


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterPassSpec:
    """One pass.

    n0, n1, n2  radix; rows of the stages inside; points of each, real parts followed by imaginary ones in memory
    columns     of a tile
    nested      both sides are rows in memory, the same memory
    last        of "fwd": rows are done on chip after it, and it leaves what bounds their bins
    two_sided   there are taps of negative lags
    skip        of "fwd": the skip is part of the filter
    precision   of float32 products: tf32x3 (three TF32 products) or ieee
    emulated    for Triton's interpreter, whose conversion to bfloat16 cuts off: it is rounded by hand
    """

    part: Literal["fwd", "inverse"]
    ring: Literal["cyclic", "causal"]
    n0: int
    n1: int
    n2: int
    columns: int
    nested: bool = False
    last: bool = False
    two_sided: bool = False
    skip: bool = False
    precision: str = "tf32x3"
    emulated: bool = False
    num_warps: int = 8

    @property
    def dtype(self) -> str:
        """Of the taps, as a launch is compiled ahead; a kernel takes any."""
        return "fp32"

    @property
    def num_stages(self) -> int:
        """The data in registers is what limits it: nothing is read ahead."""
        return 1

    @property
    def loops(self) -> tuple[int, ...]:
        """A program's loop is over blocks of columns, as others' is over tiles: nothing is inside."""
        return ()

    @property
    def size(self) -> int:
        return self.n0 * self.n1 * self.n2

    @property
    def blocks(self) -> int:
        """Tiles of the ring."""
        return self.n1 * self.n2 // self.columns

    @property
    def splits(self) -> int:
        """Programs of the ring."""
        return max(1, self.blocks // _BLOCKS)

    @property
    def complex_taps(self) -> bool:
        """Whether taps have an imaginary part: those of negative lags on the ring t^N = i."""
        return self.two_sided and self.ring == "causal"

    @property
    def name(self) -> str:
        """For example filter_pass_fwd_n1048576_r16x16x4096_c256_causal_skip_w8."""
        flags = ("nested", "last", "two_sided", "skip", "emulated")
        words = ["filter_pass", self.part, f"n{self.size}", f"r{self.n0}x{self.n1}x{self.n2}", f"c{self.columns}"]
        words += [self.ring, *(flag for flag in flags if getattr(self, flag))]
        return "_".join([*words, *([self.precision] if self.precision != "tf32x3" else []), f"w{self.num_warps}"])

    @property
    def template(self) -> str:
        return f"triton/spectrum/pass_{self.part}.py.jinja"

    def launched(self) -> Mapping[str, str]:
        """Everything is float32; taps lie densely, and end anywhere."""
        found = dict.fromkeys(("ahead", "behind", "k_first", "rev_first"), "any")
        return found | dict.fromkeys(("stride_kl", "stride_revm", "stride_skiph"), "1")

    def resources(self, arch: str | None = None) -> Resources:
        """Shared memory, at most: for wgmma and its successor of a product the data in two TF32 halves of both parts,
        and the matrix on its way; elsewhere, where operands stand in registers, tiles that change their layout."""
        tile, matrix = self.n0 * self.columns, self.n0**2
        tiles = {"mma": 2, "mfma": 4}.get(FAMILIES.get(arch or "", ""))
        points = 4 * tile + matrix if tiles is None else max(tiles * tile, matrix)
        return Resources(shared_bytes=4 * points, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

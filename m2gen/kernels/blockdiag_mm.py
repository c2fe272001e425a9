"""Products with block-diagonal matrices on a CPU: y[r, c N + n] = sum over k of x[r, c K + k] weight[c, n, k].

A tile of `rows` x `columns` vectors of results stays in registers while k runs. One block is a dense linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.activation import EXPONENTIAL, erfcx
from m2gen.kernels.square import Level, levels
from m2gen.kernels.vectors import Vectors

TILE_ROWS = {
    32: {3: 8, 4: 6, 2: 12, 1: 16},
    16: {2: 6, 3: 4, 1: 8},
}  # by registers and vectors of columns


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockdiagMmSpec(Vectors):
    """`part` "fwd" is the product, "pack" the order in which it reads the weight, "outer" the weight's gradient.

    columns      vectors of a tile
    dtype        fp32 or fp64
    glu          with "fwd": y = activation(first half of the blocks) times their second half
    activation   of what is written, or of the gate; None for none
    registers    vector registers of the machine
    """

    part: Literal["fwd", "pack", "outer"]
    columns: int
    dtype: str
    glu: bool = False
    activation: str | None = None
    vector_bytes: int = 64
    registers: int = 32
    arch: str = "native"

    @property
    def name(self) -> str:
        """For example blockdiag_mm_fwd_c3_fp32_glu_gelu_v64_r32_native."""
        words = ["blockdiag_mm", self.part, f"c{self.columns}", self.dtype]
        words += ["glu"] * self.glu + ([] if self.activation is None else [self.activation])
        return "_".join([*words, f"v{self.vector_bytes}", f"r{self.registers}", self.arch])

    @property
    def template(self) -> str:
        return f"cpp/blockdiag_mm/{self.part}.cpp.jinja"

    @property
    def width(self) -> int:
        """Columns of a tile, in numbers: the width of a panel of the packed weight."""
        return self.columns * self.vector

    @property
    def rows(self) -> int:
        return TILE_ROWS[self.registers][self.columns]

    @property
    def tails(self) -> tuple[int, ...]:
        """Heights of tiles for the rows that are left, from high to low: together they make any number below `rows`."""
        return tuple(2**i for i in reversed(range((self.rows - 1).bit_length())))

    @property
    def levels(self) -> list[Level]:
        """The transpose of a square of vectors."""
        return levels(self.vector, self.real_bytes)

    @property
    def erfcx(self) -> list[float]:
        return list(erfcx())

    @property
    def exponential(self) -> list[str]:
        return list(EXPONENTIAL)

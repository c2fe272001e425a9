"""Monarch matrices on a CPU: all stages of y = M x in one kernel, and all gradients in another.

Lanes are rows: a group of rows is turned in cache so that a vector holds one number of as many rows, and a stage is
single weights times whole vectors. `outputs` x `vectors` sums stay in registers while the reduction runs, the same loop
forwards, for dx (the weight's steps exchanged) and for dw (vectors along the block, rows the reduction).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.square import Level, levels
from m2gen.kernels.vectors import Vectors

# by registers: (vectors, outputs) of the tiles; sums, a row of vectors and a weight fit the registers
TILES = {
    32: ((2, 12), (1, 16)),
    16: ((2, 6), (1, 8)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MonarchCppSpec(Vectors):
    """`part` "fwd" is the product, "bwd" all its gradients, "sum" adds the weights' gradients of parts of the rows.

    Any order, blocks and strides: they are a table that the kernel reads.

    dtype        fp32 or fp64
    registers    vector registers of the machine
    """

    part: Literal["fwd", "bwd", "sum"]
    dtype: str
    vector_bytes: int = 64
    registers: int = 32
    arch: str = "native"

    @property
    def name(self) -> str:
        """For example monarch_cpp_fwd_fp32_v64_r32_native."""
        return "_".join(
            ["monarch_cpp", self.part, self.dtype, f"v{self.vector_bytes}", f"r{self.registers}", self.arch]
        )

    @property
    def template(self) -> str:
        return f"cpp/monarch/{self.part}.cpp.jinja"

    @property
    def tiles(self) -> tuple[tuple[int, int], ...]:
        """Vectors and outputs of a tile, the widest first."""
        return TILES[self.registers]

    @property
    def levels(self) -> list[Level]:
        """The transpose of a square of vectors."""
        return levels(self.vector, self.real_bytes)

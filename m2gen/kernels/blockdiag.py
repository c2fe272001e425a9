"""Products with block-diagonal matrices: y[r, c, n] = sum over k of x[r, c, k] w[c, n, k], and what follows it.

Rows, blocks and their entries lie anywhere: a row is (a, c, entry) with any strides, block number a * inner + c, so the
permutations between the stages of a Monarch matrix are strides and nothing is copied. The gradient in x is the same
kernel with the weight turned. Compiled and interpreted, not yet run on a device.

Float32 products are three TF32 ones ("tf32x3") where the matrix unit has TF32: its error is float32's and its rate a
third of TF32's, 2.5 times the vector units' on Hopper, whose products ("ieee") also take a register for each operand.
gfx942 multiplies float32 matrices itself and takes "ieee".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from m2gen.dtypes import DTYPES
from m2gen.kernels.spec import Resources
from m2gen.kernels.survey import BARRIERS

FROM_SHARED = ("sm90", "sm100")  # whose matrix units read operands of a single block from shared memory


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockdiagSpec:
    """`part` "fwd" is the product with its epilogue; "dz" the gradient in front of the epilogue, with the product
    computed again; "dw" the gradients of weight and bias, each part of the rows by itself.

    block_r, block_n, block_k  rows, outputs and inputs of a tile; for "dw" the sum runs over rows, block_r at a time
    blocks      blocks that a program takes side by side: small ones, or such whose neighbours' entries are neighbours
    group       tiles of rows whose programs follow one another, so that they read x and the weight from the L2 cache
    activation  "gelu" (exact), "relu", "silu" or None
    glu         y = activation(first half of the blocks) * second half
    residual    something is added at the very end
    turned      the weight comes turned, its outputs side by side: no other text, but other machine code
    emulated    for Triton's interpreter, whose bfloat16 arithmetic is wrong
    """

    part: Literal["fwd", "dz", "dw"]
    dtype: str
    block_r: int
    block_n: int
    block_k: int
    blocks: int = 1
    group: int = 8
    bias: bool = False
    activation: str | None = None
    glu: bool = False
    residual: bool = False
    precision: Literal["tf32", "tf32x3", "ieee"] = "tf32"
    num_warps: int = 4
    num_stages: int = 3
    turned: bool = False
    emulated: bool = False

    @property
    def name(self) -> str:
        """For example blockdiag_fwd_bf16_r128_n64_k64_b1_g8_bias_gelu_glu_residual_tf32_w4_s3."""
        tile = [f"r{self.block_r}", f"n{self.block_n}", f"k{self.block_k}", f"b{self.blocks}", f"g{self.group}"]
        flags = [word for word in ("glu", "residual", "turned", "emulated") if getattr(self, word)]
        epilogue = ["bias"] * self.bias + ([] if self.activation is None else [self.activation]) + flags
        last = [self.precision, f"w{self.num_warps}", f"s{self.num_stages}"]
        return "_".join(["blockdiag", self.part, self.dtype, *tile, *epilogue, *last])

    @property
    def template(self) -> str:
        return f"triton/blockdiag/{'dw' if self.part == 'dw' else 'fwd'}.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    def launched(self) -> Mapping[str, str]:
        """Contiguous blocks; where a program takes several, those of a Monarch's first stage of two: x (row, 1, c, j)
        has c for neighbours and y (row, b, 1, o) b, in which form dw's z comes as well."""
        special = dict.fromkeys(("rows", "blocks", "parts"), "any") | {f"stride_w{'n' if self.turned else 'k'}": "1"}
        if self.blocks == 1:
            special |= dict.fromkeys(("inner_x", "inner_y", "inner_z"), "any")
            special |= dict.fromkeys(("stride_xe", "stride_ye", "stride_ze", "stride_se"), "1")
        else:
            special |= dict.fromkeys(("inner_y", "inner_z", "stride_xc", "stride_ya", "stride_za", "stride_sa"), "1")
        return special | ({"dw_ptr": "fp32", "dbias_ptr": "fp32"} if self.part == "dw" else {})

    def resources(self, arch: str | None = None) -> Resources:
        """Operands of `num_stages` steps of the sum, one less where each step's are copied to registers first; or,
        where that is more, the tile of results on its way out. Float32's second operand goes back in two parts where
        the matrix unit reads it there. And sums over rows that warps exchange."""
        each = DTYPES[self.dtype].bytes
        r, n, k = self.block_r, self.block_n, self.block_k
        operands, result = (r * (n + k), n * k) if self.part == "dw" else (k * (r + n), r * n)
        from_shared = (arch is None or arch in FROM_SHARED) and self.blocks == 1
        split = 2 * k * (r if self.part == "dw" else n) if from_shared and self.dtype == "fp32" else 0
        steps = self.num_stages if from_shared and not split else max(1, self.num_stages - 1)
        pipeline = (steps * operands + split) * each
        exchanged = 4 * n * self.num_warps if self.part == "dw" and self.bias else 0
        shared = self.blocks * (max(pipeline, 4 * result) + exchanged) + (BARRIERS.get(arch, 0) if arch else 0)
        return Resources(shared_bytes=shared, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

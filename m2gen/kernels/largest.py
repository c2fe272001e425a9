"""The largest number of each tile of a tensor, or of the product of two: by it a kernel that goes through a tile piece
by piece brings gradients of bfloat16 into half precision's range. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class LargestSpec:
    """largest[t, h] = max |d[b, h, l] gate[b, h, l]| over the `rows` batch rows b of tile t and all l, in float32.

    dtype  of d and gate: fp16, bf16, fp32
    gate   whether there is one
    rows   batch rows of a tile, one or two
    block  samples that a program reads at a time
    """

    dtype: str
    rows: int
    gate: bool = False
    block: int = 2048
    num_warps: int = 4

    @property
    def num_stages(self) -> int:
        return 1

    @property
    def name(self) -> str:
        """For example largest_bf16_gate_rows2_b2048_w4."""
        words = ["largest", self.dtype, *(["gate"] if self.gate else [])]
        return "_".join([*words, f"rows{self.rows}", f"b{self.block}", f"w{self.num_warps}"])

    @property
    def template(self) -> str:
        return "triton/largest/fwd.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    def launched(self) -> Mapping[str, str]:
        numbers = dict.fromkeys(("batch", "channels", "splits"), "any")
        ones = {"stride_dl": "1", **({"stride_gatel": "1"} if self.gate else {})}
        return {**numbers, **ones, "largest_ptr": "i32"}

    def resources(self, arch: str | None = None) -> Resources:
        """What warps tell each other; nothing is read ahead by way of shared memory."""
        return Resources(shared_bytes=4 * self.num_warps, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

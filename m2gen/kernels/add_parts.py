"""The sum of partial sums, in their order: y[i] = x[0, i] + x[1, i] + ..., in float32.

What sums over rows or batches is cut into a fixed number of parts, which this kernel adds: no atomic operations, so the
same bits every time. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPartsSpec:
    """dtype of the sums; the parts are float32. block: sums of a program.

    emulated  for Triton's interpreter, which cuts float32 off to bfloat16
    """

    dtype: str
    block: int = 512
    num_warps: int = 4
    emulated: bool = False

    @property
    def num_stages(self) -> int:
        return 1

    @property
    def name(self) -> str:
        """For example add_parts_bf16_512_w4."""
        return f"add_parts_{self.dtype}_{self.block}{'_emulated' * self.emulated}_w{self.num_warps}"

    @property
    def template(self) -> str:
        return "triton/add_parts/fwd.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    def launched(self) -> Mapping[str, str]:
        return {"x_ptr": "fp32", "parts": "any"}

    def resources(self, arch: str | None = None) -> Resources:
        return Resources(shared_bytes=0, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

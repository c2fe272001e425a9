"""A transposing copy: y[b, c, r] = x[b, r, c], a tile of rows and columns a program. On the way x may be multiplied by
a tensor that lies like it, or the result by one that lies like y, and a second may be added to it.

A tile is read along the memory of x and written along that of y; in between it passes through shared memory, so that
both are whole lines. Products and sums are float32, rounded once. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from m2gen.dtypes import DTYPES
from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSpec:
    """y[b, c, r] = (x[b, r, c] * pre[b, r, c]) * post[b, c, r] + add[b, c, r].

    dtype             of the tensors: fp16, bf16, fp32
    inner             where it is another: with `pre` y's, with `post` or `add` x's
    pre, post, add    which of the three there are; `pre` stands without the others
    block_r, block_c  rows and columns of a tile, powers of two
    emulated          for Triton's interpreter, whose conversion to bfloat16 cuts off: it is rounded by hand
    """

    dtype: str
    inner: str | None = None
    pre: bool = False
    post: bool = False
    add: bool = False
    block_r: int = 64
    block_c: int = 64
    num_warps: int = 4
    emulated: bool = False

    @property
    def num_stages(self) -> int:
        """There is no loop, so nothing to pipeline."""
        return 1

    @property
    def name(self) -> str:
        """For example turn_fp16_r64_c64_w4, or turn_bf16_fp32_post_add_r64_c64_w4."""
        flags = [word for word in ("pre", "post", "add", "emulated") if getattr(self, word)]
        words = ["turn", self.dtype, *([self.inner] if self.inner else []), *flags]
        return "_".join([*words, f"r{self.block_r}", f"c{self.block_c}", f"w{self.num_warps}"])

    @property
    def template(self) -> str:
        return "triton/turn/fwd.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    @property
    def back(self) -> TurnSpec:
        """The kernel for the way back, whose rows are these columns."""
        return replace(self, block_r=self.block_c, block_c=self.block_r)

    def launched(self) -> Mapping[str, str]:
        ones = {"stride_xc": "1", "stride_prec": "1", "stride_postr": "1", "stride_addr": "1", "stride_yr": "1"}
        found = {"rows": "any", "columns": "any", **ones}
        return found | ({"y_ptr" if self.pre else "x_ptr": self.inner} if self.inner else {})

    def resources(self, arch: str | None = None) -> Resources:
        """The tile passes through shared memory once; rows are set apart by 16 bytes, for other banks."""
        each = max(DTYPES[self.dtype].bytes, DTYPES[self.inner or self.dtype].bytes)
        shared = (self.block_r * each + 16) * self.block_c
        return Resources(shared_bytes=shared, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

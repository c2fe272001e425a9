"""The short depthwise convolution on a CPU: y[b, h, i] = bias[h] + sum over w of weight[h, w] x[b, h, i + w - left].

Layout "BLH" has the channels side by side in a vector and goes down the time in tiles of `tile` rows, so that an input
row is read once for all its taps; "BHL" has neighbours in time side by side and reads each vector once for every tap,
from cache. Arithmetic is float32, or float64 for float64 tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.spec import Resources

WIDEST = 64  # taps; a wider filter is no short one, and its unrolled code would not fit the instruction cache
_UNROLLED = 8  # taps whose weights, or sums, stay in registers


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthwiseConv1dSpec:
    """`part` "fwd" is the convolution (and its transpose, with the taps reversed), "dw" the gradients of the weight and
    of the bias.

    arch          a CPU row of the device table, or "native"
    vector_bytes  of a vector of sums
    """

    part: Literal["fwd", "dw"]
    layout: Literal["BHL", "BLH"]
    width: int
    dtype: str
    vector_bytes: int = 64
    arch: str = "native"

    @property
    def name(self) -> str:
        """For example depthwise_conv1d_fwd_w3_blh_fp32_v64_native."""
        words = ("depthwise_conv1d", self.part, f"w{self.width}", self.layout.lower(), self.dtype)
        return "_".join([*words, f"v{self.vector_bytes}", self.arch])

    @property
    def template(self) -> str:
        return f"cpp/depthwise_conv1d/{self.part}_{self.layout.lower()}.cpp.jinja"

    @property
    def real_bytes(self) -> int:
        """Of a number in the arithmetic."""
        return 8 if self.dtype == "fp64" else 4

    @property
    def lanes(self) -> int:
        return self.vector_bytes // self.real_bytes

    @property
    def tile(self) -> int:
        """BLH: rows of results at once, whose sums stay in registers. BHL: results between two looks at the edges."""
        if self.layout == "BLH":
            return 8 if self.vector_bytes == 64 else 4
        return 64 * self.lanes

    @property
    def block(self) -> int:
        """BLH: rows of one item of work, at least."""
        return 64 if self.part == "fwd" else 256

    @property
    def tap_groups(self) -> tuple[tuple[int, ...], ...]:
        """The taps in groups whose weights or sums stay in registers."""
        taps = tuple(range(self.width))
        return tuple(taps[i : i + _UNROLLED] for i in range(0, self.width, _UNROLLED))

    @property
    def unrolled(self) -> bool:
        return self.width <= _UNROLLED

    def resources(self) -> Resources:
        return Resources(shared_bytes=0, threads=1)

"""The short depthwise convolution on a CPU: y[b, h, i] = bias[h] + sum over w of weight[h, w] x[b, h, i + w - left];
and the three of a sequence mixer with their gate (as in kernels/shortconv.py).

Layout "BLH" has the channels side by side in a vector and goes down the time in tiles of `tile` rows, so that an input
row is read once for all its taps; "BHL" has neighbours in time side by side and reads each vector once for every tap,
from cache. Arithmetic is float32, or float64 for float64 tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.vectors import Vectors

Part = Literal["fwd", "dw", "mix", "ds"]
WIDEST = 64  # taps; a wider filter is no short one, and its unrolled code would not fit the instruction cache
_UNROLLED = 8  # taps whose weights, or sums, stay in registers


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortconvCppSpec(Vectors):
    """`part` "fwd" is the convolution (and its transpose, with the taps reversed), "dw" the gradients of the weight and
    of the bias; "mix" the mixer's form, and "ds" the gradient behind its three convolutions, which are computed again.

    arch          a CPU row of the device table, or "native"
    vector_bytes  of a vector of sums
    """

    part: Part
    layout: Literal["BHL", "BLH"]
    width: int
    dtype: str
    vector_bytes: int = 64
    arch: str = "native"

    @property
    def name(self) -> str:
        """For example shortconv_cpp_fwd_w3_blh_fp32_v64_native."""
        words = ("shortconv_cpp", self.part, f"w{self.width}", self.layout.lower(), self.dtype)
        return "_".join([*words, f"v{self.vector_bytes}", self.arch])

    @property
    def template(self) -> str:
        part = "mix" if self.part == "ds" else self.part
        return f"cpp/shortconv/{part}_{self.layout.lower()}.cpp.jinja"

    @property
    def tile(self) -> int:
        """BLH: rows of results at once, whose sums stay in registers. BHL: results between two looks at the edges."""
        if self.layout == "BLH":
            return 8 if self.vector_bytes == 64 else 4
        return 64 * self.vector

    @property
    def block(self) -> int:
        """BLH: rows of one item of work, at least."""
        return 256 if self.part == "dw" else 64

    @property
    def tap_groups(self) -> tuple[tuple[int, ...], ...]:
        """The taps in groups whose weights or sums stay in registers."""
        taps = tuple(range(self.width))
        return tuple(taps[i : i + _UNROLLED] for i in range(0, self.width, _UNROLLED))

    @property
    def unrolled(self) -> bool:
        return self.width <= _UNROLLED

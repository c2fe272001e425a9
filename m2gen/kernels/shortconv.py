"""The short depthwise convolution, and the three of a sequence mixer with their gate.

y[b, h, i] = bias[h] + sum over w of weight[h, w] x[b, h, i + w - left], zeros outside; any strides on either side, so
that a tensor whose channels are neighbours comes out with neighbours in time, or the other way round. The mixer's form
takes h = (x1, x2, v) along the channels: z = s(x1) s(v) and g = s(x2), s the convolution of each stream's own filters;
an offset that every sample of h still lacks, the bias of the projection before, is added where h is read. The gradient
in x is the same kernel with the taps reversed. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.spec import Resources

WIDEST = 64  # taps
UNROLLED = 8  # taps whose code is written out
SUMMED = 4  # taps up to which "mix_bwd" has registers for all of its sums

Part = Literal["fwd", "dw", "mix", "ds", "mix_bwd"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortconvSpec:
    """`part` "fwd" is the convolution, "dw" the gradients of weight and bias, each part of the work by itself; "mix"
    the mixer's form, "mix_bwd" all of its gradients, and "ds" the one behind its three convolutions, which are computed
    again, for filters of more taps than that has registers for.

    block_l, block_h  times and channels of a tile
    taps      with "dw": taps of a program, whose sums stay in registers
    masked    where a mask of real times says no: "in", x is read as zero; "out", the result is zero; the mixer's have
              both ("in"), for x and s(v), or neither
    offset    with the mixer's form: something is added to the samples of x
    last      layout: whether channels are neighbours in the memory of x, and of y; as the launch has it
    emulated  for Triton's interpreter, which cuts float32 off to bfloat16
    """

    part: Part
    width: int
    dtype: str
    block_l: int = 64
    block_h: int = 64
    taps: int = 1
    bias: bool = False
    masked: Literal["no", "in", "out"] = "no"
    offset: bool = False
    last: tuple[bool, bool] = (False, False)
    num_warps: int = 4
    emulated: bool = False

    @property
    def num_stages(self) -> int:
        """A tile is read at once."""
        return 1

    @property
    def name(self) -> str:
        """For example shortconv_mix_w3_bf16_l64_h64_t1_bias_masked_in_blh_bhl_w4."""
        words = [self.part, f"w{self.width}", self.dtype, f"l{self.block_l}", f"h{self.block_h}", f"t{self.taps}"]
        words += (
            ["bias"] * self.bias + ["offset"] * self.offset + ([] if self.masked == "no" else ["masked", self.masked])
        )
        layouts = ["blh" if last else "bhl" for last in self.last]
        return "_".join(["shortconv", *words, *layouts, *["emulated"] * self.emulated, f"w{self.num_warps}"])

    @property
    def template(self) -> str:
        return f"triton/shortconv/{'mix' if self.part == 'ds' else self.part}.py.jinja"

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    @property
    def sums(self) -> int:
        """Sums of a channel: of each tap, the bias, and the offset where there is one."""
        return self.width + 1 + self.offset

    @property
    def unrolled(self) -> bool:
        return self.width <= UNROLLED

    def launched(self) -> Mapping[str, str]:
        x, y = ("h" if last else "l" for last in self.last)
        return {
            "mask_ptr": "i8",
            "stride_ml": "1",
            "stride_ww": "1",
            **dict.fromkeys(("left", "parts", "items"), "any"),
            **dict.fromkeys((f"stride_x{x}", f"stride_y{y}", f"stride_z{y}", f"stride_g{y}"), "1"),
            **({"sums_ptr": "fp32"} if self.part in ("dw", "mix_bwd") else {}),
            **({"y_ptr": "fp32"} if self.part == "ds" else {}),
        }

    def resources(self, arch: str | None = None) -> Resources:
        """A tile that changes its layout passes through shared memory, in float32 at most; sums meet there."""
        shared = 4 * self.block_l * self.block_h + 16 * max(self.block_l, self.block_h)
        return Resources(shared_bytes=shared, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

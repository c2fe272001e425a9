"""The spectrum of a long filter, in the order and dtype of the fused convolution's kernels, and back to its taps.

A ring of n1 x n2 points is done in one launch, a program a channel: "fwd" and "inverse". A longer one takes two, with
an outer stage of n0 points through memory: "fwd_outer" and "fwd_inner", "inverse_inner" and "inverse_outer". Arithmetic
is float32. The radices need not be the consumer's: a bin's place in its order is computed. Compiled and interpreted,
not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.spec import Resources
from m2gen.kernels.survey import FAMILIES

Part = Literal["fwd", "fwd_outer", "fwd_inner", "inverse", "inverse_inner", "inverse_outer"]
_TILE = 4096  # points of an outer product, at most


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumSpec:
    """`part` says which kernel it is. Parts have the defaults where a field does not concern them (`of_part`).

    n0, n1, n2  radices: the outer stage's (1 without one) and those on chip
    order       radices of the kernel that reads the spectrum, or that wrote the sums: bin k0 + m0 (k1 + m1 k2) stands
                at [k0, k1, k2]
    compute     dtype that the spectrum is rounded to: fp16, bf16, fp32 or, in Triton's interpreter, bf16_emulated
    stack       sums beside one another that are to be added
    two_sided   there are taps of negative lags
    skip        the skip is part of the filter; of the way back, its gradient is summed, too
    rows        of "fwd_inner", on a large ring: rows of its outer stages, which are divided by one number, and...
    bounds      ... the sums that it comes from, in memory: (of which the largest counts, parts of each); else (0, 0)
    precision   of float32 products: tf32x3 (three TF32 products) or ieee
    emulated    for Triton's interpreter, whose conversion to bfloat16 cuts off: it is rounded by hand
    """

    part: Part
    ring: Literal["cyclic", "causal"] = "cyclic"
    n0: int = 1
    n1: int
    n2: int
    order: tuple[int, ...] = ()
    compute: str = "fp32"
    stack: int = 1
    two_sided: bool = False
    skip: bool = False
    rows: int = 1
    bounds: tuple[int, int] = (0, 0)
    precision: str = "tf32x3"
    emulated: bool = False
    num_warps: int = 4

    @property
    def dtype(self) -> str:
        """Of the taps, as a launch is compiled ahead; a kernel takes any."""
        return "fp32"

    @property
    def num_stages(self) -> int:
        """There is no loop whose loads are worth a pipeline."""
        return 1

    @property
    def loops(self) -> tuple[int, ...]:
        return ()

    @property
    def size(self) -> int:
        return self.n0 * self.n1 * self.n2

    @property
    def radices(self) -> tuple[int, ...]:
        return (self.n0, self.n1, self.n2) if self.n0 > 1 else (self.n1, self.n2)

    @property
    def order3(self) -> tuple[int, ...]:
        """The consumer's radices, with 1 for an outer stage that it does not have."""
        return (1, *self.order) if len(self.order) == 2 else self.order

    @property
    def columns(self) -> int:
        """Of the ring in one outer product."""
        return min(self.n1 * self.n2, _TILE // self.n0)

    @property
    def parts(self) -> int:
        """Outer products of a channel."""
        return self.n1 * self.n2 // self.columns

    @property
    def complex_taps(self) -> bool:
        """Whether taps have an imaginary part: those of negative lags on the ring t^N = i."""
        return self.two_sided and self.ring == "causal"

    @property
    def programs(self) -> int:
        """A channel."""
        return self.rows * {"outer": self.parts, "inner": self.n0}.get(self.part.partition("_")[2], 1)

    @property
    def sums(self) -> tuple[int, int]:
        """Of moduli, as they lie: rows or groups of them, and parts of each."""
        return self.bounds if self.rows > 1 else (self.n0, self.parts)

    @property
    def name(self) -> str:
        """For example spectrum_fwd_n4096_r64x64_causal_fp16_r64x64_skip_w8."""
        words = ["spectrum", self.part, f"n{self.size}", _radices(self.radices), self.ring, self.compute]
        words += [_radices(self.order)] if self.order else []
        words += [f"stack{self.stack}"] if self.stack > 1 else []
        words += [f"rows{self.rows}_bounds{self.bounds[0]}x{self.bounds[1]}"] if self.rows > 1 else []
        words += [flag for flag in ("two_sided", "skip", "emulated") if getattr(self, flag)]
        return "_".join([*words, *([self.precision] if self.precision != "tf32x3" else []), f"w{self.num_warps}"])

    @property
    def template(self) -> str:
        return f"triton/spectrum/{self.part}.py.jinja"

    def launched(self) -> Mapping[str, str]:
        """Everything is float32 but the spectrum; taps lie densely, and end anywhere."""
        found = dict.fromkeys(("ahead", "behind", "splits", "k_first", "rev_first"), "any")
        found |= dict.fromkeys(("stride_kl", "stride_revm", "stride_skiph"), "1")
        kf = "fp32" if self.compute == "bf16_emulated" else self.compute
        return found | ({"kf_ptr": kf} if self.part in ("fwd", "fwd_inner") else {})

    def resources(self, arch: str | None = None) -> Resources:
        """Shared memory, at most: for wgmma and its successor of a product the data in two TF32 halves of both parts,
        and the matrix on its way; elsewhere, where operands stand in registers, tiles that change their layout."""
        outer = self.part.endswith("outer")
        rows, columns = (self.n0, self.columns) if outer else (self.n1, self.n2)
        tile, matrix = rows * columns, max(rows, 1 if outer else columns) ** 2
        tiles = {"mma": 2, "mfma": 4}.get(FAMILIES.get(arch or "", ""))
        points = 4 * tile + matrix if tiles is None else max(tiles * tile, matrix)
        return Resources(shared_bytes=4 * points, threads=(64 if arch == "gfx942" else 32) * self.num_warps)


def _radices(radices: tuple[int, ...]) -> str:
    return "r" + "x".join(map(str, radices))

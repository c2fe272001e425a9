"""An outer stage of a large ring: a streaming pass through memory before the convolutions of its rows, or after them.

A ring of n0 rows of `inner` points each, index n = n0' * inner + column. "analysis" reads sequences, does DFTs of n0
points down the columns, multiplies by twiddles and writes complex bins to scratch; "synthesis" undoes that. Between the
two every row k0 is a complex cyclic ring of its own: on chip, or, `nested`, with an outer stage inside, in place.
Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from m2gen.dtypes import DTYPES
from m2gen.kernels.fftconv import COMPUTE_BYTES
from m2gen.kernels.spec import Resources
from m2gen.kernels.survey import BARRIERS

RADICES = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterSpec:
    """One pass, for rows of any number of points that is a multiple of `columns`.

    ring       "cyclic": two batch rows make a complex one; "causal": one real row, t^N = i
    dtype      of the sequences: fp16, bf16, fp32; of nested passes that of scratch
    compute    of the products' operands and of scratch, as in FftConvSpec
    columns    of a tile
    gate       sequences are multiplied by a second one: as they are read, or as they are written
    second     with "synthesis": there are two results, with a gate each
    pair       with "analysis": two sequences are read, to a scratch each, the second (`pair_gate`: with a gate of its
               own) as it stands on the ring; `skip`: and the sum of their products, the gradient of the skip
    add        with "synthesis": something is added to the result
    wrap       a circular problem on a longer ring, read periodically; `transpose`: its transpose, which looks ahead
    ranged     sequences are brought into half precision's range as they are read, by a power of two of the largest
               number of their complex row, which is in memory, and results brought back
    nested     both sides are complex scratch, the same memory
    emulated   for Triton's interpreter, whose conversion to bfloat16 cuts off: results are rounded by hand
    """

    part: Literal["analysis", "synthesis"]
    ring: Literal["cyclic", "causal"]
    n0: int
    columns: int
    dtype: str
    compute: str
    gate: bool = False
    second: bool = False
    pair: bool = False
    pair_gate: bool = False
    skip: bool = False
    add: bool = False
    wrap: bool = False
    transpose: bool = False
    ranged: bool = False
    nested: bool = False
    emulated: bool = False
    num_warps: int = 4
    num_stages: int = 2

    @property
    def name(self) -> str:
        """For example outer_analysis_n32_c64_cyclic_bf16_fp16_gate_w4_s2."""
        flags = ["gate", "second", "pair", "pair_gate", "skip", "add", "wrap", "transpose"]
        flags += ["ranged", "nested", "emulated"]
        words = ["outer", self.part, f"n{self.n0}", f"c{self.columns}", self.ring, self.dtype, self.compute]
        words += [word for word in flags if getattr(self, word)]
        return "_".join([*words, f"w{self.num_warps}", f"s{self.num_stages}"])

    @property
    def template(self) -> str:
        return f"triton/outer/{self.part}.py.jinja"

    @property
    def rows(self) -> int:
        """Real rows in one complex one."""
        return 2 if self.ring == "cyclic" else 1

    @property
    def loops(self) -> tuple[int, ...]:
        """A program's loop is over blocks of columns, as others' is over tiles: nothing is inside."""
        return ()

    @property
    def looks_ahead(self) -> bool:
        """As the pieces that kernels on chip share have it."""
        return self.transpose

    @property
    def operands(self) -> tuple[str, ...]:
        """The sequences with strides of their own, in the order of a launch."""
        if self.part == "analysis":
            there = {"u": True, "gate": self.gate, "v": self.pair, "vgate": self.pair_gate}
            return tuple(name for name, given in there.items() if given)
        there = {"gate": self.gate, "second": self.second, "add": self.add, "y": True, "z": self.second}
        return tuple(name for name, given in there.items() if given)

    @property
    def sources(self) -> tuple[tuple[str, str, str, str, bool, bool], ...]:
        """What an analysis reads: (sequence, its gate, places that are read, scratch, whether it has that gate, whether
        it is brought into range)."""
        first = ("u", "gate", "reads", "s", self.gate, self.ranged)
        return (first, ("v", "vgate", "writes", "t", self.pair_gate, False)) if self.pair else (first,)

    def launched(self) -> Mapping[str, str]:
        ones = {f"stride_{name}l": "1" for name in self.operands}
        scratch = ("a0_ptr", "s_ptr", *(("t_ptr",) if self.pair else ()))
        given = {"scale_ptr": self.part == "synthesis" and not self.nested, "largest_ptr": self.ranged}
        floats = [name for name, there in {**given, "skip_ptr": self.skip}.items() if there]
        numbers = ("batch", "shift", "channels", "splits")
        return {
            **dict.fromkeys(numbers, "any"),
            **ones,
            **dict.fromkeys(scratch, self.compute),
            **dict.fromkeys((*floats, "near_ptr", "far_ptr"), "fp32"),
        }

    def resources(self, arch: str | None = None) -> Resources:
        """The matrix and the product's other operand; and what a loop reads ahead, which one with a barrier does not.
        As Triton 3.7.1 lays it out for Hopper; other CUDA devices take no more, gfx942 two float32 results at least."""
        operand, parts = COMPUTE_BYTES[self.compute], 2 if self.compute == "fp32" else 1  # three products of parts
        analysis, tile = self.part == "analysis", self.n0 * self.columns
        shared = operand * parts * (2 * self.n0 * self.rows * self.n0 + 2 * tile)
        if self.num_stages > 1 and not self.nested:
            sources = 1 + self.gate + self.pair + self.pair_gate
            ahead = self.rows * tile * sources * DTYPES[self.dtype].bytes
            shared += ahead if analysis else 2 * tile * (operand + 4) + 8 * self.n0
        if arch == "gfx942":
            shared = max(shared, 16 * tile)
        shared += BARRIERS.get(arch, 0) if arch else 0
        return Resources(shared_bytes=shared, threads=(64 if arch == "gfx942" else 32) * self.num_warps)

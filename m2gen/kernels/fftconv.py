"""The fused FFT convolution of order 2: one block holds a whole transform of N = n1 * n2 complex points.

Rings. "cyclic": two batch rows of one channel make one complex row, t^N = 1; every mode. "causal": one real row,
t^N = i (weights theta^n, theta = exp(i pi / 2N)), whose real part is the linear convolution, with taps of both sides,
without padding to 2N; every mode but circular.

The transform's matrices are real blocks: A1 acts on rows from the left, B2 on columns from the right, and their
transposes undo them. With the cyclic ring and n1 = n2, B2 is A1 transposed and one matrix does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.spec import Resources
from m2gen.kernels.survey import BARRIERS, operands_beside, tile

RADICES = (16, 32, 64, 128)
# in this order: of u, of the gates and of the filter; or the convolution itself instead of the second gate's
RESULTS = ("du", "dpre", "dpost", "conv", "dk")
_FLAGS = ("pre_gate", "post_gate", "transpose", "skip", "add", "wrap", "full")
COMPUTE_BYTES = {"fp16": 2, "bf16": 2, "fp32": 4, "bf16_emulated": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class FftConvSpec:
    """`part` "fwd" is the convolution or, with `transpose`, its transpose; "dk" the filter's gradient in spectra; "bwd"
    several gradients at once.

    results  with "bwd": which of RESULTS it writes

    dtype    of the tensors: fp16, bf16, fp32
    compute  of the matrix products' operands: fp16, bf16, or fp32 as three TF32 products (sums are float32 always);
             bf16_emulated rounds to bfloat16 in float32, for Triton's interpreter, whose bfloat16 arithmetic is wrong
    n0       rows of an outer stage through memory; 1 where the whole ring is on chip
    stack    transforms in one tile, one above the other, so that products have rows enough for the matrix unit
    skip     with "dk" and "bwd": the skip's gradient too (a forward kernel has the skip inside the filter's spectrum)
    add      with "fwd": a tensor is added to the result; its resources are those of the kernel without
    wrap     a circular problem on a longer ring: the input is read periodically, its first k - 1 outputs are dropped
    full     every place of every tile holds a sample (`fills`), so that nothing is masked; same resources
    """

    part: Literal["fwd", "dk", "bwd"]
    ring: Literal["cyclic", "causal"]
    n1: int
    n2: int
    n0: int = 1
    stack: int = 1
    dtype: str
    compute: str
    results: tuple[str, ...] = ()
    pre_gate: bool = False
    post_gate: bool = False
    transpose: bool = False
    skip: bool = False
    add: bool = False
    wrap: bool = False
    full: bool = False
    num_warps: int = 4
    num_stages: int = 2

    @property
    def size(self) -> int:
        return self.n0 * self.n1 * self.n2

    @property
    def radices(self) -> tuple[int, ...]:
        return (self.n0, self.n1, self.n2) if self.staged else (self.n1, self.n2)

    @property
    def staged(self) -> bool:
        """Whether an outer stage of n0 rows goes through memory; what is inside is then a cyclic complex transform."""
        return self.n0 > 1

    @property
    def name(self) -> str:
        """For example fftconv_fwd_n4096_r64x64_cyclic_bf16_fp16_pre_post_w8_s2."""
        stack = [f"stack{self.stack}"] if self.stack > 1 else []
        flags = [word for word in _FLAGS if getattr(self, word)]
        words = [
            "fftconv",
            self.part,
            f"n{self.size}",
            "r" + "x".join(map(str, self.radices)),
            self.ring,
            self.dtype,
            self.compute,
        ]
        words += [*self.results, *stack, *(flag.removesuffix("_gate") for flag in flags)]
        return "_".join([*words, f"w{self.num_warps}", f"s{self.num_stages}"])

    @property
    def surveyed(self) -> str:
        """Its part in the survey's table."""
        return " ".join(self.results) if self.part == "bwd" else self.part

    @property
    def template(self) -> str:
        return f"triton/fftconv/{'staged_' if self.staged else ''}{self.part}.py.jinja"

    @property
    def scratch_bytes(self) -> int:
        """Memory that each program writes and reads again: complex rings, one, or of the filter's gradient two."""
        rings = (1 if self.part == "fwd" else 2) if self.staged else 0
        return rings * 2 * self.size * COMPUTE_BYTES[self.compute]

    @property
    def columns(self) -> int:
        """Columns of the ring in one outer product: 1024 reals of two batch rows for each warp, more would spill."""
        return 512 * self.num_warps // self.n0

    @property
    def outer_rows(self) -> int:
        """Batch rows in one transform, under the name that the staged templates know."""
        return self.rows

    @property
    def loops(self) -> tuple[int, ...]:
        """Turns of the loops inside one tile: with an outer stage passes over the columns, and over the rows."""
        passes = self.n1 * self.n2 // self.columns
        turns = (passes, self.n0 // self.stack, passes)
        return (turns if self.part == "fwd" else turns[:2]) if self.staged else ()

    @property
    def reload_spectrum(self) -> bool:
        """Whether the filter's spectrum is read again for each tile: kept, it would take a third of the registers, and
        the transforms would spill (seen from 4096 points on)."""
        return self.size >= 4096 or self.reloads

    @property
    def reloads(self) -> bool:
        """With "bwd": whether twiddles and operands, too, are read again where they are needed again; kept, they would
        spill (seen from 1024 points on)."""
        return self.part == "bwd" and self.size >= 1024

    @property
    def rows(self) -> int:
        """Batch rows in one transform."""
        return 2 if self.ring == "cyclic" else 1

    @property
    def held(self) -> int:
        """Rows of a tile of bins: n1 for each transform that is stacked."""
        return self.stack * self.n1

    @property
    def batch_rows(self) -> int:
        """Batch rows in one tile: with an outer stage the stacked transforms are of one row."""
        return self.rows if self.staged else self.rows * self.stack

    @property
    def scales(self) -> bool:
        """Whether the gradient that comes in is divided by a power of two before it is rounded: it may be of any size,
        and half precision has but a small part of bfloat16's range."""
        return self.dtype == "bf16" and self.compute == "fp16" and (self.transpose or self.part != "fwd")

    @property
    def of_u(self) -> bool:
        """With "bwd": whether it transforms u * pre."""
        return not {"dpost", "conv", "dk"}.isdisjoint(self.results)

    @property
    def of_dy(self) -> bool:
        """With "bwd": whether it transforms dy * post."""
        return not {"du", "dpre", "dk"}.isdisjoint(self.results)

    @property
    def looks_ahead(self) -> bool:
        """Whether it is of the transpose, to whose circle `wrap` adds places behind the end instead of in front."""
        return self.transpose or not {"du", "dpre"}.isdisjoint(self.results)

    @property
    def sequences(self) -> tuple[str, ...]:
        """With "bwd": the tensors that it reads, and then those it writes."""
        read = {
            "u": self.of_u or "dpre" in self.results,
            "pre": self.pre_gate and (self.of_u or "du" in self.results),
            "post": self.post_gate and self.of_dy,
            "dy": self.of_dy or "dpost" in self.results,
        }
        return (*(name for name, there in read.items() if there), *(one for one in self.results if one != "dk"))

    def fills(self, length: int, batch: int) -> bool:
        """Whether sequences of `length` samples, `batch` of a channel, leave no place of a tile empty."""
        return length == self.size and batch % self.batch_rows == 0 and not self.wrap

    @property
    def one_matrix(self) -> bool:
        """Whether B2 is A1 transposed."""
        return (self.staged or self.ring == "cyclic") and self.n1 == self.n2 and self.stack == 1

    @property
    def a1_shape(self) -> tuple[int, int]:
        """[Yr; Yi] = A1 @ rows: the input is two stacked real rows, or one; block-diagonal over what is stacked."""
        return 2 * self.held, (2 if self.staged else self.rows) * self.held

    @property
    def b2_shape(self) -> tuple[int, int]:
        """[Zr | Zi] = [Yr | Yi] @ B2."""
        return 2 * self.n2, 2 * self.n2

    @property
    def matrices(self) -> int:
        """Entries of the constant matrices."""
        entries = self.a1_shape[0] * self.a1_shape[1] + (0 if self.one_matrix else self.b2_shape[0] * self.b2_shape[1])
        return entries + (2 * self.n0 * self.rows * self.n0 if self.staged else 0)

    def resources(self, arch: str | None = None) -> Resources:
        """What a block needs on `arch`; without one, an estimate.

        Shared memory is the matrices and the tiles beside them that kernels/survey.py has from Triton 3.7.1: exact for
        the kernel with both gates, and no less than the others take. The estimate, also for a kernel that the table
        does not have, is the matrices and one complex tile.
        """
        beside = None if arch is None else operands_beside(self, arch)
        beside = 2 * tile(self) if beside is None else beside
        shared = COMPUTE_BYTES[self.compute] * (self.matrices + beside) + (BARRIERS.get(arch, 0) if arch else 0)
        return Resources(shared_bytes=math.ceil(shared), threads=(64 if arch == "gfx942" else 32) * self.num_warps)

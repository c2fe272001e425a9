"""The long convolution in C++: real rows, one at a time or a channel a lane, on the negacyclic ring, by small radices.

The ring of `size` complex points t^size = i is the real ring t^(2 size) = -1: place p of a real row is the real part of
point p, or the imaginary part of point p - size. See templates/cpp/fftconv/README.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

from m2gen.dtypes import DTYPES
from m2gen.kernels.spec import Resources

NEAR_POINTS = 2048  # of a complex block whose passes are done while it stays in the nearest cache
NEAR_BYTES = 32 * 2**10  # of a block of vectors of channels, likewise
REAL = {"fp32": ("float", 4), "fp64": ("double", 8)}
DATA = {"fp32": "float", "fp64": "double", "bf16": "uint16_t", "fp16": "uint16_t"}


class Pass(NamedTuple):
    """One pass over the ring: `blocks` blocks of `points` points each are split by `radix`."""

    radix: int
    blocks: int
    points: int
    offset: int  # of its twiddles in the table
    near: bool
    vectors: int  # complex ones that a block is


class Stage(NamedTuple):
    """A butterfly across lanes: `exchange` brings its terms into different vectors; `turned` ones meet twiddles."""

    radix: int
    exchange: str
    turned: tuple[int, ...]
    first: int  # its first twiddle vector in the table


class Offsets(NamedTuple):
    """Where the parts of the table begin, in numbers."""

    leaf_scalars: int
    leaf_lanes: int
    end: int


LEAF_OPERATIONS = 35  # 4 + 6 complex products and 3 transforms of 4 points in 4 vectors, and 32 shuffles

Level = list[tuple[int, int, list[int]]]


def codelet(vector_bytes: int) -> int:
    """Points that stay in registers, a complex vector each: 32 registers hold 8 of them, 16 hold 4."""
    return 8 if vector_bytes == 64 else 4


def idle(channels: int, group: int) -> float:
    """How much longer `channels` take by groups: one that is not full counts twice, for its lanes are gathered."""
    whole, rest = divmod(channels, group)
    return group * (whole + 2 * bool(rest)) / channels


def _operations(radix: int) -> float:
    """FLOP for each point of a pass: radix - 1 complex products and a transform of `radix` points, over `radix`."""
    pairs = (radix - 1) // 2
    transform = {1: 0, 2: 4, 4: 16, 8: 60}.get(radix, 12 * pairs + 8 * pairs * pairs)
    return (6 * (radix - 1) + transform) / radix


@dataclass(frozen=True, kw_only=True)
class FftConvCppSpec:
    """`part` "fwd" is the convolution, "bwd" all its gradients, "spectrum" the filters' spectra alone.

    size         complex points of the ring, 4 vectors times the radices
    vector       numbers in a vector register
    dtype        of the tensors: fp16, bf16, fp32, fp64
    compute      of the arithmetic: fp32, fp64
    half         sequences fit the real parts: the imaginary ones are zero, or not wanted
    half_filter  so does the filter, which has no negative lags then
    kept         with "fwd": spectra are read, not made
    add          with "fwd": a tensor is added to the result
    wide         0: vectors lie along time. Else this many vectors of channels are transformed together, a lane a
                 channel, and a ring is a codelet's points times the radices
    """

    part: Literal["fwd", "bwd", "spectrum"]
    radices: tuple[int, ...]
    vector: int
    dtype: str
    compute: str
    half: bool
    half_filter: bool
    kept: bool = False
    add: bool = False
    wide: int = 0
    arch: str = "native"

    @property
    def name(self) -> str:
        """For example fftconv_cpp_fwd_n8192_r8x4x4_v16_fp32_fp32_half_halffilter_native."""
        flags = [word.replace("_", "") for word in ("half", "half_filter", "kept", "add") if getattr(self, word)]
        radices = "x".join(map(str, self.radices))
        words = ["fftconv_cpp", self.part, f"n{self.size}", f"r{radices}", f"v{self.vector}", self.dtype, self.compute]
        return "_".join([*words, *flags, *[f"lanes{self.wide}"] * bool(self.wide), self.arch])

    @property
    def template(self) -> str:
        return f"cpp/fftconv/{'lanes_' * bool(self.wide)}{self.part}.cpp.jinja"

    @property
    def of_filters(self) -> FftConvCppSpec:
        """The kernel of the spectra that a `kept` one reads."""
        return replace(self, part="spectrum", kept=False, add=False)

    @property
    def leaf(self) -> int:
        """Points of a block that stays in registers: 4 vectors; of channels, as many vectors as there are points."""
        return codelet(self.vector_bytes) if self.wide else 4 * self.vector

    @property
    def group(self) -> int:
        """Channels that one work item holds where lanes are channels."""
        return self.wide * self.vector

    @property
    def leaves(self) -> int:
        return math.prod(self.radices)

    @cached_property
    def size(self) -> int:
        return self.leaf * self.leaves

    @property
    def vectors(self) -> int:
        """Complex vectors that a ring is; of a group of channels, where lanes are channels."""
        return self.size * self.wide if self.wide else self.size // self.vector

    @cached_property
    def factors(self) -> tuple[int, ...]:
        """The whole transform's radices: those of the passes, then of the leaf."""
        leaf = (self.leaf,) if self.wide else (4, *(stage.radix for stage in self.stages))
        return (*(radix for radix in self.radices if radix > 1), *leaf)

    @cached_property
    def operations(self) -> float:
        """Operations for each point of a transform: FLOP, and the leaf's shuffles, whose cost is like theirs."""
        leaf = _operations(self.leaf) if self.wide else LEAF_OPERATIONS
        return leaf + sum(_operations(radix) for radix in self.radices)

    @property
    def real(self) -> str:
        return REAL[self.compute][0]

    @property
    def real_bytes(self) -> int:
        return REAL[self.compute][1]

    @property
    def vector_bytes(self) -> int:
        return self.vector * self.real_bytes

    @property
    def data(self) -> str:
        return DATA[self.dtype]

    @property
    def data_bytes(self) -> int:
        return DTYPES[self.dtype].bytes

    @property
    def odd_radices(self) -> tuple[int, ...]:
        return tuple(sorted({radix for radix in self.radices if radix % 2 and radix > 1}))

    @property
    def passes(self) -> tuple[Pass, ...]:
        found: list[Pass] = []
        blocks, offset = 1, self._constants
        for i, radix in enumerate(self.radices):
            points = self.size // blocks
            found.append(
                Pass(radix, blocks, points, offset, i > 0 and points <= self._near_points, self.vectors // blocks)
            )
            offset += 2 * (radix - 1) * blocks
            blocks *= radix
        return tuple(found)

    @property
    def _near_points(self) -> int:
        return NEAR_BYTES // (2 * self.vector_bytes * self.wide) if self.wide else NEAR_POINTS

    @property
    def blocks_near(self) -> int:
        """How many blocks are done one after the other, each in the nearest cache."""
        return next((p.blocks for p in self.passes if p.near), self.leaves)

    @property
    def _constants(self) -> int:
        return 0 if self.wide else 2 * self.vector * sum(len(stage.turned) for stage in self.stages)

    @property
    def offsets(self) -> Offsets:
        scalars = self._constants + sum(2 * (p.radix - 1) * p.blocks for p in self.passes)
        if self.wide:
            end = scalars + 2 * (self.leaf - 1) * self.leaves
            return Offsets(scalars, end, end)
        lanes = -(-(scalars + 6 * self.leaves) // self.vector) * self.vector
        return Offsets(scalars, lanes, lanes + 2 * self.vector * self.leaves)

    @property
    def parts(self) -> int:
        """Parts of 128 bits in a vector."""
        return self.vector_bytes // 16

    @property
    def stages(self) -> tuple[Stage, ...]:
        found: list[Stage] = []
        first = 0
        for radix, exchange in ((self.parts, "exchange_parts"), (self.vector // self.parts, "exchange_lanes")):
            if radix > 1:
                turned = (1, 2, 3) if radix == 4 else (1, 3)
                found.append(Stage(radix, exchange, turned, first))
                first += len(turned)
        return tuple(found)

    @property
    def backwards(self) -> str:
        """The lanes from last to first, as text."""
        return ", ".join(map(str, reversed(range(self.vector))))

    @property
    def turns(self) -> list[tuple[str, tuple[int, ...]]]:
        """The transpose of a vector x vector tile: which vectors make which exchanges, first inside parts."""
        parts, lanes = self.parts, self.vector // self.parts
        found = [("exchange_lanes", tuple(range(base, base + 4))) for base in range(0, self.vector, 4)]
        if parts == 4:
            found += [("exchange_parts", tuple(i + lanes * j for j in range(4))) for i in range(lanes)]
        if parts == 2:
            found += [("exchange_parts", (i, i + lanes, i + 1, i + 1 + lanes)) for i in range(0, lanes, 2)]
        return found

    @property
    def shuffles(self) -> dict[str, list[Level]]:
        """Each exchange as levels of two-operand shuffles: vector i of 4 becomes `lanes` of vectors (a, b)."""
        every = {
            "exchange_parts": _parts_levels(self.vector, self.parts),
            "exchange_lanes": _lanes_levels(self.vector, self.parts),
        }
        return {stage.exchange: every[stage.exchange] for stage in self.stages}

    @property
    def exchanges(self) -> list[tuple[str, list[list[tuple[int, int, str]]]]]:
        """`shuffles` with the lanes as text."""
        return [(name, _printed(levels)) for name, levels in self.shuffles.items()]

    @property
    def cosines(self) -> dict[int, list[str]]:
        """cos(2 pi j / r) for the odd radices, to be indexed modulo r."""
        return {r: [repr(math.cos(2 * math.pi * j / r)) for j in range(r)] for r in self.odd_radices}

    @property
    def sines(self) -> dict[int, list[str]]:
        return {r: [repr(math.sin(2 * math.pi * j / r)) for j in range(r)] for r in self.odd_radices}

    @property
    def places(self) -> int:
        """Places of a row of the ring that a sequence may use."""
        return self.size if self.half else 2 * self.size

    @property
    def row(self) -> int:
        """Numbers from one row in scratch to the next: no power of two, so that rows do not meet in a cache set."""
        return self.places + self.vector

    @property
    def rings(self) -> int:
        """Rings that stand in scratch where lanes are channels: forward that of a row and the filter's spectrum,
        backward the sum of the batch and a second row beside them."""
        return {"fwd": 1 if self.kept else 2, "bwd": 4, "spectrum": 0}[self.part]

    @property
    def scratch_fixed(self) -> int:
        """Bytes of scratch a call, backward: two rings and the taps."""
        return 6 * self.size * self.real_bytes

    @property
    def scratch_each(self) -> int:
        """Bytes of scratch more for each channel done together, backward: two rows and two spectra."""
        return 2 * (2 * self.size + self.row) * self.real_bytes

    def scratch_bytes(self, channels: int, batch: int = 2) -> int:
        """Bytes of scratch a thread, where `channels` are done together. Forward: the ring, a row of each channel, and
        spectra: of each where a batch shares them, else of one."""
        if self.wide:
            return self.rings * 2 * self.size * self.group * self.real_bytes
        if self.part == "bwd":
            return self.scratch_fixed + channels * self.scratch_each
        spectra = channels if batch > 1 else 1
        return self.real_bytes * (2 * self.size * (1 + spectra) + channels * self.row)

    def resources(self) -> Resources:
        return Resources(shared_bytes=0, threads=1)


def _parts_levels(vector: int, parts: int) -> list[Level]:
    """The transpose of parts x parts parts of 128 bits between vectors; pairs of vectors where there are 2 parts."""
    each = vector // max(parts, 1)

    def lanes(*chosen: int) -> list[int]:
        return [part * each + lane for part in chosen for lane in range(each)]

    if parts == 2:
        return [[(0, 1, lanes(0, 2)), (0, 1, lanes(1, 3)), (2, 3, lanes(0, 2)), (2, 3, lanes(1, 3))]]
    low, high, even, odd = lanes(0, 1, 4, 5), lanes(2, 3, 6, 7), lanes(0, 2, 4, 6), lanes(1, 3, 5, 7)
    return [
        [(0, 1, low), (0, 1, high), (2, 3, low), (2, 3, high)],
        [(0, 2, even), (0, 2, odd), (1, 3, even), (1, 3, odd)],
    ]


def _lanes_levels(vector: int, parts: int) -> list[Level]:
    """The transpose inside parts of 128 bits: 4 x 4 between vectors, or 2 x 2 between pairs of them."""
    each = vector // max(parts, 1)

    def lanes(*chosen: int) -> list[int]:
        """`chosen` of the lanes of one part, those of the second vector counted on."""
        return [
            part * each + lane if lane < each else vector + part * each + lane - each
            for part in range(max(parts, 1))
            for lane in chosen
        ]

    if each == 2:
        return [[(0, 1, lanes(0, 2)), (0, 1, lanes(1, 3)), (2, 3, lanes(0, 2)), (2, 3, lanes(1, 3))]]
    low, high, first, second = lanes(0, 4, 1, 5), lanes(2, 6, 3, 7), lanes(0, 1, 4, 5), lanes(2, 3, 6, 7)
    return [
        [(0, 1, low), (0, 1, high), (2, 3, low), (2, 3, high)],
        [(0, 2, first), (0, 2, second), (1, 3, first), (1, 3, second)],
    ]


def _printed(levels: list[Level]) -> list[list[tuple[int, int, str]]]:
    return [[(a, b, ", ".join(map(str, lanes))) for a, b, lanes in level] for level in levels]

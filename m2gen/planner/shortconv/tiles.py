"""Which short convolution's kernel to run: tiles by what they move and by what they read from cache."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.shortconv import Part, ShortconvSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.shortconv.problem import ShortconvProblem

_CUT = 8  # bytes that the end of a line costs, where a tile cuts it
_MOST_WARPS = 64  # of a multiprocessor
_HIDING = 16  # warps of a multiprocessor that hide how long memory takes to answer
_TILES = ((64, 64), (32, 64), (64, 32), (32, 32), (128, 32), (32, 128), (128, 16), (16, 128), (16, 16), (256, 1))
_ISSUE = 1.2e9  # a multiprocessor's instructions a second on 32 numbers each: loads, a third of the clock
_LIVE = 160  # registers of a thread for sums over times and for the samples that a tile reads
_STEPS = 4  # tiles that each part of these sums has at least


@dataclass(frozen=True, slots=True)
class ShortconvSizes:
    """channels: of the result; in the mixer's form a third of what comes in. last_in, last_out: whether channels are
    neighbours in memory."""

    batch: int
    channels: int
    length: int
    width: int
    dtype: str
    length_out: int | None = None  # None: as long
    bias: bool = False
    masked: Literal["no", "in", "out"] = "no"
    offset: bool = False
    last_in: bool = False
    last_out: bool = False

    @property
    def outputs(self) -> int:
        return self.length if self.length_out is None else self.length_out


def sizes_of(problem: ShortconvProblem) -> ShortconvSizes:
    """The problem as the kernels' tiles are chosen by."""
    return ShortconvSizes(
        batch=problem.b,
        channels=problem.h,
        length=problem.n,
        width=problem.width,
        dtype=problem.dtype,
        length_out=problem.outputs,
        bias=problem.bias,
        masked="in" if problem.masked else "no",
        offset=problem.offset,
        last_in=problem.layout == "BLH",
        last_out=problem.layout_out == "BLH",
    )


def candidates(sizes: ShortconvSizes, limits: DeviceLimits, part: Part = "fwd") -> list[Candidate[ShortconvSpec]]:
    """Kernels for one part, the quickest first. The gradient in x is "fwd" with the taps reversed."""
    found = (estimated(sizes, spec, limits) for spec in _specs(sizes, limits, part))
    return sorted(found, key=lambda one: one.seconds)


def estimated(sizes: ShortconvSizes, spec: ShortconvSpec, limits: DeviceLimits) -> Candidate[ShortconvSpec]:
    """A kernel with what it should cost."""
    estimate = _gradient if spec.part in ("dw", "mix_bwd") else _convolution
    return estimate(sizes, spec, limits)


def _specs(sizes: ShortconvSizes, limits: DeviceLimits, part: Part) -> Iterator[ShortconvSpec]:
    for block_l, block_h in _TILES:
        warps = block_l * block_h // (32 * _numbers(sizes.width, part))
        if warps > 8:
            continue
        spec = ShortconvSpec(
            part=part,
            width=sizes.width,
            dtype=sizes.dtype,
            block_l=block_l,
            block_h=block_h,
            taps=min(sizes.width, 4) if part == "dw" else 1,
            bias=sizes.bias and part != "dw",  # the gradient of a bias is summed in any case
            masked=sizes.masked,
            offset=sizes.offset and part in ("mix", "mix_bwd", "ds"),
            last=(sizes.last_in, sizes.last_out),
            num_warps=max(1, warps),
        )
        if spec.resources(limits.arch).shared_bytes <= limits.shared_bytes:
            yield spec


def _numbers(width: int, part: Part) -> int:
    """Numbers of a tile that a thread has: fewer where a sum for every tap of three streams stays in registers, and the
    samples of all results that a sample meets."""
    return min(16, 2 ** int(math.log2(_LIVE / (3 * (width + 2) + 5 * width + 1)))) if part == "mix_bwd" else 16


def _pieces(spec: ShortconvSpec, last: bool) -> float:
    """What a tile's lines cost, whole ones 1; and a block of many warps, which wait for one another."""
    along = spec.block_h if last else spec.block_l
    return (1 + _CUT / (DTYPES[spec.dtype].bytes * along)) * (1 + spec.num_warps / _MOST_WARPS)


def _convolution(sizes: ShortconvSizes, spec: ShortconvSpec, limits: DeviceLimits) -> Candidate[ShortconvSpec]:
    tiles_l, tiles_h = -(-sizes.outputs // spec.block_l), -(-sizes.channels // spec.block_h)
    programs = sizes.batch * tiles_l * tiles_h
    each, one = DTYPES[sizes.dtype].bytes, float(sizes.batch * sizes.channels)
    w = spec.width
    loads, reads, writes = {  # of a time of a channel: from cache; tensors from and to memory
        "fwd": (w, 1, 1),
        "mix": (3 * w, 3, 2),
        "ds": (2 * w + 2, 4, 3 * 4 / each),  # in float32
    }[spec.part]
    first, second = one * sizes.length * each * reads, one * sizes.outputs * each * writes
    moved = first + second
    # from one tile of times to the next, width - 1 times are read again, from the L2 cache
    wide = first * _pieces(spec, sizes.last_in) + second * _pieces(spec, sizes.last_out)
    aligned = sizes.last_in or spec.width == 1  # else neighbours in time are read one by one
    issued = programs * spec.block_l * spec.block_h / 32 * loads * (each / 8 if aligned else 1)
    return Candidate(spec, _seconds(limits, wide, issued, programs * spec.num_warps), moved)


def _gradient(sizes: ShortconvSizes, spec: ShortconvSpec, limits: DeviceLimits) -> Candidate[ShortconvSpec]:
    tiles_l, tiles_h = -(-sizes.outputs // spec.block_l), -(-sizes.channels // spec.block_h)
    mixed = spec.part == "mix_bwd"
    groups, items = 1 if mixed else -(-spec.width // spec.taps), sizes.batch * tiles_l
    warps = tiles_h * groups * spec.num_warps
    parts = max(1, min(-(-_HIDING * limits.cores // warps), items // _STEPS))
    each, one = DTYPES[sizes.dtype].bytes, float(sizes.batch * sizes.channels)
    sums = 2 * 4.0 * parts * (3 if mixed else 1) * sizes.channels * (spec.sums if mixed else spec.width + 1)
    tensors = one * each * (8 * sizes.length if mixed else groups * (sizes.length + sizes.outputs))
    moved, wide = tensors + sums, tensors * _pieces(spec, sizes.last_in) + sums
    loads = 7 * spec.width - 2 if mixed else groups * (spec.taps + 1)
    issued = items * tiles_h * spec.block_l * spec.block_h / 32 * loads
    seconds = _seconds(limits, wide, issued, parts * warps) + limits.call_seconds
    return Candidate(spec, seconds, moved, parts)


def _seconds(limits: DeviceLimits, wide: float, issued: float, warps: int) -> float:
    """The slower of memory and of issuing loads; where warps are too few to hide the latency, so much more."""
    idle = max(1.0, limits.cores * _HIDING / max(warps, 1))
    return limits.call_seconds + max(issued / (limits.cores * _ISSUE), wide / limits.dram_bandwidth) * idle

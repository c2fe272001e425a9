"""Generated Triton kernels for a GPU: a product for each factor whose permutations are strides, or, of two factors
whose tiles stay on chip, both in one kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.monarch import MonarchSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.blockdiag import tiles
from m2gen.planner.blockdiag.tiles import BlockdiagSizes, precision_of
from m2gen.planner.languages import no_triton
from m2gen.planner.monarch.factorings import factorings, why_none
from m2gen.planner.monarch.problem import MonarchProblem, Shape, parameters
from m2gen.planner.monarch.steps import FusedMonarch
from m2gen.planner.plan import Plan
from m2gen.planner.step import Estimate

_NUMBERS = 128  # of a tile that a thread has at most
_REACHED = 0.25  # share of the matrix unit's rate that products of small blocks reach
_Stage = Candidate[BlockdiagSpec]


@dataclass(frozen=True, slots=True)
class Fused:
    name: str = "fused"

    def reject(self, problem: MonarchProblem, limits: DeviceLimits) -> str | None:
        if why := no_triton(limits):
            return why
        if problem.dtype == "fp64":
            return "its products are of 16 or 32 bits, not fp64"
        if next(factorings(problem), None) is None:
            return why_none(problem)
        if next(self.candidates(problem, limits), None) is None:
            return f"no tile fits the {limits.shared_bytes} bytes of shared memory and the registers"
        return None

    def left_out(self, problem: MonarchProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: MonarchProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for factors in factorings(problem):
            stages = [_stage(problem.rows, shape, problem.dtype, len(factors) > 1, limits) for shape in factors]
            if not all(stages):
                continue
            forward, back, of_weight = zip(*(stage for stage in stages if stage is not None), strict=True)
            by_stages = FusedMonarch(
                Estimate(
                    flop=2.0 * problem.rows * parameters(factors),
                    bytes=sum(one.bytes for one in forward),
                    launches=len(factors),
                    working_set=sum(one.bytes for one in forward),
                    seconds=sum(one.seconds for one in forward),
                ),
                factors,
                tuple(one.spec for one in forward),
                tuple(replace(one.spec, turned=True) for one in back),
                tuple(one.spec for one in of_weight),
                tuple(one.parts for one in of_weight),
                None,
                None,
            )
            whole = _whole(problem, factors, limits)
            if whole is not None:
                estimate = Estimate(by_stages.estimate.flop, whole.bytes, 1, whole.bytes, whole.seconds)
                turned = _turned(problem, limits, whole.spec)
                at_once = replace(by_stages, estimate=estimate, whole=whole.spec, whole_back=turned)
                yield Plan(problem, limits.arch, self.name, (at_once,))
            yield Plan(problem, limits.arch, self.name, (by_stages,))


@lru_cache(maxsize=4096)
def _stage(
    rows: int, shape: Shape, dtype: str, apart: bool, limits: DeviceLimits
) -> tuple[_Stage, _Stage, _Stage] | None:
    """The quickest kernels of a factor, of the gradient behind it and of its weight's; None where no tile fits."""
    count, out, into = shape
    sizes = BlockdiagSizes(rows, count, into, out, dtype, apart_x=apart, apart_y=apart)
    turned = BlockdiagSizes(rows, count, out, into, dtype, apart_x=apart, apart_y=apart)
    wanted = (tiles.candidates(sizes, limits), tiles.candidates(turned, limits), tiles.candidates(sizes, limits, "dw"))
    first = [next(iter(found), None) for found in wanted]
    return None if None in first else (first[0], first[1], first[2])  # type: ignore[return-value]


def _whole(problem: MonarchProblem, factors: tuple[Shape, ...], limits: DeviceLimits) -> Candidate[MonarchSpec] | None:
    """The quickest kernel that does both factors, where there are two that meet in every block, and a tile fits."""
    if len(factors) != 2 or factors[1][0] != factors[0][1] or factors[1][2] != factors[0][0]:
        return None
    (blocks, middle, depth), (_, width, _) = factors
    found = [_candidate(problem, spec, limits) for spec in _specs(problem, (blocks, depth, middle, width), limits)]
    return min(found, key=lambda one: one.seconds, default=None)


def _turned(problem: MonarchProblem, limits: DeviceLimits, spec: MonarchSpec) -> MonarchSpec | None:
    """The kernel of the gradient in x: of the turned factors, the second first."""
    turned = (spec.middle, spec.width, spec.blocks, spec.depth)
    found = [_candidate(problem, one, limits) for one in _specs(problem, turned, limits)]
    return min(found, key=lambda one: one.seconds).spec if found else None


def _specs(problem: MonarchProblem, sizes: tuple[int, int, int, int], limits: DeviceLimits) -> Iterator[MonarchSpec]:
    blocks, depth, middle, width = sizes
    for block_r in (16, 32, 64, 128):
        for warps in (4, 8):
            spec = MonarchSpec(
                dtype=problem.dtype,
                blocks=blocks,
                depth=depth,
                middle=middle,
                width=width,
                block_r=block_r,
                precision=precision_of(problem.dtype, limits),
                num_warps=warps,
            )
            fits = spec.resources(limits.arch).shared_bytes <= limits.shared_bytes
            most = (
                _NUMBERS * 32 * warps // (2 if problem.dtype == "fp32" else 1)
            )  # whose operands are split in registers
            if fits and spec.numbers <= most and (block_r == 16 or block_r <= problem.rows):
                yield spec
                break  # no more warps than the sums need


def _candidate(problem: MonarchProblem, spec: MonarchSpec, limits: DeviceLimits) -> Candidate[MonarchSpec]:
    """The slower of memory and of what a tile does on chip, as of planner/blockdiag/tiles.py."""
    c, k, n, o = spec.padded
    each, programs = DTYPES[spec.dtype].bytes, -(-problem.rows // spec.block_r)
    weights = spec.blocks * spec.middle * (spec.depth + spec.width) * each
    moved = float(problem.rows * (spec.blocks * spec.depth + spec.middle * spec.width) * each + weights)
    rate = (limits.matrix16 if each == 2 else limits.matrix32) * _REACHED
    busy = 2.0 * programs * spec.block_r * c * n * (k + o) / rate + weights * programs / limits.bandwidths[0][1]
    seconds = max(moved / limits.dram_bandwidth, busy * max(1.0, limits.cores / programs))
    return Candidate(spec, limits.call_seconds + seconds, moved)

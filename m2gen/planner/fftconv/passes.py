"""Rings too large for one kernel: outer stages as passes through memory, nested as often as needed.

Order 3 and beyond: radices of the outer stages, and order 2 on chip for the rows that they leave. Passes go along
times; tensors whose channels are neighbours are turned before and after.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations_with_replacement
from math import prod
from typing import Any

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.outer import RADICES, OuterSpec
from m2gen.kernels.survey import FAMILIES
from m2gen.planner.fftconv.large_filters import kernels as filter_kernels
from m2gen.planner.fftconv.passes_cost import at_once, backward_bytes, filter_bytes
from m2gen.planner.fftconv.passes_rows import INNER, on_chip, results, together, with_range
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FilterSpectrum
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.fftconv.steps_turned import TurnedPasses
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.fftconv.turns import turn_of
from m2gen.planner.languages import no_triton
from m2gen.planner.plan import Plan
from m2gen.planner.step import Estimate

COMPUTE = {"fp16": "fp16", "bf16": "fp16", "fp32": "fp32"}  # as inside fused kernels
SMALLEST, LARGEST = 2**13, 2**25  # points of a ring; a circle of 16M that is no power of two takes twice as many
LEAST = 2**12  # where they make the gradients alone
_LEVELS = 3  # outer stages
# (columns of a tile, warps, stages) of a pass, the first that fits the device: a line of memory or two a row of a tile
_KNOBS = {
    16: ((128, 4, 2), (64, 4, 2), (64, 4, 1)),
    32: ((64, 4, 2), (32, 4, 2), (32, 4, 1)),
    64: ((64, 8, 2), (32, 4, 2), (32, 4, 1), (16, 4, 1)),
    128: ((32, 8, 2), (32, 8, 1), (16, 8, 1)),
}


@dataclass(frozen=True, slots=True)
class Passes:
    name: str = "passes"

    def reject(self, problem: FftConvProblem, limits: DeviceLimits) -> str | None:
        if why := no_triton(limits):
            return why
        if problem.dtype not in COMPUTE:
            return f"matrix units have no {problem.dtype} path here; fp16, bf16 and fp32 have"
        sizes = [size for _, size, _ in _rings(problem)]
        if min(sizes) > LARGEST:
            return f"its rings have at most {LARGEST} points, and the least for it has {min(sizes)}"
        if max(sizes) < SMALLEST:
            return f"a ring of {max(sizes)} points is done on chip; it takes {SMALLEST} and more"
        if not any(True for _ in self.candidates(problem, limits)):
            return f"for {limits.arch} the compiler gives no kernels for the rows of such a ring that run and fit"
        return None

    def candidates(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        return (_with_gradients(plan, limits) for plan in plans(problem, limits, SMALLEST))

    def left_out(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[tuple[str, str]]:
        return iter(())


def plans(problem: FftConvProblem, limits: DeviceLimits, smallest: int) -> Iterator[Plan]:
    """Those on rings of `smallest` points and more."""
    for ring, size, wrap in _rings(problem):
        if smallest <= size <= LARGEST:
            for radices in factored(size):
                plan = _plan(problem, limits, "causal" if ring == "causal" else "cyclic", size, wrap, radices)
                if plan is not None:
                    yield plan


def _with_gradients(plan: Plan, limits: DeviceLimits) -> Plan:
    """The plan, its gradients made by the passes that are the quickest there: the spectrum is made again backward, so
    the two need not agree on radices."""
    body, problem = plan.body, plan.problem
    if not isinstance(body, PassesConv) or not isinstance(problem, FftConvProblem):
        return plan
    back = quickest(replace(problem, add=False), limits)[1]
    if back is None or back.choice == body.choice:
        return plan
    return replace(plan, steps=(*plan.steps[:-1], replace(body, back=back)))


@lru_cache(maxsize=1024)
def quickest(problem: FftConvProblem, limits: DeviceLimits) -> tuple[float, PassesConv | None]:
    """The passes that take the least time for the gradients, and their seconds."""
    bodies = [plan.body for plan in plans(problem, limits, LEAST)]
    found = [(body.seconds_behind(problem, limits), body) for body in bodies if isinstance(body, PassesConv)]
    return min(found, key=lambda one: (one[0], one[1].choice), default=(0.0, None))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _rings(problem: FftConvProblem) -> Iterator[tuple[str, int, bool]]:
    """(ring, size, wrap) that hold the problem."""
    if problem.mode != "circular":
        yield "causal", _power_of_two(problem.n), False
    if problem.mode == "circular" and problem.n == _power_of_two(problem.n):
        yield "cyclic", problem.n, False
    else:
        yield "cyclic", _power_of_two(problem.linear_size), problem.mode == "circular"


def factored(size: int) -> Iterator[tuple[int, ...]]:
    """Radices of the outer stages: as few stages as it takes, or one more where each is then quicker. What a user's
    tensors pass through comes first, and is the least."""
    least = next(count for count in range(1, _LEVELS + 1) if size <= RADICES[-1] ** count * INNER[-1])
    for count in range(least, min(least + 1, _LEVELS) + 1):
        for radices in combinations_with_replacement(RADICES, count):
            if size // prod(radices) in INNER:
                yield radices


def _plan(
    problem: FftConvProblem, limits: DeviceLimits, ring: str, size: int, wrap: bool, radices: tuple[int, ...]
) -> Plan | None:
    """The plan with these outer stages; None where a kernel that it needs is not there or does not fit."""
    compute = "bf16" if problem.wide and problem.dtype != "fp32" else COMPUTE[problem.dtype]
    outer = OuterSpec(
        part="analysis",
        ring="causal" if ring == "causal" else "cyclic",
        n0=radices[0],
        columns=0,
        dtype=problem.dtype,
        compute=compute,
        gate=problem.pre_gate and not _turned(problem),
        wrap=wrap,
    )
    nested = replace(outer, ring="cyclic", dtype=compute, gate=False, wrap=False, nested=True)
    found = [fitting(replace(one, n0=n0), limits) for one, n0 in zip((outer, *[nested] * 9), radices, strict=False)]
    passes = tuple(one for one in found if one is not None)
    inner = [on_chip(size // prod(radices), compute, part, limits) for part in ("fwd", "dk")]
    if len(passes) < len(radices) or inner[0] is None or inner[1] is None:
        return None
    return _bounded(problem, limits, passes, inner[0], inner[1])


def _turned(problem: FftConvProblem) -> bool:
    """Whether its tensors are turned before and after, with the gates in the turns."""
    return problem.layout == "BLH"


def _bounded(
    problem: FftConvProblem, limits: DeviceLimits, outer: tuple[OuterSpec, ...], spec: FftConvSpec, dk: FftConvSpec
) -> Plan:
    """The plan in chunks that keep what they work in within the device's."""
    size = prod(one.n0 for one in outer) * spec.size
    operand, rows = COMPUTE_BYTES[spec.compute], outer[0].rows
    tiles = -(-problem.b // rows)
    ranged = outer[0].dtype == "bf16" and spec.compute == "fp16"
    filters = filter_kernels(problem, outer, spec, dk, limits)
    library = not filters.forward

    def needs(count: int) -> int:
        return int(max(backward_bytes(size, operand, count), filter_bytes(size, operand, library)))

    most = limits.chunk_bytes // needs(tiles)
    if most == 0:  # not one channel: some of the batch
        fit = max(1, bisect_right(range(1, tiles), limits.chunk_bytes, key=needs))  # as many as need no more
        tiles, most = -(-tiles // -(-tiles // fit)), 1
    channels = -(-problem.h // -(-problem.h // most))
    programs = at_once(spec, limits)
    transform = Transform("monarch", size, (*(one.n0 for one in outer), spec.n1, spec.n2))
    inner, rows = channels * size // spec.size, min(problem.b, tiles * rows)
    bwd = together(spec, dk, results(problem, outer[0].wrap), inner, 2 * tiles, limits)
    if bwd is not None:
        filters = filter_kernels(problem, outer, spec, bwd.spec, limits)
        bwd = replace(bwd, spec=with_range(bwd.spec, ranged))
    own = (Estimate(), transform, channels, False, outer, spec, with_range(dk, ranged), rows, programs)
    more: dict[str, Any] = {"filters": filters, "bwd": bwd}
    turn = (turn_of(problem, limits),) if _turned(problem) else ()
    body = TurnedPasses(*own, *turn, **more) if turn else PassesConv(*own, **more)
    of_filter, of_conv = body.estimates(problem, limits)
    steps = (FilterSpectrum(of_filter, filters.transform(size)), replace(body, estimate=of_conv))
    return Plan(problem, limits.arch, "passes", steps)


def fitting(spec: OuterSpec, limits: DeviceLimits) -> OuterSpec | None:
    """The pass with the first choice of columns, warps and stages that fits the device, as do those of its gradients;
    None where there is none, where the matrix would have to be in registers, and where there are no TF32 products."""
    family = FAMILIES[limits.arch]
    if (spec.n0 > 64 and family not in ("wgmma", "tcgen05")) or (spec.compute == "fp32" and family == "mfma"):
        return None
    for columns, warps, stages in _KNOBS[spec.n0]:
        one = replace(spec, columns=columns, num_warps=warps, num_stages=stages)
        both = not one.nested  # two sequences with a gate each take the most
        largest = (replace(one, gate=both, pair=both, pair_gate=both), replace(one, part="synthesis"))
        if all(each.resources(limits.arch).shared_bytes <= limits.shared_bytes for each in largest):
            return one
    return None

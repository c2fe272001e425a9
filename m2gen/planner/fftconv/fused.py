"""One generated kernel: the Monarch transform, the product and its inverse, gates and skip inside.

Order 2 on chip up to 8K points; order 3 from 8K to 64K, whose outer stage goes through scratch in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import RADICES, FftConvSpec
from m2gen.kernels.survey import left_out, spills, variants
from m2gen.planner.fftconv.backward import of_filter_sums, one_each, together
from m2gen.planner.fftconv.cost import fused_estimates, fused_seconds
from m2gen.planner.fftconv.filters import kernels
from m2gen.planner.fftconv.fused_passes import in_passes
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import programs
from m2gen.planner.fftconv.steps import FilterSpectrum, FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.fftconv.turns import turn_of
from m2gen.planner.languages import no_triton
from m2gen.planner.plan import Plan

COMPUTE = {"fp16": "fp16", "bf16": "fp16", "fp32": "fp32"}  # bfloat16 tensors: half precision inside rounds less
OUTER = (1, 32, 64)  # 1: no outer stage
SMALLEST, LARGEST, STAGED_FROM, ON_CHIP = 2**8, 2**16, 2**13, 2**13


@dataclass(frozen=True, slots=True)
class Fused:
    name: str = "fused"

    def reject(self, problem: FftConvProblem, limits: DeviceLimits) -> str | None:
        if why := no_triton(limits):
            return why
        if problem.dtype not in COMPUTE:
            return f"matrix units have no {problem.dtype} path here; fp16, bf16 and fp32 have"
        rings = list(_rings(problem))
        if not rings:
            return f"a block holds at most {LARGEST} points, and the least ring for it has {_least(problem)}"
        if not any(True for _ in self.candidates(problem, limits)):
            return _nothing_fits(problem, limits)
        return None

    def candidates(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for spec in _specs(problem):
            dk = _gradient(problem, spec.size, _any_radices(spec), limits)
            if dk is not None:
                dk = replace(dk, full=dk.fills(problem.n, problem.b))
                for one in variants(spec, limits):
                    yield _plan(problem, limits, one, dk)
                    if problem.layout == "BLH":
                        yield _turned(problem, limits, one, dk)

    def left_out(self, problem: FftConvProblem, limits: DeviceLimits) -> Iterator[tuple[str, str]]:
        if "triton" in limits.languages and problem.dtype in COMPUTE:
            for spec in _specs(problem):
                for like in (spec, replace(_any_radices(spec), n0=spec.n0, n1=spec.n1, n2=spec.n2, stack=spec.stack)):
                    yield from ((one.name, why) for one, why in left_out(like, limits))


def _nothing_fits(problem: FftConvProblem, limits: DeviceLimits) -> str:
    """Why no kernel of the table will do, in the compiler's figures."""
    needs = [
        (one.resources(limits.arch).shared_bytes, one.name)
        for spec in _specs(problem)
        for one in variants(spec, replace(limits, shared_bytes=2**30))
    ]
    if not needs:
        sizes = sorted({spec.size for spec in _specs(problem)})
        return f"for {limits.arch} the compiler gives no kernel of {' or '.join(map(str, sizes))} points that runs"
    least, name = min(needs)
    if least > limits.shared_bytes:
        return f"{name} takes {least / 1024:.0f} KiB of {limits.shared_bytes / 1024:.0f} KiB shared memory; others more"
    return f"for {limits.arch} the compiler gives no kernel of the filter's gradient that runs and fits"


def _any_radices(spec: FftConvSpec) -> FftConvSpec:
    """What the kernels of the filter's gradient on one ring have in common."""
    return replace(spec, part="dk", n0=1, n1=16, n2=16, stack=1, pre_gate=False, post_gate=False, add=False, full=False)


@lru_cache(maxsize=1024)
def _gradient(problem: FftConvProblem, size: int, like: FftConvSpec, limits: DeviceLimits) -> FftConvSpec | None:
    """The kernel of the filter's gradient on a ring that is cheapest for the problem, if there is one.

    It need not have the radices of the forward kernel: the two need not agree on the order of the bins.
    """
    straight = problem if problem.layout == "BHL" else replace(problem, layout="BHL")  # by strides is never the best
    return min(
        _gradients(size, like, limits),
        key=lambda one: (fused_seconds(straight, one, limits), one.name),
        default=None,
    )


@lru_cache(maxsize=256)
def _gradients(size: int, like: FftConvSpec, limits: DeviceLimits) -> tuple[FftConvSpec, ...]:
    """Every kernel of the filter's gradient on a ring."""
    return tuple(
        one
        for n0, n1, n2, stack in _radices(size)
        for one in variants(replace(like, n0=n0, n1=n1, n2=n2, stack=stack), limits)
    )


def _power_of_two(least: int) -> int:
    return max(SMALLEST, 1 << (least - 1).bit_length())


def _rings(problem: FftConvProblem) -> Iterator[tuple[str, int, bool]]:
    """(ring, size, wrap) that hold the problem on chip."""
    if problem.mode != "circular" and _power_of_two(problem.n) <= LARGEST:
        yield "causal", _power_of_two(problem.n), False
    if problem.mode == "circular" and problem.n == _power_of_two(problem.n) <= LARGEST:
        yield "cyclic", problem.n, False
    elif _power_of_two(problem.linear_size) <= LARGEST:
        yield "cyclic", _power_of_two(problem.linear_size), problem.mode == "circular"


def _least(problem: FftConvProblem) -> int:
    return _power_of_two(problem.linear_size if problem.mode == "circular" else problem.n)


def _specs(problem: FftConvProblem) -> Iterator[FftConvSpec]:
    """Every choice of radices for every ring."""
    for ring, size, wrap in _rings(problem):
        for n0, n1, n2, stack in _radices(size):
            spec = FftConvSpec(
                part="fwd",
                ring="causal" if ring == "causal" else "cyclic",
                n0=n0,
                n1=n1,
                n2=n2,
                stack=stack,
                dtype=problem.dtype,
                compute="bf16" if problem.wide and problem.dtype != "fp32" else COMPUTE[problem.dtype],
                pre_gate=problem.pre_gate,
                post_gate=problem.post_gate,
                add=problem.add,
                wrap=wrap,
            )
            yield replace(spec, full=spec.fills(problem.n, problem.b))


def _radices(size: int) -> Iterator[tuple[int, int, int, int]]:
    """(n0, n1, n2, stack): alone, or stacked to the 64 rows of a matrix unit."""
    for n0 in OUTER:
        if size > ON_CHIP if n0 == 1 else size < STAGED_FROM:
            continue
        for n1 in RADICES:
            if size // (n0 * n1) in RADICES and not (n0 > 1 and max(n1, size // (n0 * n1)) > 64):
                yield from ((n0, n1, size // (n0 * n1), stack) for stack in {1, max(1, 64 // n1)})


def _plan(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, dk: FftConvSpec) -> Plan:
    bwd = together(problem, limits, spec, dk)
    filters = kernels(problem, spec, of_filter_sums(bwd, dk), limits)
    of_filter, of_conv = filters.estimates(problem, limits, fused_estimates(problem, spec, limits))
    transform = Transform("monarch", spec.size, spec.radices)
    count, held_back = programs(problem, limits, spec), _held_back(spec, limits)
    conv = FusedConv(of_conv, transform, 1, False, spec, dk, count, filters=filters, bwd=bwd, **held_back)
    back = in_passes(problem, limits, spec, conv)
    conv = conv if back is None else replace(conv, back=back, one_each=False)
    return Plan(problem, limits.arch, "fused", (FilterSpectrum(of_filter, filters.transform(spec)), conv))


def _held_back(spec: FftConvSpec, limits: DeviceLimits) -> dict[str, Any]:
    """Why it may stand behind others that are a little slower."""
    return {"one_each": one_each(spec, limits), "spills": spills(spec, limits)}


def _turned(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, dk: FftConvSpec) -> Plan:
    """The plan that turns its tensors; the kernel's resources are those of the gated one, of which the survey knows."""
    plain = replace(spec, pre_gate=False, post_gate=False, add=False)
    bwd = together(problem, limits, plain, dk, turned=True)
    filters = kernels(problem, plain, of_filter_sums(bwd, dk), limits)
    of_filter, of_conv = filters.estimates(problem, limits, fused_estimates(problem, plain, limits, turned=True))
    transform = Transform("monarch", spec.size, spec.radices)
    count, held_back = programs(problem, limits, plain), _held_back(plain, limits)
    more: dict[str, Any] = {"filters": filters, "bwd": bwd, **held_back}
    conv = TurnedConv(of_conv, transform, 1, False, plain, dk, count, turn_of(problem, limits), **more)
    back = in_passes(problem, limits, spec, conv)
    conv = conv if back is None else replace(conv, back=back, one_each=False)
    return Plan(problem, limits.arch, "fused", (FilterSpectrum(of_filter, filters.transform(spec)), conv))

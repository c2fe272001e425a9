"""One generated kernel: the Monarch transform, the product and its inverse, gates and skip inside.

Order 2 on chip up to 16K points; order 3 from 8K to 64K, whose outer stage goes through scratch in the L2 cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import RADICES, FftConvSpec
from m2gen.kernels.survey import best_knobs, compiles, found
from m2gen.planner.cost import fused_estimates
from m2gen.planner.plan import FilterSpectrum, FusedConv, Plan, Transform
from m2gen.planner.problem import Problem

COMPUTE = {"fp16": "fp16", "bf16": "fp16", "fp32": "fp32"}  # bfloat16 tensors: half precision inside rounds less
OUTER = (1, 32, 64)  # 1: no outer stage
SMALLEST, LARGEST, STAGED_FROM, ON_CHIP = 2**8, 2**16, 2**13, 2**14
_WAVES = 4  # programs wanted for each multiprocessor


@dataclass(frozen=True, slots=True)
class Fused:
    name: str = "fused"

    def reject(self, problem: Problem, limits: DeviceLimits) -> str | None:
        if "triton" not in limits.languages:
            why = "Triton is not installed here" if limits.kind == "gpu" else f"{limits.arch} is a CPU"
            return f"its kernels are written in Triton, and {why}"
        if problem.dtype not in COMPUTE:
            return f"matrix units have no {problem.dtype} path here; fp16, bf16 and fp32 have"
        rings = list(_rings(problem))
        if not rings:
            return f"a block holds at most {LARGEST} points, and the least ring for it has {_least(problem)}"
        if not any(True for _ in self.candidates(problem, limits)):
            least = min((spec.resources(limits.arch).shared_bytes for spec in _specs(problem)), default=0)
            return (
                f"no choice of radices, warps and stages fits: the least takes {least / 1024:.0f} KiB of "
                f"{limits.shared_bytes / 1024:.0f} KiB shared memory, or the compiler gives no kernel that runs"
            )
        return None

    def candidates(self, problem: Problem, limits: DeviceLimits) -> Iterator[Plan]:
        for spec in _specs(problem):
            fitted, dk = _fitted(spec, limits), _gradient(spec, limits)
            if fitted is not None and dk is not None:
                yield _plan(problem, limits, fitted, dk)


def _fitted(spec: FftConvSpec, limits: DeviceLimits) -> FftConvSpec | None:
    """The spec with its best warps and stages; None where it does not fit or the compiler gives nothing that runs."""
    if not spec.staged:
        return best_knobs(spec, limits)
    knobs = (replace(spec, num_warps=8, num_stages=stages) for stages in (2, 1))  # with 4 warps larger ones spill
    fitting = (at for at in knobs if at.resources(limits.arch).shared_bytes <= limits.shared_bytes)
    return next((at for at in fitting if compiles(at, limits.arch)), None)


def _gradient(spec: FftConvSpec, limits: DeviceLimits) -> FftConvSpec | None:
    """The kernel of the filter's gradient on the ring of `spec`: the one that spills least, if possible of its radices.

    The two need not agree on the order of the bins.
    """
    choices = [replace(spec, part="dk", n0=n0, n1=n1, n2=n2) for n0, n1, n2 in _radices(spec.size)]
    fitted = [at for choice in choices if (at := _fitted(choice, limits)) is not None]
    return min(fitted, key=lambda at: (spilled(at, limits), at.radices != spec.radices, at.name), default=None)


def spilled(spec: FftConvSpec, limits: DeviceLimits) -> int:
    """Bytes of spilled registers a thread, where known."""
    entry = found(spec, limits.arch)
    return 0 if entry is None else entry.stack


def _power_of_two(least: int) -> int:
    return max(SMALLEST, 1 << (least - 1).bit_length())


def _rings(problem: Problem) -> Iterator[tuple[str, int, bool]]:
    """(ring, size, wrap) that hold the problem on chip."""
    if problem.mode == "causal" and _power_of_two(problem.n) <= LARGEST:
        yield "causal", _power_of_two(problem.n), False
    if problem.mode == "circular" and problem.n == _power_of_two(problem.n) <= LARGEST:
        yield "cyclic", problem.n, False
    elif _power_of_two(problem.linear_size) <= LARGEST:
        yield "cyclic", _power_of_two(problem.linear_size), problem.mode == "circular"


def _least(problem: Problem) -> int:
    return _power_of_two(problem.n if problem.mode == "causal" else problem.linear_size)


def _specs(problem: Problem) -> Iterator[FftConvSpec]:
    """Every choice of radices for every ring."""
    for ring, size, wrap in _rings(problem):
        for n0, n1, n2 in _radices(size):
            yield FftConvSpec(
                part="fwd",
                ring="causal" if ring == "causal" else "cyclic",
                n0=n0,
                n1=n1,
                n2=n2,
                dtype=problem.dtype,
                compute="bf16" if problem.wide and problem.dtype != "fp32" else COMPUTE[problem.dtype],
                pre_gate=problem.pre_gate,
                post_gate=problem.post_gate,
                wrap=wrap,
            )


def _radices(size: int) -> Iterator[tuple[int, int, int]]:
    for n0 in OUTER:
        if size > ON_CHIP if n0 == 1 else size < STAGED_FROM:
            continue
        for n1 in RADICES:
            if size // (n0 * n1) in RADICES and not (n0 > 1 and max(n1, size // (n0 * n1)) > 64):
                yield n0, n1, size // (n0 * n1)


def _plan(problem: Problem, limits: DeviceLimits, spec: FftConvSpec, dk: FftConvSpec) -> Plan:
    of_filter, of_conv = fused_estimates(problem, spec, limits, spilled(spec, limits))
    transform = Transform("monarch", spec.size, spec.radices)
    conv = FusedConv(of_conv, transform, spec, dk, _programs(problem, limits, spec))
    return Plan(problem, limits.arch, "fused", (FilterSpectrum(of_filter, Transform("fft", spec.size, ())), conv))


def _programs(problem: Problem, limits: DeviceLimits, spec: FftConvSpec) -> int:
    """On chip: a whole number for each channel. Staged: two for each multiprocessor, so that scratch stays in L2."""
    tiles = -(-problem.b // spec.rows)
    if spec.staged:
        return min(problem.h * tiles, 2 * limits.cores)
    return problem.h * max(1, min(tiles, _WAVES * limits.cores // problem.h))

"""Which kernels give several gradients of a fused convolution at once, and what is left for one kernel each.

With its spectra of u * pre and dy * post at hand a kernel has every gradient. What it may give at once is what the
compiler has registers for: on Hopper all up to 2048 points, all but the filter's at 4096, and of 8192 those that share
one inverse transform. On a circle that is wrapped onto a longer ring (`wrap`) the transpose reads other places than the
convolution does, so that the second gate's gradient is a launch of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.fftconv import COMPUTE_BYTES, RADICES, FftConvSpec
from m2gen.kernels.survey import blocks, found, variants
from m2gen.planner.fftconv.cost import fused_seconds
from m2gen.planner.fftconv.launch_cost import TileLaunch, tile_seconds
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import most_tiles, of_gradient, programs
from m2gen.planner.step import Estimate

_SPILLING = 1.15
_SETS = (("du", "dpre", "dpost", "conv", "dk"), ("du", "dpre", "dpost", "conv"), ("du", "dpre", "dk"), ("du", "dpre"))


@dataclass(frozen=True, slots=True)
class Backward:
    """One launch of several gradients: `spec.results` where all are wanted."""

    spec: FftConvSpec
    programs: int


def usual(problem: FftConvProblem, turned: bool = False) -> tuple[str, ...]:
    """The results of a backward pass that wants every gradient; `turned`: gates stand in the turns, not in kernels."""
    if turned:
        return ("du", *(["conv"] if problem.post_gate else []), "dk")
    return ("du", *(["dpre"] if problem.pre_gate else []), *(["dpost"] if problem.post_gate else []), "dk")


def assigned(
    kernels: Iterable[Backward], wanted: Collection[str]
) -> tuple[list[tuple[Backward, tuple[str, ...]]], set[str]]:
    """Each kernel with those of the wanted results that it gives, two at least, and what is left for kernels of one."""
    left, given = set(wanted), []
    for kernel in kernels:
        results = tuple(one for one in kernel.spec.results if one in left)
        if len(results) > 1:
            given.append((kernel, results))
            left -= set(results)
    return given, left


def of_call(spec: FftConvSpec, results: tuple[str, ...], pre: bool, post: bool, skip: bool) -> FftConvSpec:
    """The kernel that gives `results` alone."""
    return replace(spec, results=results, pre_gate=pre, post_gate=post, skip=skip and "dk" in results)


def alone(spec: FftConvSpec, dk: FftConvSpec, result: str, pre: bool, post: bool, skip: bool) -> FftConvSpec:
    """The kernel of one gradient, of a convolution with these gates: the forward kernel's or `dk` with others."""
    if result == "dk":
        return replace(dk, pre_gate=pre, post_gate=post, skip=skip)
    before, behind = {"du": (post, pre), "dpre": (post, True), "dpost": (pre, True), "conv": (pre, False)}[result]
    transpose = result in ("du", "dpre")
    return replace(spec, transpose=transpose, pre_gate=before, post_gate=behind, add=False)


def of_gradients(
    problem: FftConvProblem, spec: FftConvSpec, dk: FftConvSpec, bwd: Iterable[Backward], turned: bool = False
) -> tuple[FftConvSpec, ...]:
    """What a backward pass that wants every gradient launches."""
    wanted = usual(problem, turned)
    pre, post = problem.pre_gate and not turned, problem.post_gate and not turned
    given, left = assigned(bwd, wanted)
    at_once = [of_call(kernel.spec, results, pre, post, problem.skip) for kernel, results in given]
    return (*at_once, *(alone(spec, dk, one, pre, post, problem.skip) for one in wanted if one in left))


def of_filter_sums(bwd: Iterable[Backward], dk: FftConvSpec) -> FftConvSpec:
    """The kernel that sums the filter's gradient where every gradient is wanted."""
    return next((one.spec for one in bwd if "dk" in one.spec.results), dk)


def together(
    problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, dk: FftConvSpec, turned: bool = False
) -> tuple[Backward, ...]:
    """The kernels that with those of one gradient each take the least time by the estimate; none where those alone do.

    They read the spectrum as the forward kernel has it, in the order of its radices.
    """
    if spec.staged:
        return ()
    problem, wanted = replace(problem, add=False, layout="BHL"), usual(problem, turned)
    pre, post = problem.pre_gate and not turned, problem.post_gate and not turned
    one_each = {one: alone(spec, dk, one, pre, post, problem.skip) for one in wanted}
    seconds = {result: _seconds(problem, limits, spec, one) for result, one in one_each.items()}
    like = replace(spec, stack=1, num_warps=4, num_stages=2, pre_gate=pre, post_gate=post, add=False, full=False)
    choices: list[tuple[float, tuple[Backward, ...]]] = [(sum(seconds.values()), ())]
    for results in dict.fromkeys(tuple(one for one in wanted if one in those) for those in _SETS):
        if len(results) > 1 and not (spec.wrap and not {"dpost", "conv"}.isdisjoint(results)):
            rest = sum(of for one, of in seconds.items() if one not in results)
            choices += [(of + rest, (kernel,)) for of, kernel in _quickest(problem, limits, like, results)]
    return min(choices, key=lambda choice: choice[0])[1]


def one_each(spec: FftConvSpec, limits: DeviceLimits) -> bool:
    """Whether a kernel of several gradients is there on this ring for other radices and not for these."""
    like = replace(spec, part="bwd", results=("du", "dk"), stack=1, pre_gate=False, post_gate=False, add=False)
    like = replace(like, full=False, num_warps=4, num_stages=2)
    return not spec.staged and not _given(like, limits) and any(_given(one, limits) for one in _other_radices(like))


def _other_radices(spec: FftConvSpec) -> Iterator[FftConvSpec]:
    return (replace(spec, n1=n1, n2=spec.size // n1) for n1 in RADICES if spec.size // n1 in RADICES)


@lru_cache(maxsize=1024)
def _given(spec: FftConvSpec, limits: DeviceLimits) -> bool:
    """Whether the compiler gave such a kernel, stacked or not, that fits."""
    stacks = {1, max(1, 64 // spec.n1)}
    return any(True for stack in stacks for _ in variants(replace(spec, stack=stack), limits))


@lru_cache(maxsize=4096)
def _quickest(
    problem: FftConvProblem, limits: DeviceLimits, like: FftConvSpec, results: tuple[str, ...]
) -> tuple[tuple[float, Backward], ...]:
    """The kernel of all these results that takes the least time, and its seconds; () where the compiler gave none."""
    made = []
    for stack in sorted({1, max(1, 64 // like.n1)}):
        spec = replace(like, part="bwd", results=results, stack=stack, skip=problem.skip and "dk" in results)
        spec = replace(spec, full=spec.fills(problem.n, problem.b))
        for one in variants(spec, limits):
            count = programs(problem, limits, one)
            made.append((estimate(problem, limits, one, count).seconds, Backward(one, count)))
    return tuple(
        sorted(made, key=lambda choice: (choice[0] * _spills(choice[1].spec, limits), choice[1].spec.name))[:1]
    )


def _spills(spec: FftConvSpec, limits: DeviceLimits) -> float:
    """Times that a kernel which spills has to be quicker: its other forms, of bfloat16, may spill more."""
    entry = found(spec, limits.arch)
    return _SPILLING if entry is not None and entry.spills else 1.0


def _seconds(problem: FftConvProblem, limits: DeviceLimits, forward: FftConvSpec, spec: FftConvSpec) -> float:
    """Of a kernel of one gradient."""
    problem = replace(problem, pre_gate=spec.pre_gate, post_gate=spec.post_gate)
    if spec.part == "dk":
        return fused_seconds(problem, spec, limits, of_gradient(problem, limits, forward, spec))
    return fused_seconds(problem, spec, limits)


def estimate(problem: FftConvProblem, limits: DeviceLimits, spec: FftConvSpec, count: int) -> Estimate:
    """A launch of several gradients with `count` programs."""
    moved = len(spec.sequences) * problem.b * problem.h * problem.n * DTYPES[problem.dtype].bytes
    moved += 2 * problem.h * spec.size * COMPUTE_BYTES[spec.compute]
    moved += count * 8 * spec.held * spec.n2 if "dk" in spec.results else 0
    tiles, own = problem.h * -(-problem.b // spec.batch_rows), most_tiles(problem, spec, count)
    return of_launch(spec, limits, moved=moved, tiles=tiles, programs=count, blocks=blocks(spec, limits), own=own)


def of_launch(
    spec: FftConvSpec, limits: DeviceLimits, *, moved: float, tiles: int, programs: int, blocks: int, own: int
) -> Estimate:
    """A launch of several gradients: `tiles` of all `programs`, `own` of the one that has most, `blocks` of a
    multiprocessor at once. A transform is a product with A1 and one with B2; two that begin together wait together."""
    transforms = transforms_of(spec)
    together = spec.of_u and spec.of_dy and {"dpost", "conv"}.isdisjoint(spec.results)
    flop = transforms * spec.stack * spec.size * (4 * spec.batch_rows * spec.n1 + 8 * spec.n2)
    entry, needs = found(spec, limits.arch), spec.resources(limits.arch)
    launch = TileLaunch(
        moved=moved,
        tiles=tiles,
        programs=programs,
        flop=flop,
        instructions=entry.instructions if entry else 0,
        threads=needs.threads,
        blocks=blocks,
        spills=entry.spills if entry else 0,
        shared_bytes=needs.shared_bytes,
        stages=spec.num_stages,
        products=2 * (transforms - together),
        full=spec.full,
        own=own,
    )
    return Estimate(float(tiles * flop), float(moved), 1, float(needs.shared_bytes), tile_seconds(launch, limits))


def transforms_of(spec: FftConvSpec) -> int:
    """There and back, of a tile."""
    inverse = sum(not set(those).isdisjoint(spec.results) for those in (("dpost", "conv"), ("du", "dpre")))
    return spec.of_u + spec.of_dy + inverse

"""A short convolution by PyTorch's operators, on any device; by generated C++, on a CPU; by generated Triton."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels import shortconv_cpp
from m2gen.kernels.shortconv import SUMMED, ShortconvSpec
from m2gen.kernels.shortconv import WIDEST as WIDEST_FUSED
from m2gen.kernels.shortconv_cpp import ShortconvCppSpec
from m2gen.kernels.spec import Candidate, recast
from m2gen.planner.languages import no_cpp, no_triton
from m2gen.planner.plan import Plan
from m2gen.planner.shortconv import cost, tiles
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.shortconv.steps import FusedShortconv, LibraryShortconv, NativeShortconv
from m2gen.planner.shortconv.tiles import sizes_of
from m2gen.planner.step import Estimate

LEAST_VECTOR = 32  # bytes; narrower units are given such vectors by the compiler
_ALONE = 2**15  # results below which a second thread costs more than it does; PyTorch's own bound
_SHORT = 4096  # samples of neighbouring channels that are worth reading one after the other, where rows are short
_ITEMS = 16  # but at least so many items are left to share among threads
_MOST = 4  # tiles worth a measurement


@dataclass(frozen=True, slots=True)
class Library:
    name: str = "library"

    def reject(self, problem: ShortconvProblem, limits: DeviceLimits) -> str | None:
        if _unable(problem, limits) is None:
            return "it rounds otherwise, and a result is not to depend on how many there are"
        needed = cost.estimate(problem, limits, False).working_set
        if needed > limits.memory_bytes:
            return f"it needs {needed / 2**30:.1f} GiB of {limits.memory_bytes / 2**30:.1f} GiB memory"
        return None

    def left_out(self, problem: ShortconvProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: ShortconvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        yield Plan(problem, limits.arch, self.name, (LibraryShortconv(cost.estimate(problem, limits, False)),))


@dataclass(frozen=True, slots=True)
class Native:
    """`family`: of kernels that take the calls of `ShortconvCppSpec`'s."""

    name: str = "native"
    family: type[ShortconvCppSpec] = ShortconvCppSpec

    def reject(self, problem: ShortconvProblem, limits: DeviceLimits) -> str | None:
        return _unable(problem, limits)

    def left_out(self, problem: ShortconvProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: ShortconvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        yield Plan(problem, limits.arch, self.name, (_native(problem, limits, self.family),))


@dataclass(frozen=True, slots=True)
class Fused:
    """`family`: of kernels that take the calls of `ShortconvSpec`'s."""

    name: str = "fused"
    family: type[ShortconvSpec] = ShortconvSpec

    def reject(self, problem: ShortconvProblem, limits: DeviceLimits) -> str | None:
        if why := no_triton(limits):
            return why
        if problem.dtype == "fp64":
            return "its sums are of 32 bits, not fp64"
        if problem.width > WIDEST_FUSED:
            return f"its kernels have at most {WIDEST_FUSED} taps, not {problem.width}"
        return None

    def left_out(self, problem: ShortconvProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def candidates(self, problem: ShortconvProblem, limits: DeviceLimits) -> Iterator[Plan]:
        sizes = sizes_of(problem)
        forward, backward = ("mix", "mix_bwd" if problem.width <= SUMMED else "ds") if problem.gated else ("fwd", "dw")
        back = tiles.candidates(sizes, limits, backward)[0]  # type: ignore[arg-type]
        for one in tiles.candidates(sizes, limits, forward)[:_MOST]:  # type: ignore[arg-type]
            flop = 2.0 * problem.b * problem.channels * problem.outputs * problem.width
            estimate = Estimate(flop, one.bytes, 1, one.bytes, one.seconds)
            yield Plan(problem, limits.arch, self.name, (self._step(estimate, one, back),))

    def _step(
        self, estimate: Estimate, one: Candidate[ShortconvSpec], back: Candidate[ShortconvSpec]
    ) -> FusedShortconv:
        return FusedShortconv(estimate, recast(one.spec, self.family), recast(back.spec, self.family), back.parts)


def _unable(problem: ShortconvProblem, limits: DeviceLimits) -> str | None:
    """Why no generated C++ can do it; None where it can."""
    if why := no_cpp(limits):
        return why
    if problem.width > shortconv_cpp.WIDEST:
        return f"its kernels have at most {shortconv_cpp.WIDEST} taps, not {problem.width}"
    return None


def _native(problem: ShortconvProblem, limits: DeviceLimits, family: type[ShortconvCppSpec]) -> NativeShortconv:
    """The kernels for a CPU: channels side by side where they are so in memory and fill a vector."""
    vector_bytes = max(LEAST_VECTOR, limits.vector_bytes)
    wide = DTYPES[DTYPES[problem.dtype].compute].bytes
    last = problem.layout == "BLH" and problem.h * wide >= vector_bytes

    def spec(part: shortconv_cpp.Part) -> ShortconvCppSpec:
        layout = "BLH" if last else "BHL"
        return family(
            part=part,
            layout=layout,  # type: ignore[arg-type]
            width=problem.width,
            dtype=problem.dtype,
            vector_bytes=vector_bytes,
        )

    forward, back = (spec("mix"), spec("ds")) if problem.gated else (spec("fwd"), spec("dw"))
    group = max(1, min(problem.h // _ITEMS, _SHORT // problem.n))
    return NativeShortconv(
        cost.estimate(problem, limits, True),
        forward,
        back,
        group=group,
        parallel=problem.b * problem.h * problem.outputs >= _ALONE,
    )


SOLVERS = (Library(), Fused(), Native())

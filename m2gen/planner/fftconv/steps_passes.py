"""A long convolution on a ring too large for one kernel: outer stages are passes of their own through memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import ClassVar, Literal

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.planner.fftconv import large_filters, passes_cost
from m2gen.planner.fftconv.backward import Backward
from m2gen.planner.fftconv.large_filters import LargeFilterKernels
from m2gen.planner.fftconv.launch_cost import STREAMED
from m2gen.planner.fftconv.launches import FILTER
from m2gen.planner.fftconv.passes_cost import (
    PassValues,
    backward_bytes,
    filter_bytes,
    forward_bytes,
    passes_conv,
    passes_filter,
    rows_estimate,
    turned_passes,
)
from m2gen.planner.fftconv.passes_launches import Chunk, launch
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import Conv, Part, named_behind
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.step import NUMBERS, UNTRIED, Estimate, Launch, Terms

# How sequences stand on the ring: as they are, or, of a circular problem on a longer one, with the end repeated in
# front, or with the beginning repeated behind, as the transposed problem reads them.
Way = Literal["plain", "behind", "ahead"]


@dataclass(frozen=True, slots=True)
class PassesConv(Conv):
    """For each chunk of `channels` channels and `rows` batch rows: analyses through memory, outermost first, the
    convolutions of all rows k0 by one kernel on chip, and syntheses back; `programs` programs a launch, about.

    `outer` are the analyses of a forward pass. Backward the rows have one kernel of several gradients, `bwd`, or, where
    there is none, the convolution's and `dk`, that of the filter's gradient alone. `filters` make the filter's spectrum
    and take its gradient back. Where passes with other radices are faster backward, `back` makes the filter's gradient
    and all that are wanted with it.
    """

    legend: ClassVar = f"{passes_cost.LEGEND}; of the filter: {large_filters.LEGEND}"
    notes: ClassVar = "Every figure is an estimate of the cost model."

    outer: tuple[OuterSpec, ...]
    spec: FftConvSpec
    dk: FftConvSpec
    rows: int
    programs: int
    filters: LargeFilterKernels = field(default=LargeFilterKernels(), kw_only=True)
    bwd: Backward | None = field(default=None, kw_only=True)
    back: PassesConv | None = field(default=None, kw_only=True)

    def between(self, problem: FftConvProblem) -> FftConvProblem:
        """The problem as the kernels have it: where tensors are turned, without gates."""
        return problem

    @property
    def inner_rows(self) -> int:
        """Rows k0 (and k0' of stages inside), each a ring of its own on chip."""
        return prod(one.n0 for one in self.outer)

    @property
    def ranged(self) -> bool:
        """Whether what comes backward is brought into range first: gradients may be less than half precision holds,
        where tensors of bfloat16 hold them."""
        return self.outer[0].dtype == "bf16" and self.outer[0].compute == "fp16"

    def way(self, transpose: bool = False) -> Way:
        """How a convolution reads its input, or its transpose."""
        return "plain" if not self.outer[0].wrap else "ahead" if transpose else "behind"

    def largest(self, problem: FftConvProblem) -> LargestSpec | None:
        """The kernel that finds how large what comes backward is, if that is brought into range."""
        gate, rows = self.between(problem).post_gate, self.outer[0].rows
        return LargestSpec(dtype=self.outer[0].dtype, gate=gate, rows=rows) if self.ranged else None

    def reading(self, way: Way, gate: bool, ranged: bool = False) -> OuterSpec:
        """The outermost analysis."""
        return replace(self._outermost(way, ranged), gate=gate)

    def reading_both(self, gate: bool, pair_gate: bool, skip: bool) -> OuterSpec:
        """The outermost analysis of what comes backward and of the input beside it, for the filter's gradient: of a
        circular problem on a longer ring the one is read ahead, the other as it is, and lags are the circle's."""
        one = self._outermost(self.way(True), True)
        return replace(one, gate=gate, pair=True, pair_gate=pair_gate, skip=skip)

    def writing(self, way: Way, gate: bool, add: bool = False, second: bool = False, ranged: bool = False) -> OuterSpec:
        """The outermost synthesis; what the transpose gives stands as it is."""
        way = "plain" if way == "ahead" else way
        return replace(self._outermost(way, ranged), part="synthesis", gate=gate, add=add, second=second)

    def _outermost(self, way: Way, ranged: bool) -> OuterSpec:
        return replace(self.outer[0], wrap=way != "plain", transpose=way == "ahead", ranged=ranged and self.ranged)

    @property
    def choice(self) -> str:
        outer = "x".join(str(one.n0) for one in self.outer)
        knobs = self.spec.name.removeprefix("rows_fwd_")
        many = f"channels {self.channels} rows {self.rows} programs {self.programs}"
        return f"{outer} {self.outer[0].ring} {knobs} {many}"

    @property
    def style(self) -> str:
        spec = self.spec
        stages = "+".join(str(one.n0) for one in self.outer)
        return f"outer {stages} {self.outer[0].ring}, inner warps {spec.num_warps} stages {spec.num_stages}"

    @property
    def untried(self) -> str:
        return UNTRIED

    def _why(self, problem: FftConvProblem) -> str:
        if self.outer[0].ring == "causal":
            return f"at least {problem.n}: on the ring t^{self.transform.size} = i what wraps is imaginary"
        return super(PassesConv, self)._why(problem)  # a dataclass with slots is made anew

    def _who(self, problem: FftConvProblem) -> str:
        outer = ", ".join(one.name for one in self.outer)
        return f"kernels   {outer}, {self.spec.name} on {self.inner_rows} rows, and back; {self.outer[0].ring} ring"

    def lines(self, problem: FftConvProblem) -> list[str]:
        forward, both = (self.scratch(problem, gradients) / 2**20 for gradients in (False, True))
        at_once = f"{self.channels} of {problem.h} channels and {self.rows} of {problem.b} rows at a time"
        found = super(PassesConv, self).lines(problem)
        several = "one kernel for each gradient" if self.bwd is None else self._together(self.bwd)
        found += [
            f"backward  {several}",
            self.filters.line,
            f"scratch   {forward:.0f} MiB, with gradients {both:.0f} MiB, for {at_once}",
        ]
        return found + ([] if self.back is None else self.back.lines_behind(problem))

    def _together(self, bwd: Backward) -> str:
        gives = {"du": "the input", "conv": "the second gate", "dk": "the filter"}
        of = " and of ".join(gives[one] for one in bwd.spec.results)
        return f"{bwd.spec.name} ({bwd.programs} programs) on the rows, for the gradients of {of} at once"

    def scratch(self, problem: FftConvProblem, gradients: bool) -> int:
        """Bytes beside operands and results, at most."""
        operand, size = COMPUTE_BYTES[self.spec.compute], self.transform.size
        channels, tiles = min(self.channels, problem.h), -(-min(self.rows, problem.b) // self.outer[0].rows)
        forward = int(max(filter_bytes(size, operand, not self.filters.forward), forward_bytes(size, operand, tiles)))
        back = backward_bytes(size, operand, tiles) if gradients else 0
        own = channels * max(forward, back)
        few = 16 * (channels * tiles + self.programs)  # powers of two, parts of the skip's gradient
        if self.filters.rows is not None:  # what bounds its bins
            few += 4 * channels * (1 + prod(self.filters.rows.bounds))
        others = self.back.scratch(problem, True) if gradients and self.back is not None else 0
        return max(own + few, others)

    # -- kernels -------------------------------------------------------------------------------------------------------

    def parts(self, problem: FftConvProblem) -> dict[str, FftConvSpec | TritonSpec]:
        """Between the passes "fwd", its transpose and the filter's gradient "dk", or several, "bwd"; the passes of a
        forward call; those of the filter."""
        plain, own = self.way(), self.between(problem)
        gradient = {"dk": self.dk} if self.bwd is None else {"bwd": self.bwd.spec}
        found: dict[str, FftConvSpec | TritonSpec] = {
            "fwd": self.spec,
            "transpose": replace(self.spec, transpose=True),
            **gradient,
            "analysis": self.reading(plain, own.pre_gate),
            "synthesis": self.writing(plain, own.post_gate, own.add),
        }
        for level, one in enumerate(self.outer[1:], 1):
            found |= {f"analysis{level}": one, f"synthesis{level}": replace(one, part="synthesis")}
        return found | self.filters.parts | named_behind(self.back, problem)

    def kernels(self, problem: FftConvProblem, gradients: bool = True) -> tuple[FftConvSpec | TritonSpec, ...]:
        parts = self.parts(problem)
        if not gradients:
            behind = {"transpose", "dk", "bwd", *named_behind(self.back, problem)}
            own = [one for name, one in parts.items() if name not in behind]
            return tuple(one for one in own if one not in self.filters.backward)
        if self.back is not None:
            return tuple(dict.fromkeys((*self.kernels(problem, False), *self.back.behind(problem))))
        return tuple(dict.fromkeys((*parts.values(), *self._behind(problem))))

    def _behind(self, problem: FftConvProblem) -> Iterator[TritonSpec]:
        """The outermost passes of the gradients."""
        own = self.between(problem)
        yield from self._outermost_behind(problem)
        yield self.reading(self.way(True), own.post_gate, True)  # where no filter is trained
        if own.pre_gate:  # where only one of the two is wanted
            yield self.writing(self.way(True), True, ranged=True)

    def _outermost_behind(self, problem: FftConvProblem) -> Iterator[TritonSpec]:
        """Those where all are wanted."""
        own, largest = self.between(problem), self.largest(problem)
        if largest is not None:
            yield largest
        yield self.reading_both(own.post_gate, own.pre_gate, problem.skip)
        yield self.writing(self.way(True), own.pre_gate, second=own.pre_gate, ranged=True)
        if problem.post_gate:
            yield self.writing(self.way(), own.post_gate)
            if self.way() != "plain":
                yield self.reading(self.way(), own.pre_gate)

    def behind(self, problem: FftConvProblem) -> tuple[FftConvSpec | TritonSpec, ...]:
        spec = self.dk if self.bwd is None else self.bwd.spec
        nested = [each for one in self.outer[1:] for each in (one, replace(one, part="synthesis"))]
        singly = [replace(self.spec, transpose=True)] if self.bwd is None else []
        singly += [self.spec] if problem.post_gate and "conv" not in spec.results else []
        filters = *self.filters.forward, *self.filters.backward
        return tuple(dict.fromkeys((spec, *singly, *self._outermost_behind(problem), *nested, *filters)))

    # -- cost ----------------------------------------------------------------------------------------------------------

    def values(self, problem: FftConvProblem, limits: DeviceLimits) -> PassValues:
        """The numbers of the formulas."""
        outer, size, operand = self.outer, self.transform.size, COMPUTE_BYTES[self.spec.compute]
        tiles = -(-problem.b // outer[0].rows)
        chunks = -(-problem.h // self.channels) * -(-problem.b // self.rows)
        inner = self.inner_estimate(problem, self.spec, limits)
        own = problem.b * problem.n * DTYPES[problem.dtype].bytes * (2 + problem.gates + problem.add)
        weights = [own + 4 * tiles * size * operand, *(8 * tiles * size * operand for _ in outer[1:])]
        slower = sum(w * passes_cost.SLOWER[one.n0] for w, one in zip(weights, outer, strict=True)) / sum(weights)
        return PassValues(
            B=problem.b,
            H=problem.h,
            n=problem.n,
            N=size,
            e=DTYPES[problem.dtype].bytes,
            Q=operand,
            G=problem.gates,
            K=int(problem.skip),
            E=int(problem.add),
            T=tiles,
            c=chunks,
            v=len(outer),
            y=slower,
            r=sum(one.n0 for one in outer),
            X=limits.matrix16 / (6 if self.spec.compute == "fp32" else 1),
            D=STREAMED * limits.dram_bandwidth,
            t=limits.call_seconds,
            f=inner.flop,
            b=inner.bytes,
            j=inner.seconds - limits.call_seconds,
        )

    def inner_estimate(self, problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits) -> Estimate:
        """What the convolutions between the passes cost."""
        tiles = -(-problem.b // self.outer[0].rows)
        return rows_estimate(spec.size, problem.h * self.inner_rows, 2 * tiles, spec, limits)

    def terms_of(self, part: Part, problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> Terms:
        if part == "filter" and self.filters.forward:
            return large_filters.terms(self.filters, self.channels, problem, limits)
        numbers = self.values(problem, limits)
        return Terms(numbers, passes_filter if part == "filter" else turned_passes if numbers.w else passes_conv)

    def estimates(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Estimate, Estimate]:
        numbers = self.values(problem, limits)
        convolving = turned_passes if numbers.w else passes_conv
        of_filter, of_conv = (Estimate(*map(float, of(numbers, NUMBERS))) for of in (passes_filter, convolving))
        if self.filters.forward:
            of_filter = large_filters.estimate(self.filters, self.channels, problem, limits)
        return of_filter, of_conv

    def launches(self, problem: FftConvProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        chunk, own = self._chunk(problem, limits), self.between(problem)
        forward = (
            *chunk.reading(self.reading(self.way(), own.pre_gate)),
            *chunk.convolving(),
            *chunk.writing(self.writing(self.way(), own.post_gate, own.add)),
        ) * chunk.count
        if not gradients:
            return forward
        if self.back is not None:
            return (*forward, *(one for one in self.back.launches(problem, limits, True) if one.back))
        taps, last = self._of_filter(problem, limits)
        return (*forward, taps, *tuple(self._launches_behind(problem, limits, chunk)) * chunk.count, last)

    def seconds_behind(self, problem: FftConvProblem, limits: DeviceLimits) -> float:
        if self.back is not None:
            return self.back.seconds_behind(problem, limits)
        chunk = self._chunk(problem, limits)
        once = sum(one.seconds for one in self._launches_behind(problem, limits, chunk))
        return chunk.count * once + sum(one.seconds for one in self._of_filter(problem, limits))

    def _chunk(self, problem: FftConvProblem, limits: DeviceLimits) -> Chunk:
        v = self.values(problem, limits)
        inner = self.inner_estimate(problem, self.spec, limits)
        return Chunk(v, self.outer, launch(self.spec.name, inner, v.c, limits.call_seconds))

    def _of_filter(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Launch, Launch]:
        """Backward, of all chunks: the filter's spectrum made again, and its gradient's way to taps."""
        of = self.estimates(problem, limits)[0]
        taps = Launch(FILTER, of.bytes, of.seconds, of.flop, back=True)
        of = large_filters.of_taps(self.filters, self.channels, problem, limits) if self.filters.forward else of
        return taps, Launch("taps of the filter's gradient", of.bytes, of.seconds, of.flop, back=True)

    def _launches_behind(self, problem: FftConvProblem, limits: DeviceLimits, chunk: Chunk) -> Iterator[Launch]:
        """Those of all gradients of a chunk, the filter's spectrum and taps aside."""
        return (replace(one, back=True) for one in self._in_order_behind(problem, limits, chunk))

    def _in_order_behind(self, problem: FftConvProblem, limits: DeviceLimits, chunk: Chunk) -> Iterator[Launch]:
        own = self.between(problem)
        pre, post = own.pre_gate, own.post_gate
        spec = self.dk if self.bwd is None else self.bwd.spec
        if self.bwd is None:
            rows = launch(spec.name, self.inner_estimate(problem, spec, limits), chunk.count, limits.call_seconds)
        else:
            rows = self._launch_together(problem, self.bwd, limits)
        largest = self.largest(problem)
        if largest is not None:
            yield chunk.largest(largest)
        yield from chunk.reading(self.reading_both(post, pre, problem.skip))
        yield rows
        if self.bwd is None:
            yield from chunk.convolving()
        yield from chunk.writing(self.writing(self.way(True), pre, second=pre, ranged=True))
        if problem.post_gate:
            if self.way() != "plain":  # the input once more, as a convolution reads it
                yield from chunk.reading(self.reading(self.way(), pre))
            if "conv" not in spec.results:
                yield from chunk.convolving()
            yield from chunk.writing(self.writing(self.way(), post))

    def _launch_together(self, problem: FftConvProblem, bwd: Backward, limits: DeviceLimits) -> Launch:
        """That of several gradients on a chunk."""
        channels, batch = min(self.channels, problem.h), min(self.rows, problem.b)
        tiles = -(-batch // self.outer[0].rows)
        size = bwd.spec.size
        of = rows_estimate(size, channels * self.inner_rows, 2 * tiles, bwd.spec, limits, bwd.programs)
        return Launch(bwd.spec.name, of.bytes, of.seconds, of.flop)

    def __str__(self) -> str:
        outer = " ".join(one.name for one in self.outer)
        return (
            f"(passes-conv {self.transform} (channels {self.channels}) (rows {self.rows}) (programs {self.programs}) "
            f"{outer} {self.spec.name})"
        )

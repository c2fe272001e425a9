"""The steps of a long convolution: the filter's spectrum, and the ways of convolving; C++ is in steps_native.py, large
rings in steps_passes.py, and tensors whose channels are neighbours, turned for either, in steps_turned.py."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import log2, prod
from typing import ClassVar, Literal

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.planner.fftconv import cost
from m2gen.planner.fftconv.backward import Backward, of_gradients
from m2gen.planner.fftconv.filters import FilterKernels
from m2gen.planner.fftconv.formulas import FORMULAS, LEGEND, NOTES, monarch_stage, transform_work
from m2gen.planner.fftconv.launches import of_kernels
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.step import UNTRIED, Body, Estimate, Launch, Reluctance, Step, Terms

Part = Literal["filter", "conv"]
_Triton = FftConvSpec | TritonSpec

# times that a kernel has to be faster whose gradients take one kernel each, and one that spills registers: of its time
# the estimate knows less
_ONE_EACH, _SPILLING = 1.1, 1.1


@dataclass(frozen=True, slots=True)
class Conv(Body[FftConvProblem]):
    """The whole convolution, `channels` at a time.

    `fold`: the problem is circular and the transform is longer than n, so the tail of the linear result is added onto
    its head.
    """

    legend: ClassVar = LEGEND
    notes: ClassVar = NOTES

    transform: Transform
    channels: int
    fold: bool

    def terms(self, problem: FftConvProblem, body: Body[FftConvProblem], limits: DeviceLimits) -> Terms | None:
        return self.terms_of("conv", problem, self.transform, limits)

    def terms_of(self, part: Part, problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> Terms:
        """Those of the filter's transform, or of the convolution."""
        raise NotImplementedError

    def estimates(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Estimate, Estimate]:
        """What the filter's transform and the convolution cost."""
        raise NotImplementedError

    def behind(self, problem: FftConvProblem) -> tuple[_Triton, ...]:
        """The generated kernels of a call for all gradients, where another step's forward pass goes before it."""
        raise NotImplementedError

    def lines_behind(self, problem: FftConvProblem) -> list[str]:
        """What `explain` says of it where it makes the gradients of another."""
        own = (line for line in self.lines(problem) if line.startswith(("backward", "kernels", "scratch")))
        return ["backward  with the filter's gradient in passes over memory:", *(f"  {line}" for line in own)]

    def seconds_behind(self, problem: FftConvProblem, limits: DeviceLimits) -> float:
        """What a call for all gradients takes."""
        return sum(one.seconds for one in self.launches(problem, limits, gradients=True) if one.back)

    def expected(self, problem: FftConvProblem, limits: DeviceLimits) -> float:
        return sum(estimate.seconds for estimate in self.estimates(problem, limits))

    @property
    def row(self) -> tuple[str, ...]:
        of = self.transform
        radices = " x ".join(_runs(map(str, of.radices), "^")) or "its own"
        blocks = ", ".join(_runs((f"{count} of {out}x{into}" for count, out, into in of.blocks), " times "))
        size = f"{of.size}{' folded' if self.fold else ''}"
        return str(of.order or "-"), size, radices, blocks, str(self.channels)

    @property
    def what(self) -> str:
        return str(self.transform)

    def lines(self, problem: FftConvProblem) -> list[str]:
        of = self.transform
        why = self._why(problem)
        folded = ", tail folded onto the head" if self.fold else ""
        found = [f"size      {self._places} ({why}{folded})", self._who(problem)]
        if of.kind == "monarch":
            blocks = ", ".join(f"{count} x {out} x {into}" for count, out, into in of.blocks)
            found.append(f"order     {of.order}, radices {' x '.join(map(str, of.radices))}")
            found.append(f"blocks    {blocks}   (nblocks x out x in)")
        return found

    def _why(self, problem: FftConvProblem) -> str:
        """Why the transform is as long as it is."""
        if problem.mode == "circular" and not self.fold:
            return "the circle itself"
        return f"at least {problem.linear_size} avoids wrap-around"

    @property
    def _places(self) -> str:
        return f"{self.transform.size} points"

    def _who(self, problem: FftConvProblem) -> str:
        """The line that says what computes."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FilterSpectrum(Step[FftConvProblem]):
    """Transform every channel's filter; done once for a filter, not once a row."""

    transform: Transform

    def terms(self, problem: FftConvProblem, body: Body[FftConvProblem], limits: DeviceLimits) -> Terms | None:
        return body.terms_of("filter", problem, self.transform, limits) if isinstance(body, Conv) else None

    def __str__(self) -> str:
        return f"(filter-spectrum {self.transform})"


@dataclass(frozen=True, slots=True)
class SpectralConv(Conv):
    """Transform, multiply by the filter's spectrum, transform back, by PyTorch's operators; gates and skip at the ends.

    `channels` are done at a time, over the whole batch.
    """

    @property
    def choice(self) -> str:
        how = "x".join(map(str, self.transform.radices)) or str(self.transform.size)
        return f"{how} channels {self.channels}{', folded' if self.fold else ''}"

    @property
    def style(self) -> str:
        chunk = round(log2(max(self.estimate.working_set, 1)))
        return f"order {self.transform.order}, chunks of about 2^{chunk} bytes{', folded' if self.fold else ''}"

    def _who(self, problem: FftConvProblem) -> str:
        return f"chunks    {self.channels} of {problem.h} channels at a time"

    def terms_of(self, part: Part, problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> Terms:
        numbers = cost.values(problem, transform, self.channels, limits, part)
        whole = FORMULAS[transform.kind, part]
        if transform.radices:
            return Terms(numbers, whole, lambda v, a, r: monarch_stage(v, a, r, part))
        case, points = cost.work_case(transform.size)
        bluestein = " inside (Bluestein, for a prime factor above 13)" if case == "bluestein" else ""
        work = ("T", lambda v, a: transform_work(case, v.N, a), f"N = {points}{bluestein}")
        return Terms(numbers, whole, work=work)

    def estimates(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Estimate, Estimate]:
        return cost.estimates(problem, self.transform, self.channels, limits)

    def __str__(self) -> str:
        return f"(spectral-conv {self.transform} (channels {self.channels}){' (fold)' if self.fold else ''})"


@dataclass(frozen=True, slots=True)
class FusedConv(Conv):
    """One generated Triton kernel that does the whole convolution, run by `programs` programs, a channel each.

    `dk` is the kernel of the filter's gradient, on the same ring; `bwd` are those of several gradients at once, and
    kernels of one do what those leave; `filters` are those that make the filter's spectrum and take its gradient back
    to taps. Where that is faster, the filter's gradient and all that are wanted with it are those of another step,
    `back`, in passes over memory. A tail is never folded: a wrapped kernel reads the circle periodically instead.
    """

    spec: FftConvSpec
    dk: FftConvSpec
    programs: int
    filters: FilterKernels = field(default=FilterKernels(), kw_only=True)
    bwd: tuple[Backward, ...] = field(default=(), kw_only=True)
    one_each: bool = field(default=False, kw_only=True)  # gradients; with other radices there is a kernel of several
    spills: bool = field(default=False, kw_only=True)  # the forward kernel, registers
    back: Conv | None = field(default=None, kw_only=True)

    @property
    def choice(self) -> str:
        return f"{self.spec.name} programs {self.programs}"

    @property
    def style(self) -> str:
        spec = self.spec
        return f"{spec.ring} stack {spec.stack} warps {spec.num_warps} stages {spec.num_stages}"

    @property
    def untried(self) -> str | None:
        """Those that add to their result, that mask nothing, of several gradients, of the filter, and those that bring
        gradients of bfloat16 into range are newer than the device that ran the others."""
        newer = self.spec.add or self.spec.full or self.bwd or self.filters.forward or self.back or self.dk.scales
        return UNTRIED if newer else None

    def plainer(
        self, problem: FftConvProblem, limits: DeviceLimits
    ) -> tuple[Step[FftConvProblem], Body[FftConvProblem]] | None:
        """With PyTorch's FFT in place of the filter's kernels, a kernel for each gradient on chip, and masks."""
        if not (self.filters.forward or self.bwd or self.spec.full or self.back):
            return None
        spec, dk = (replace(one, full=False) for one in (self.spec, self.dk))
        conv = replace(
            self, spec=spec, dk=dk, bwd=(), back=None, filters=FilterKernels(why="no device has run a kernel for it")
        )
        return FilterSpectrum(conv.estimates(problem, limits)[0], Transform("fft", self.spec.size, ())), conv

    @property
    def reluctance(self) -> Reluctance | None:
        """Other radices may give several gradients at once, in half the time, and are hardly slower forward."""
        why = {
            "each of its gradients takes a kernel of its own": _ONE_EACH if self.one_each else 1.0,
            "it spills registers": _SPILLING if self.spills else 1.0,
        }
        found = [one for one, times in why.items() if times > 1.0]
        return Reluctance(prod(why.values()), " and ".join(found)) if found else None

    def lines(self, problem: FftConvProblem) -> list[str]:
        several = ", ".join(f"{one.spec.name} ({one.programs} programs)" for one in self.bwd)
        found = super(FusedConv, self).lines(problem)  # a dataclass with slots is made anew
        behind = f"{several}; a kernel each for what that leaves" if several else "a kernel for each gradient"
        found += [f"backward  {behind}", self.filters.line]
        return found + ([] if self.back is None else self.back.lines_behind(problem))

    def _why(self, problem: FftConvProblem) -> str:
        if self.spec.ring == "causal":
            return f"at least {problem.n}: on the ring t^{self.transform.size} = i what wraps is imaginary"
        return super(FusedConv, self)._why(problem)  # a dataclass with slots is made anew

    def _who(self, problem: FftConvProblem) -> str:
        return f"kernel    {self.spec.name}, {self.programs} programs, {self.spec.ring} ring"

    def parts(self, problem: FftConvProblem) -> dict[str, _Triton]:
        """The kernel of the forward pass "fwd", of the input's gradient alone "transpose", of the filter's "dk", and of
        several gradients "bwd"; those of the filter under their own parts."""
        spec = self.spec
        return {
            "fwd": spec,
            "transpose": replace(spec, transpose=True, pre_gate=spec.post_gate, post_gate=spec.pre_gate, add=False),
            "dk": replace(self.dk, pre_gate=problem.pre_gate, post_gate=problem.post_gate, skip=problem.skip),
            **self._several,
            **self.filters.parts,
            **named_behind(self.back, problem),
        }

    def largest(self, problem: FftConvProblem) -> LargestSpec | None:
        """The kernel that finds how large what comes backward is, where a kernel that meets no tile as a whole brings
        it into range."""
        if not self.dk.scales or not (self.spec.staged or self.dk.staged):
            return None
        return LargestSpec(dtype=problem.dtype, gate=problem.post_gate, rows=self.dk.rows)

    @property
    def _several(self) -> dict[str, FftConvSpec]:
        return {f"bwd{place or ''}": one.spec for place, one in enumerate(self.bwd)}

    def kernels(self, problem: FftConvProblem, gradients: bool = True) -> tuple[_Triton, ...]:
        forward: tuple[_Triton, ...] = (self.spec, *self.filters.forward)
        if not gradients:
            return forward
        if self.back is not None:
            return tuple(dict.fromkeys((*forward, *self.back.behind(problem))))
        behind = of_gradients(problem, self.spec, self.dk, self.bwd)
        largest = [one for one in (self.largest(problem),) if one is not None]
        return tuple(dict.fromkeys((*forward, *largest, *behind, *self.filters.back)))

    def terms_of(self, part: Part, problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> Terms:
        return self.filters.terms(part, problem, limits) or Terms(
            cost.fused_values(problem, self.spec, limits), FORMULAS["fused", part]
        )

    def estimates(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Estimate, Estimate]:
        return self.filters.estimates(problem, limits, cost.fused_estimates(problem, self.spec, limits))

    def launches(self, problem: FftConvProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        forward = of_kernels(problem, limits, self.spec, self.dk, False, self.filters, self.bwd)
        if gradients and self.back is not None:
            return (*forward, *(one for one in self.back.launches(problem, limits, True) if one.back))
        largest = self.largest(problem) if gradients else None
        return of_kernels(problem, limits, self.spec, self.dk, gradients, self.filters, self.bwd, largest)

    def __str__(self) -> str:
        return f"(fused-conv {self.transform} {self.spec.ring} (programs {self.programs}) {self.spec.name})"


def named_behind(back: Conv | None, problem: FftConvProblem) -> dict[str, _Triton]:
    """The kernels of the gradients in another step, by names of their own."""
    return {} if back is None else {f"passes_{one.name}": one for one in back.behind(problem)}


def _runs(items: Iterable[str], times: str) -> list[str]:
    """Equal neighbours written once: 3, 2, 2, 2 as 3, 2^3."""
    counted = [(item, len(list(run))) for item, run in groupby(items)]
    return [item if count == 1 else f"{item}{times}{count}" for item, count in counted]

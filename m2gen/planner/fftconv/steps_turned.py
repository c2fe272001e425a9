"""The same steps for tensors whose channels are neighbours in memory: turned before, the result turned back.

Gates and what is added are applied by the turns, so the kernels between them have none. Backward each tensor is turned
once, too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.kernels.turn import TurnSpec
from m2gen.planner.fftconv import cost, passes_cost
from m2gen.planner.fftconv.backward import of_gradients
from m2gen.planner.fftconv.formulas import FORMULAS
from m2gen.planner.fftconv.launches import of_kernels
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import Conv, FusedConv, Part, named_behind
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.fftconv.turns import Turns, straight
from m2gen.planner.step import UNTRIED, Estimate, Launch, Terms

_Triton = FftConvSpec | TritonSpec


@dataclass(frozen=True, slots=True)
class TurnedConv(FusedConv):
    """The fused convolution between turns. `turn` is the plain copy from channels to times as neighbours."""

    turn: TurnSpec

    @property
    def turns(self) -> Turns:
        return Turns(self.turn, self.spec.compute, self.dk.scales)

    @property
    def untried(self) -> str:
        """The turning kernels."""
        return UNTRIED

    @property
    def choice(self) -> str:
        return f"{super(TurnedConv, self).choice} turned"  # a dataclass with slots is made anew

    @property
    def style(self) -> str:
        return f"{super(TurnedConv, self).style} turned"

    def lines(self, problem: FftConvProblem) -> list[str]:
        return [*super(TurnedConv, self).lines(problem), self.turns.line(problem)]

    def parts(self, problem: FftConvProblem) -> dict[str, _Triton]:
        turn, back = self.turns.forward(problem)
        own = super(TurnedConv, self).parts(straight(problem))
        return {**own, **named_behind(self.back, problem), "turn": turn, "back": back}

    def kernels(self, problem: FftConvProblem, gradients: bool = True) -> tuple[_Triton, ...]:
        forward: tuple[_Triton, ...] = (self.spec, *self.filters.forward, *self.turns.forward(problem))
        if not gradients:
            return forward
        if self.back is not None:
            return tuple(dict.fromkeys((*forward, *self.back.behind(problem))))
        of_conv = of_gradients(problem, self.spec, self.dk, self.bwd, turned=True)
        largest = [one for one in (self.largest(problem),) if one is not None]
        every: tuple[_Triton, ...] = (*forward, *largest, *of_conv, *self.filters.back, *self.turns.behind(problem))
        return tuple(dict.fromkeys(every))

    def largest(self, problem: FftConvProblem) -> LargestSpec | None:
        found = super(TurnedConv, self).largest(problem)
        return found and turned_largest(found, problem)

    def layout(self, problem: FftConvProblem) -> str:
        return "BHL"

    def terms_of(self, part: Part, problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> Terms:
        return self.filters.terms(part, problem, limits) or Terms(
            cost.fused_values(problem, self.spec, limits, turned=True), FORMULAS["turned", part]
        )

    def estimates(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Estimate, Estimate]:
        return self.filters.estimates(problem, limits, cost.fused_estimates(problem, self.spec, limits, turned=True))

    def launches(self, problem: FftConvProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        own = gradients and self.back is None
        found = of_kernels(
            problem, limits, self.spec, self.dk, own, self.filters, self.bwd, self.largest(problem), turned=True
        )
        return _with_back(_between(self.turns, problem, limits, found, own), self.back, problem, limits, gradients)

    def __str__(self) -> str:
        return f"(turned-conv {FusedConv.__str__(self)} {self.turn.name})"


@dataclass(frozen=True, slots=True)
class TurnedPasses(PassesConv):
    """The convolution in passes over memory between turns, each of them of all channels at once."""

    turn: TurnSpec

    @property
    def turns(self) -> Turns:
        return Turns(self.turn, self.spec.compute, self.ranged)

    def between(self, problem: FftConvProblem) -> FftConvProblem:
        return straight(problem)

    def largest(self, problem: FftConvProblem) -> LargestSpec | None:
        found = super(TurnedPasses, self).largest(problem)
        return found and turned_largest(found, problem)

    @property
    def choice(self) -> str:
        return f"{super(TurnedPasses, self).choice} turned"

    @property
    def style(self) -> str:
        return f"{super(TurnedPasses, self).style} turned"

    def lines(self, problem: FftConvProblem) -> list[str]:
        return [*super(TurnedPasses, self).lines(problem), self.turns.line(problem)]

    def scratch(self, problem: FftConvProblem, gradients: bool) -> int:
        own = super(TurnedPasses, replace(self, back=None)).scratch(problem, gradients)
        own += self.turns.copies(problem, gradients)
        return own if self.back is None or not gradients else max(own, self.back.scratch(problem, True))

    def parts(self, problem: FftConvProblem) -> dict[str, _Triton]:
        turn, back = self.turns.forward(problem)
        return {**super(TurnedPasses, self).parts(problem), "turn": turn, "back": back}

    def kernels(self, problem: FftConvProblem, gradients: bool = True) -> tuple[_Triton, ...]:
        turns = *self.turns.forward(problem), *(self.turns.behind(problem) if gradients else ())
        return tuple(dict.fromkeys((*super(TurnedPasses, self).kernels(problem, gradients), *turns)))

    def behind(self, problem: FftConvProblem) -> tuple[_Triton, ...]:
        own = super(TurnedPasses, self).behind(problem)
        return tuple(dict.fromkeys((*own, *self.turns.behind(problem))))

    def layout(self, problem: FftConvProblem) -> str:
        return "BHL"

    def values(self, problem: FftConvProblem, limits: DeviceLimits) -> passes_cost.PassValues:
        turned = cost.turned_bytes(problem, self.spec)
        return super(TurnedPasses, self).values(problem, limits)._replace(w=turned)

    def launches(self, problem: FftConvProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        own = gradients and self.back is None
        found = super(TurnedPasses, replace(self, back=None)).launches(problem, limits, own)
        return _with_back(_between(self.turns, problem, limits, found, own), self.back, problem, limits, gradients)

    def seconds_behind(self, problem: FftConvProblem, limits: DeviceLimits) -> float:
        if self.back is not None:
            return self.back.seconds_behind(problem, limits)
        turns = sum(one.seconds for one in self.turns.launches(problem, limits, back=True))
        return super(TurnedPasses, self).seconds_behind(problem, limits) + turns

    def __str__(self) -> str:
        return f"(turned-passes {PassesConv.__str__(self)} {self.turn.name})"


def _with_back(
    own: tuple[Launch, ...], back: Conv | None, problem: FftConvProblem, limits: DeviceLimits, gradients: bool
) -> tuple[Launch, ...]:
    """These launches, and those of another step for the gradients."""
    if back is None or not gradients:
        return own
    return (*own, *(one for one in back.launches(problem, limits, True) if one.back))


def turned_largest(spec: LargestSpec, problem: FftConvProblem) -> LargestSpec:
    """The kernel for what a turn has multiplied by the gate, in float32."""
    return replace(spec, gate=False, dtype="fp32" if problem.post_gate else spec.dtype)


def _between(
    turns: Turns, problem: FftConvProblem, limits: DeviceLimits, own: tuple[Launch, ...], gradients: bool
) -> tuple[Launch, ...]:
    """These launches between those of the turns."""
    into, out = turns.launches(problem, limits)
    forward, back = ([one for one in own if one.back == behind] for behind in (False, True))
    if not gradients:
        return into, *forward, out
    first, second, *last = turns.launches(problem, limits, back=True)
    return into, *forward, out, first, second, *back, *last

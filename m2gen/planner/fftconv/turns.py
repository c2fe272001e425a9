"""Turning copies before and after a convolution of tensors whose channels are neighbours in memory.

Each tensor is turned once, so that times are neighbours. Gates and what is added stand in the turns, so the kernels
between them have none:

    z = T(u * pre)    d = T(dy * post)    y = post * T'(C(z)) + add
    d u = pre * T'(C'(d))    d pre = u * T'(C'(d))    d post = dy * T'(C(z))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.turn import TurnSpec
from m2gen.planner.fftconv.launch_cost import STREAMED
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.step import Launch
from m2gen.planner.turn.tiles import TurnSizes, candidates


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of one convolution.

    turn     the plain copy from channels to times as neighbours
    compute  of the operands of the convolution's products: a product with a gate is rounded to it
    scales   what comes backward is brought into range before it is rounded, so it is turned in float32
    """

    turn: TurnSpec
    compute: str
    scales: bool

    def inward(self, gated: bool, wide: bool = False) -> TurnSpec:
        """The kernel that turns an input, as it is or times a gate, rounded as the convolution rounds its operands;
        `wide`: not rounded, as the skip's gradient is the sum of such products."""
        return replace(self.turn, pre=True, inner="fp32" if wide else self.compute) if gated else self.turn

    def outward(self, gated: bool, added: bool = False) -> TurnSpec:
        """The kernel that turns a result back, in float32 where it has still a gate or a sum before it."""
        wide = "fp32" if gated or added else None
        return replace(self.turn.back, post=gated, add=added, inner=wide)

    def forward(self, problem: FftConvProblem) -> tuple[TurnSpec, TurnSpec]:
        """Those of a forward call."""
        return self.inward(problem.pre_gate), self.outward(problem.post_gate, problem.add)

    def behind(self, problem: FftConvProblem) -> tuple[TurnSpec, ...]:
        """Those of a call for every gradient: in come u and dy, back go those of u, of its gate and of the other."""
        pre, post = problem.pre_gate, problem.post_gate
        into = self.inward(pre, problem.skip), self.inward(post, problem.skip or self.scales)
        return (*into, self.outward(pre), *[self.outward(True)] * (pre + post))

    def launches(self, problem: FftConvProblem, limits: DeviceLimits, back: bool = False) -> Iterator[Launch]:
        """What the turns of a forward call move and take, or with `back` those for every gradient."""
        for one in self.behind(problem) if back else self.forward(problem):
            moved = float(problem.b * problem.h * problem.n * _bytes(one))
            seconds = moved / (STREAMED * limits.dram_bandwidth) + limits.call_seconds
            yield Launch(one.name, moved, seconds, 0.0, back=back)

    def copies(self, problem: FftConvProblem, gradients: bool) -> int:
        """Bytes of the turned tensors that a call has at once."""
        if not gradients:
            into, out = self.forward(problem)
            each = _between(into) + _between(out)
        else:
            into, other, back, *_ = self.behind(problem)
            each = sum(map(_between, (into, other, back, *[self.outward(True)] * problem.post_gate)))
        return problem.b * problem.h * problem.n * each

    def line(self, problem: FftConvProblem) -> str:
        into, out = self.forward(problem)
        return f"layout    channels are neighbours: turned by {into.name}, back by {out.name}"


def turn_of(problem: FftConvProblem, limits: DeviceLimits) -> TurnSpec:
    """The plain copy of the problem's input that is expected to be the fastest."""
    return candidates(TurnSizes(problem.b, problem.n, problem.h, problem.dtype), limits)[0].spec


def straight(problem: FftConvProblem) -> FftConvProblem:
    """The problem between the turns."""
    return replace(problem, layout="BHL", pre_gate=False, post_gate=False, add=False)


def _between(turn: TurnSpec) -> int:
    """Bytes of a number of the turned tensor."""
    return DTYPES[turn.inner or turn.dtype].bytes


def _bytes(turn: TurnSpec) -> int:
    """Bytes that are moved for a number."""
    return DTYPES[turn.dtype].bytes * (1 + turn.pre + turn.post + turn.add) + _between(turn)

"""Convolutions of tensors whose channels are neighbours in memory, each turned once, so that times are neighbours:

    z = T(u * pre)    d = T(dy * post)    y = post * T'(C(z)) + add
    d u = pre * T'(C'(d))    d pre = u * T'(C'(d))    d post = dy * T'(C(z))

Products are float32; z and d are rounded as the kernels between round their operands (not where the skip's gradient is
wanted, which sums them as they are), and what is still to be multiplied or added to stays float32: so every result is
rounded where it is without turning.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import Conv
from m2gen.planner.fftconv.steps_turned import TurnedConv, TurnedPasses
from m2gen.planner.fftconv.turns import Turns, straight
from m2gen.runtime.bindings.filters import TORCH
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.passes import PassesKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.turn_triton import turned


class _Turning:
    """The turns of one convolution, on tensors (B, H, L) of any strides."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def inward(self, x: Tensor, gate: Tensor | None, wide: bool = False) -> Tensor:
        """x * gate with times as neighbours; `wide`: in float32."""
        rounded = torch.float32 if wide else TORCH[self.turns.compute]
        z = x.new_empty(x.shape, dtype=x.dtype if gate is None else rounded)
        turn = self.turns.inward(gate is not None, wide)
        turned(x.transpose(1, 2), z, turn, pre=None if gate is None else gate.transpose(1, 2))
        return z

    def outward(self, c: Tensor, y: Tensor, gate: Tensor | None, add: Tensor | None = None) -> None:
        """y = c * gate + add."""
        turn = self.turns.outward(gate is not None, add is not None)
        post, plus = (None if t is None else t.transpose(1, 2) for t in (gate, add))
        turned(c, y.transpose(1, 2), turn, post=post, add=plus)


class _Turned:
    """What the convolutions in one kernel and in passes have in common: everything but what is between the turns."""

    turning: _Turning
    in_passes: TurnedPassesKernel | None  # of a plan whose gradients are made by another step

    def forward(self, x: Operands) -> Tensor:
        c = _own(x.u, x.post_gate is not None or x.add is not None)
        self.convolved(replace(x, u=self.turning.inward(x.u, x.pre_gate), pre_gate=None, post_gate=None, add=None), c)
        y = torch.empty_like(x.u)
        self.turning.outward(c, y, x.post_gate, x.add)
        return y

    def backward(self, dy: Tensor, x: Operands, out: Gradients) -> None:
        """Fill the wanted gradients; the forward's intermediates are computed again."""
        if self.in_passes is not None and (out.filter or out.skip is not None):
            self.in_passes.backward(dy, x, out)
            return
        filters, wide = out.filter or out.skip is not None, out.skip is not None
        z = d = behind = conv = None  # and C'(d) and C(z)
        if filters or out.post_gate is not None:
            z = self.turning.inward(x.u, x.pre_gate, wide)
        if filters or out.input:
            d = self.turning.inward(dy, x.post_gate, wide or self.turning.turns.scales)
        if d is not None and out.input:
            behind = _own(d, out.pre_gate is not None or x.pre_gate is not None, x.u.dtype)
        if z is not None and out.post_gate is not None:
            conv = _own(z, True)
        self.gradients(z, d, x, replace(out, u=behind, pre_gate=None, post_gate=conv))
        if behind is not None and out.u is not None:
            self.turning.outward(behind, out.u, x.pre_gate)
        if behind is not None and out.pre_gate is not None:
            self.turning.outward(behind, out.pre_gate, x.u)
        if conv is not None and out.post_gate is not None:
            self.turning.outward(conv, out.post_gate, dy)

    def convolved(self, x: Operands, y: Tensor) -> None:
        """Fill y with the convolution of x, which has no gates."""
        raise NotImplementedError

    def gradients(self, z: Tensor | None, d: Tensor | None, x: Operands, out: Gradients) -> None:
        """Fill out.u with C'(d), out.post_gate with C(z), and the gradients of taps and skip, where they are wanted; z
        and d are there where they are needed, the filter is that of x."""
        raise NotImplementedError


class TurnedKernel(_Turned, FusedKernel):
    """One generated kernel between turns."""

    def __init__(self, problem: FftConvProblem, step: TurnedConv) -> None:
        FusedKernel.__init__(self, problem, replace(step, back=None))
        self.turning = _Turning(step.turns)
        self.in_passes = _in_passes(problem, step.back)

    def convolved(self, x: Operands, y: Tensor) -> None:
        self._convolve(self.spec, x.u, None, None, y, self._spectrum(x))

    def gradients(self, z: Tensor | None, d: Tensor | None, x: Operands, out: Gradients) -> None:
        largest = None if d is None else self._largest(d, None)
        behind, conv = out.u, out.post_gate
        spectrum = self._spectrum(x) if behind is not None or conv is not None else None
        tensors = {"u": z, "dy": d, "du": behind, "conv": conv}
        left = self._together(tensors, (False, False), out, spectrum)
        if "du" in left and d is not None and behind is not None and spectrum is not None:
            self._convolve(self._variant(True, False, False), d, None, None, behind, spectrum, largest=largest)
        if "conv" in left and z is not None and conv is not None and spectrum is not None:
            self._convolve(self.spec, z, None, None, conv, spectrum)
        if "dk" in left and z is not None and d is not None:
            self._filter_gradient(d, replace(x, u=z, pre_gate=None, post_gate=None), out, largest)


class TurnedPassesKernel(_Turned):
    """Passes over memory between turns."""

    def __init__(self, problem: FftConvProblem, step: TurnedPasses) -> None:
        self.turning = _Turning(step.turns)
        self.own = _Ungated(straight(problem), replace(step, back=None))
        self.in_passes = _in_passes(problem, step.back)

    def convolved(self, x: Operands, y: Tensor) -> None:
        self.own.convolve(x, y)

    def gradients(self, z: Tensor | None, d: Tensor | None, x: Operands, out: Gradients) -> None:
        u, dy = z if z is not None else d, d if d is not None else z  # what is not needed is not read
        if u is not None and dy is not None:
            self.own.backward(dy, replace(x, u=u, pre_gate=None, post_gate=None, add=None), out)


class _Ungated(PassesKernel):
    """Of which the gradient of a second gate is C(z) itself."""

    def _write_conv(self, z: Tensor, scale: Tensor, of: tuple[slice, slice], dy: Tensor, into: Tensor) -> None:
        self._write(self.step.writing(self.step.way(), False), z, scale, [into[of]])


def _in_passes(problem: FftConvProblem, back: Conv | None) -> TurnedPassesKernel | None:
    return TurnedPassesKernel(problem, back) if isinstance(back, TurnedPasses) else None


def _own(like: Tensor, wide: bool, dtype: torch.dtype | None = None) -> Tensor:
    """A result that is turned back, with times as neighbours."""
    return like.new_empty(like.shape, dtype=torch.float32 if wide else dtype or like.dtype)

"""Three ways of a short convolution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.shortconv import ShortconvSpec
from m2gen.kernels.shortconv_cpp import ShortconvCppSpec
from m2gen.planner.shortconv import cost
from m2gen.planner.shortconv.launches import of_gradients
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.step import UNTRIED, Body, Estimate, Launch, Terms


@dataclass(frozen=True, slots=True)
class Shortconv(Body[ShortconvProblem]):
    """The convolution and the gradients of its weight and bias; or the mixer's three, and the gradient behind them."""

    legend: ClassVar = cost.LEGEND
    notes: ClassVar = cost.NOTES

    def estimated(self, problem: ShortconvProblem, limits: DeviceLimits) -> Estimate:
        """What it costs on a device."""
        raise NotImplementedError

    def expected(self, problem: ShortconvProblem, limits: DeviceLimits) -> float:
        return self.estimated(problem, limits).seconds

    def lines(self, problem: ShortconvProblem) -> list[str]:
        streams = "three streams, gated" if problem.gated else "one stream"
        return [
            f"filters   {problem.channels} of {problem.width} taps{', and a bias' if problem.bias else ''}; {streams}",
            f"layout    {problem.layout} in, {problem.layout_out} out",
            f"way       {self.what}",
        ]


@dataclass(frozen=True, slots=True)
class LibraryShortconv(Shortconv):
    """PyTorch's elementwise operators: a sum of shifted copies."""

    @property
    def choice(self) -> str:
        return "shifted copies"

    @property
    def style(self) -> str:
        return self.choice

    @property
    def what(self) -> str:
        return "a sum of shifted copies by PyTorch's elementwise operators"

    @property
    def row(self) -> tuple[str, ...]:
        return self.choice, "-", "any"

    def terms(self, problem: ShortconvProblem, body: Body[ShortconvProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.values(problem, limits, False), cost.library)

    def estimated(self, problem: ShortconvProblem, limits: DeviceLimits) -> Estimate:
        return cost.estimate(problem, limits, False)

    def __str__(self) -> str:
        return "(library-shortconv)"


@dataclass(frozen=True, slots=True)
class NativeShortconv(Shortconv):
    """Generated C++ kernels: `spec`, and `back`, the gradients of weight and bias, or the one behind a gate.

    A thread alone does what is not `parallel`. `group`: channels whose rows the gradients of weight and bias read one
    after the other, where times are side by side.
    """

    spec: ShortconvCppSpec
    back: ShortconvCppSpec
    group: int
    parallel: bool

    def items(self, problem: ShortconvProblem) -> int:
        """What `spec` splits its work into: blocks of times, or rows."""
        return self._items(problem, self.spec)

    def items_back(self, problem: ShortconvProblem) -> int:
        """The same of `back`."""
        if self.back.part == "dw" and self.back.layout == "BHL":
            return -(-problem.h // self.group)
        return self._items(problem, self.back)

    @staticmethod
    def _items(problem: ShortconvProblem, spec: ShortconvCppSpec) -> int:
        if spec.layout == "BLH":
            return problem.b * max(1, problem.outputs // spec.block)
        return problem.b * problem.h

    @property
    def choice(self) -> str:
        return self.spec.name

    @property
    def style(self) -> str:
        return "channels side by side" if self.spec.layout == "BLH" else "times side by side"

    @property
    def what(self) -> str:
        tile = self.spec.tile if self.spec.layout == "BLH" else self.spec.vector
        return f"{self.spec.name}, {self.style}, {tile} times at once"

    @property
    def row(self) -> tuple[str, ...]:
        times, channels = (self.spec.tile, self.spec.vector) if self.spec.layout == "BLH" else (4 * self.spec.vector, 1)
        return "one kernel", f"{times} times x {channels} channels", self.spec.layout

    def parts(self, problem: ShortconvProblem) -> Mapping[str, ShortconvCppSpec]:
        """The convolution "fwd" and the gradients of weight and bias "dw"; or "mix", and "ds" behind it."""
        return {self.spec.part: self.spec, self.back.part: self.back}

    def kernels(self, problem: ShortconvProblem, gradients: bool = True) -> tuple[ShortconvCppSpec, ...]:
        return (self.spec, self.back) if gradients else (self.spec,)

    def terms(self, problem: ShortconvProblem, body: Body[ShortconvProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.values(problem, limits, True), cost.native)

    def estimated(self, problem: ShortconvProblem, limits: DeviceLimits) -> Estimate:
        return cost.estimate(problem, limits, True)

    def __str__(self) -> str:
        return f"(native-shortconv {self.choice})"


@dataclass(frozen=True, slots=True)
class FusedShortconv(Shortconv):
    """Generated Triton kernels, as `NativeShortconv`'s; `parts_of_times`: of the sums that `back` makes, added in their
    order. Its estimate is that of its tiles (planner/shortconv/tiles.py)."""

    spec: ShortconvSpec
    back: ShortconvSpec
    parts_of_times: int

    @property
    def untried(self) -> str:
        return UNTRIED

    @property
    def choice(self) -> str:
        return self.spec.name

    @property
    def style(self) -> str:
        return f"tiles {self.spec.block_l}x{self.spec.block_h}, {self.spec.num_warps} warps"

    @property
    def what(self) -> str:
        return f"{self.spec.name}, tiles of {self.spec.block_l} times x {self.spec.block_h} channels"

    @property
    def row(self) -> tuple[str, ...]:
        layouts = " to ".join("BLH" if last else "BHL" for last in dict.fromkeys(self.spec.last))
        return "one kernel", f"{self.spec.block_l} times x {self.spec.block_h} channels", layouts

    def parts(self, problem: ShortconvProblem) -> Mapping[str, ShortconvSpec]:
        """As of `NativeShortconv`."""
        return {self.spec.part: self.spec, self.back.part: self.back}

    def kernels(self, problem: ShortconvProblem, gradients: bool = True) -> tuple[ShortconvSpec, ...]:
        return (self.spec, self.back) if gradients else (self.spec,)

    def estimated(self, problem: ShortconvProblem, limits: DeviceLimits) -> Estimate:
        return self.estimate

    def launches(self, problem: ShortconvProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        forward = Launch(self.spec.name, self.estimate.bytes, self.estimate.seconds, self.estimate.flop)
        behind = of_gradients(problem, limits, self.back, self.parts_of_times) if gradients else ()
        return (forward, *behind)

    def __str__(self) -> str:
        return f"(fused-shortconv {self.choice})"

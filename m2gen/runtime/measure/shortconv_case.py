"""Short convolutions to be measured and tried: held against the same in float64."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.plan import Plan
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.shortconv import convolved
from m2gen.runtime.measure.case import Case

_NUMBERS = 2**26  # of a tensor: larger problems are timed on fewer sequences
_SMALL = 300  # samples of the small problem


class ShortconvCase(Case[ShortconvProblem]):
    """A causal convolution of normal numbers with filters whose results are about as large."""

    def __init__(self, problem: ShortconvProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, DTYPES[problem.dtype].torch_name)
        self.left = problem.width - 1

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(device, dtype)

        self.x = self._laid(normal(problem.b, problem.channels, problem.n), problem.layout)
        self.weight = normal(problem.channels, problem.width) / problem.width**0.5
        self.bias = normal(problem.channels) if problem.bias else None

    @staticmethod
    def reduced(problem: ShortconvProblem) -> ShortconvProblem:
        each = problem.channels * max(problem.n, problem.outputs)
        return replace(problem, b=min(problem.b, max(1, _NUMBERS // each)))

    @staticmethod
    def small(problem: ShortconvProblem) -> ShortconvProblem:
        return replace(problem, b=min(problem.b, 2), n=min(problem.n, _SMALL), out=min(problem.out, _SMALL))

    @property
    def large(self) -> bool:
        return self.problem.numbers_in > self.LARGE

    def call(self, kernel: Any) -> Tensor:
        y = self._empty()
        if self.problem.gated:
            kernel.mix(self.x, self.weight, self.bias, y)
        else:
            kernel.convolve(self.x, self.weight, self.bias, self.left, y)
        return y

    def opposite(self) -> ShortconvCase:
        """Other numbers: two streams' product would keep its sign, and so would a bias."""
        other = copy(self)
        other.x = self.x.flip(0, 1)
        return other

    def wrong(self, y: Tensor) -> str | None:
        return self.off("result", y, *self._exact(self.x), self.problem.width + 1)

    def wrong_somewhere(self, plan: Plan) -> str | None:
        kernel = kernel_of(plan)
        return self.wrong(self.call(kernel)) or self._wrong_gradient(kernel)

    def wrong_in_a_sample(self, plan: Plan) -> str | None:
        return self.wrong_somewhere(plan)

    def _wrong_gradient(self, kernel: Any) -> str | None:
        """Of weight and bias, or behind the gate; that of x is a convolution of its own."""
        of, dy = self.problem, torch.ones_like(self._empty())
        wide = torch.promote_types(self.x.dtype, torch.float32)
        if of.gated:
            ds = torch.empty_like(self.x, dtype=wide)
            kernel.behind(dy, self.x, self.weight, self.bias, ds)
            (x1, _, v), (s1, _, sv) = self._streams(self.x), self._streams(self.x, sizes=True)
            expected, scale = (torch.cat([a, torch.ones_like(a), b], 1) for a, b in ((v, x1), (sv, s1)))
            return self.off("gradient", ds, expected, scale, of.width + 1)
        sums = torch.empty(of.h, of.width + 1, dtype=wide, device=self.device)
        kernel.weight_gradients(self.x, dy, self.left, sums)
        # the sum of every tap's samples: of x shifted, where the result is
        each = torch.eye(of.width, dtype=torch.float64, device=self.device).expand(of.h, -1, -1)

        def summed(x: Tensor) -> Tensor:
            taps = [convolved(x, each[:, w], self.left, of.outputs).sum((0, 2)) for w in range(of.width)]
            return torch.stack([*taps, torch.full_like(taps[0], of.b * of.outputs)], 1)

        x = self.x.double()
        return self.off("gradients of weight and bias", sums, summed(x), summed(x.abs()), of.b * of.outputs)

    def _exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result in float64, and the size of the terms of its sums."""
        if not self.problem.gated:
            return self._convolved(x), self._convolved(x, sizes=True)
        (x1, x2, v), (s1, s2, sv) = self._streams(x), self._streams(x, sizes=True)
        return torch.stack([x1 * v, x2]), torch.stack([s1 * sv, s2])

    def _streams(self, x: Tensor, sizes: bool = False) -> tuple[Tensor, ...]:
        return self._convolved(x, sizes).chunk(3, dim=1)

    def _convolved(self, x: Tensor, sizes: bool = False) -> Tensor:
        tensors = [x.double(), self.weight.double(), None if self.bias is None else self.bias.double()]
        a, w, b = (t.abs() if sizes and t is not None else t for t in tensors)
        y = convolved(a, w, self.left, self.problem.outputs)
        return y if b is None else y + b.unsqueeze(-1)

    def _empty(self) -> Tensor:
        of = self.problem
        y = self.x.new_empty((*([2] * of.gated), of.b, of.h, of.outputs))
        return self._laid(y, of.layout_out)

    @staticmethod
    def _laid(x: Tensor, layout: str) -> Tensor:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if layout == "BLH" else x

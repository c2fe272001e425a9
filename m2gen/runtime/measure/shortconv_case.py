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
from m2gen.runtime.bindings.shortconv import Mixed, MixGradients, convolved, heard
from m2gen.runtime.measure.case import Case

_NUMBERS = 2**26  # of a tensor: larger problems are timed on fewer sequences
_SMALL = 300  # samples of the small problem
_HEARD = 0.8  # of the samples, where there is a mask


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
        self.offset = normal(problem.channels) if problem.offset else None
        heard = torch.rand(problem.b, problem.n, generator=generator) < _HEARD
        self.mask = heard.to(device) if problem.masked else None

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
            z, g = y, self._empty()
            kernel.mix(self._mixed, z, g)
            return torch.stack([z, g])
        kernel.convolve(self.x, self.weight, self.bias, self.left, y)
        return y

    @property
    def _mixed(self) -> Mixed:
        return Mixed(self.x, self.weight, self.bias, self.offset, self.mask)

    def back(self, kernel: Any, y: Tensor) -> None:
        of, dy = self.problem, self._empty()
        wide = torch.promote_types(self.x.dtype, torch.float32)
        if not of.gated:
            sums = torch.empty(of.h, of.width + 1, dtype=wide, device=self.device)
            kernel.weight_gradients(self.x, dy, self.left, sums)
        elif kernel.mix_gradients(dy, dy, self._mixed, [True] * 4, torch.empty_like(self.x)) is None:
            ds = torch.empty_like(self.x, dtype=wide)
            kernel.behind(dy, dy, heard(self.x, self.offset, self.mask), self.weight, self.bias, ds)

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
        """Of weight and bias, that of x is a convolution of its own; or all of the gated form, or that behind its
        convolutions."""
        of, dy = self.problem, torch.ones_like(self._empty())
        wide = torch.promote_types(self.x.dtype, torch.float32)
        if of.gated:
            return self._wrong_gated_gradient(kernel, dy, wide)
        sums = torch.empty(of.h, of.width + 1, dtype=wide, device=self.device)
        kernel.weight_gradients(self.x, dy, self.left, sums)
        # the sum of every tap's samples: of x shifted, where the result is
        each = torch.eye(of.width, dtype=torch.float64, device=self.device).expand(of.h, -1, -1)

        def summed(x: Tensor) -> Tensor:
            taps = [convolved(x, each[:, w], self.left, of.outputs).sum((0, 2)) for w in range(of.width)]
            return torch.stack([*taps, torch.full_like(taps[0], of.b * of.outputs)], 1)

        x = self.x.double()
        return self.off("gradients of weight and bias", sums, summed(x), summed(x.abs()), of.b * of.outputs)

    def _wrong_gated_gradient(self, kernel: Any, dy: Tensor, wide: torch.dtype) -> str | None:
        """dy, of ones, is the gradient of both results."""
        found = kernel.mix_gradients(dy, dy, self._mixed, [True] * 4, torch.empty_like(self.x))
        (x1, _, v), (s1, _, sv) = self._streams(self.x), self._streams(self.x, sizes=True)
        there = self._there(torch.ones_like(x1))
        behind, scale = (torch.cat([a * there, torch.ones_like(a), b * there], 1) for a, b in ((v, x1), (sv, s1)))
        if found is None:
            ds = torch.empty_like(self.x, dtype=wide)
            dz = dy if self.mask is None else dy * self.mask[:, None]
            kernel.behind(dz, dy, heard(self.x, self.offset, self.mask), self.weight, self.bias, ds)
            return self.off("gradient", ds, behind, scale, self.problem.width + 1)
        expected, sizes = (self._gradients(*pair) for pair in ((behind, False), (scale, True)))
        for name, grad, want, size in zip(MixGradients._fields, found, expected, sizes, strict=True):
            terms = self.problem.width**2 * (1 if name == "h" else self.problem.b * self.problem.n)
            if grad is not None and (why := self.off(f"gradient of {name}", grad, want, size, terms)):
                return why
        return None

    def _gradients(self, ds: Tensor, sizes: bool) -> tuple[Tensor, ...]:
        """Of h, weight, bias and offset, given that behind the convolutions; or the sizes of their sums' terms."""
        x, weight = heard(self.x.double(), self._high(self.offset), self.mask), self.weight.double()
        x, weight = (x.abs(), weight.abs()) if sizes else (x, weight)
        width, length = self.problem.width, self.problem.n
        dh = self._there(convolved(ds, weight.flip(1), 0, length))
        padded = torch.nn.functional.pad(x, (width - 1, 0))
        taps = [(padded[..., w : w + length] * ds).sum((0, 2)) for w in range(width)]
        return dh, torch.stack(taps, 1), ds.sum((0, 2)), dh.sum((0, 2))

    def _there(self, x: Tensor) -> Tensor:
        return heard(x, None, self.mask)

    @staticmethod
    def _high(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.double()

    def _exact(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result in float64, and the size of the terms of its sums."""
        if not self.problem.gated:
            return self._convolved(x), self._convolved(x, sizes=True)
        (x1, x2, v), (s1, s2, sv) = self._streams(x), self._streams(x, sizes=True)
        return torch.stack([self._there(x1 * v), x2]), torch.stack([self._there(s1 * sv), s2])

    def _streams(self, x: Tensor, sizes: bool = False) -> tuple[Tensor, ...]:
        return self._convolved(x, sizes).chunk(3, dim=1)

    def _convolved(self, x: Tensor, sizes: bool = False) -> Tensor:
        given = heard(x.double(), self._high(self.offset), self.mask)
        tensors = [given, self.weight.double(), self._high(self.bias)]
        a, w, b = (t.abs() if sizes and t is not None else t for t in tensors)
        y = convolved(a, w, self.left, self.problem.outputs)
        return y if b is None else y + b.unsqueeze(-1)

    def _empty(self) -> Tensor:
        of = self.problem
        y = self.x.new_empty((of.b, of.h, of.outputs))
        return self._laid(y, of.layout_out)

    @staticmethod
    def _laid(x: Tensor, layout: str) -> Tensor:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2) if layout == "BLH" else x

"""Products with Monarch matrices to be measured and tried: held against the same product in float64."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.plan import Plan
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.blockdiag import matmul_blocks, outer_blocks
from m2gen.runtime.bindings.monarch_stages import gradients, inputs_and_result
from m2gen.runtime.measure.case import Case

_NUMBERS = 2**26  # in a tensor: larger problems are timed on fewer rows
_SMALL = 300  # rows of the small problem: several groups, and a rest
_LOOKED_AT = 16  # rows of a large result, the first and the last among them


class MonarchCase(Case[MonarchProblem]):
    """A product of normal numbers with factors that keep their size. The problem says its factors."""

    def __init__(self, problem: MonarchProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, DTYPES[problem.dtype].torch_name)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float32)

        self.x = normal(problem.rows, problem.n_in).to(device, dtype)
        self.factors = [(normal(*shape) / shape[2] ** 0.5).to(device, dtype) for shape in problem.factors]

    @staticmethod
    def reduced(problem: MonarchProblem) -> MonarchProblem:
        """With fewer rows, which do not know of one another; so many that they are split as all are."""
        most = max(4096, _NUMBERS // max(problem.n_in, problem.n_out))
        return problem if problem.rows <= most else replace(problem, rows=most)

    @staticmethod
    def small(problem: MonarchProblem) -> MonarchProblem:
        return replace(problem, rows=min(problem.rows, _SMALL))

    @property
    def large(self) -> bool:
        return self.problem.rows * max(self.problem.n_in, self.problem.n_out) > self.LARGE

    def call(self, kernel: Any) -> Tensor:
        y: Tensor = kernel.product(self.x, self.factors)
        return y

    def opposite(self) -> MonarchCase:
        other = copy(self)
        other.x = -self.x
        return other

    def wrong(self, y: Tensor) -> str | None:
        rows = self.problem.rows
        at = torch.tensor(sorted({*range(0, rows, max(1, rows // _LOOKED_AT)), rows - 1}), device=self.device)
        return self._off("result", y[at], self.x[at])

    def wrong_somewhere(self, plan: Plan) -> str | None:
        kernel = kernel_of(plan)
        return self._off("result", self.call(kernel), self.x) or self._wrong_gradient(kernel)

    def wrong_in_a_sample(self, plan: Plan) -> str | None:
        kernel = kernel_of(plan)
        return self.wrong(self.call(kernel)) or self._wrong_gradient(kernel)

    def _off(self, what: str, y: Tensor, x: Tensor) -> str | None:
        exact, size = (inputs_and_result(*operands, _product)[1] for operands in (self._wide(x), self._sizes(x)))
        return self.off(what, y, exact, size, self._terms)

    @property
    def _terms(self) -> int:
        """Of a sum with every stage's, and as many roundings as there are stages."""
        return sum(into for _, _, into in self.problem.factors) * len(self.problem.factors)

    def _wide(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x.double(), [f.double() for f in self.factors]

    def _sizes(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x.double().abs(), [f.double().abs() for f in self.factors]

    def _wrong_gradient(self, kernel: Any) -> str | None:
        """Of x and of each factor."""
        of = self.problem
        generator = torch.Generator().manual_seed(1)
        dy = torch.randn(of.rows, of.n_out, generator=generator).to(self.device, self.x.dtype)
        needs = [True] * (1 + len(self.factors))
        found = kernel.gradients(dy, self.x, self.factors, needs)
        exact = self._gradients(dy.double(), *self._wide(self.x), needs)
        sizes = self._gradients(dy.double().abs(), *self._sizes(self.x), needs)
        names = ["gradient of x", *(f"gradient of factor {i}" for i in range(len(self.factors)))]
        terms = self._terms + of.rows + sum(out for _, out, _ in of.factors)
        for name, one, right, size in zip(names, found, exact, sizes, strict=True):
            if why := self.off(name, one, right, size, terms):
                return why
        return None

    def _gradients(self, dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool]) -> list[Any]:
        def outer(dy: Tensor, x: Tensor, i: int) -> Tensor:
            return outer_blocks(dy, x, factors[i].shape[0])

        return gradients(dy, x, factors, needs, _product, _product, outer)


def _product(x: Tensor, factor: Tensor, _: int) -> Tensor:
    return matmul_blocks(x, factor)

"""Products with Monarch matrices to be measured and tried: held against the same product in float64."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.runtime.bindings.blockdiag import matmul_blocks, outer_blocks
from m2gen.runtime.bindings.monarch_stages import gradients, inputs_and_result
from m2gen.runtime.measure.rows_case import RowsCase


class MonarchCase(RowsCase[MonarchProblem]):
    """A product of normal numbers with factors that keep their size. The problem says its factors."""

    def __init__(self, problem: MonarchProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        # of a sum with every stage's, and as many roundings as there are stages
        self.terms = sum(into for _, _, into in problem.factors) * len(problem.factors)
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, DTYPES[problem.dtype].torch_name)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float32)

        self.x = normal(problem.rows, problem.n_in).to(device, dtype)
        self.factors = [(normal(*shape) / shape[2] ** 0.5).to(device, dtype) for shape in problem.factors]

    @staticmethod
    def widest(problem: MonarchProblem) -> int:
        return max(problem.n_in, problem.n_out)

    def call(self, kernel: Any) -> Tensor:
        y: Tensor = kernel.product(self.x, self.factors)
        return y

    def back(self, kernel: Any, y: Tensor) -> None:
        kernel.gradients(y, self.x, self.factors, [True] * (1 + len(self.factors)))

    def opposite(self) -> MonarchCase:
        other = copy(self)
        other.x = -self.x
        return other

    def exact(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        of = self._wide(self.x[rows]), self._sizes(self.x[rows])
        exact, size = (inputs_and_result(*operands, _product)[1] for operands in of)
        return exact, size

    def _wide(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x.double(), [f.double() for f in self.factors]

    def _sizes(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        return x.double().abs(), [f.double().abs() for f in self.factors]

    def wrong_gradient(self, kernel: Any) -> str | None:
        """Of x and of each factor."""
        of = self.problem
        generator = torch.Generator().manual_seed(1)
        dy = torch.randn(of.rows, of.n_out, generator=generator).to(self.device, self.x.dtype)
        needs = [True] * (1 + len(self.factors))
        found = kernel.gradients(dy, self.x, self.factors, needs)
        exact = self._gradients(dy.double(), *self._wide(self.x), needs)
        sizes = self._gradients(dy.double().abs(), *self._sizes(self.x), needs)
        names = ["gradient of x", *(f"gradient of factor {i}" for i in range(len(self.factors)))]
        terms = self.terms + of.rows + sum(out for _, out, _ in of.factors)
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

"""Products with block-diagonal weights to be measured and tried: held against the same product in float64."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.runtime.bindings.blockdiag import matmul_blocks, outer_blocks
from m2gen.runtime.bindings.gate import ACTIVATIONS
from m2gen.runtime.measure.rows_case import RowsCase


class BlockDiagCase(RowsCase[BlockDiagProblem]):
    """A product of normal numbers with a weight whose results are about as large."""

    def __init__(self, problem: BlockDiagProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, DTYPES[problem.dtype].torch_name)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, dtype=torch.float32).to(device, dtype)

        self.x = normal(problem.rows, problem.n_in)
        self.weight = normal(problem.blocks, problem.block_out, problem.block_in) / problem.block_in**0.5
        self.bias = normal(problem.n_out) if problem.bias else None
        self.terms = problem.block_in
        self.residual = normal(problem.rows, problem.results) if problem.residual else None

    @staticmethod
    def widest(problem: BlockDiagProblem) -> int:
        return max(problem.n_in, problem.n_out)

    def call(self, kernel: Any) -> Tensor:
        y: Tensor = kernel.product(self.x, self.weight, self.bias, self.residual)
        return y

    def back(self, kernel: Any, y: Tensor) -> None:
        of = self.problem
        if kernel.step.own_gradients:
            kernel.gradients(y, self.x, self.weight, self.bias, [True, True, of.bias])
        else:
            kernel.outer(y.new_empty((of.rows, of.n_out)), self.x)

    def opposite(self) -> BlockDiagCase:
        other = copy(self)
        other.x = -self.x
        return other

    def wrong_gradient(self, kernel: Any) -> str | None:
        """Of the weight, where the kernel makes no others: that of x is then a product of its own. Else of all."""
        of = self.problem
        generator = torch.Generator().manual_seed(1)
        own = kernel.step.own_gradients
        dy = torch.randn(of.rows, of.results if own else of.n_out, generator=generator).to(self.device, self.x.dtype)
        if not own:
            wide = dy.double()
            right, scale = self._summed(wide), self._summed(wide.abs(), self.x.abs())
            return self.off("gradient of weight", kernel.outer(dy, self.x), right, scale, of.rows)
        dz, sizes, dy = self._behind(dy)
        found = kernel.gradients(dy, self.x, self.weight, self.bias, [True, True, of.bias])
        weight, terms = self.weight.double().transpose(1, 2), of.rows + of.block_in + of.block_out
        names, exact = ("x", "weight", "bias"), (matmul_blocks(dz, weight), self._summed(dz), dz.sum(0))
        size = (matmul_blocks(sizes, weight.abs()), self._summed(sizes, self.x.abs()), sizes.sum(0))
        for name, one, right, scale in zip(names, found, exact, size, strict=True):
            if one is not None and (why := self.off(f"gradient of {name}", one, right, scale, terms)):
                return why
        return None

    def _summed(self, dz: Tensor, x: Tensor | None = None) -> Tensor:
        """For each block the sum over rows of dz x^T."""
        return outer_blocks(dz, (self.x if x is None else x).double(), self.problem.blocks)

    def _behind(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradient behind the product in float64, the size of its terms, and dy, zero where rounding alone may
        decide on which side of a kink a number lies."""
        of = self.problem
        if of.activation is None and not of.glu:
            return dy.double(), dy.double().abs(), dy
        z, size = self._product(slice(None))
        gate, gates = (z.chunk(2, -1)[0], size.chunk(2, -1)[0]) if of.glu else (z, size)
        value, values = (z.chunk(2, -1)[1], size.chunk(2, -1)[1]) if of.glu else (torch.ones_like(z), 0)
        if of.activation == "relu":
            dy = torch.where(gate.abs() > torch.finfo(torch.float32).eps * of.block_in * gates, dy, 0)
        through = ACTIVATIONS[of.activation](gate)
        wide = dy.double()
        with torch.enable_grad():
            leaf = gate.requires_grad_()
            (slope,) = torch.autograd.grad(ACTIVATIONS[of.activation](leaf).sum(), leaf)
        # slopes are at most 1.2, and change by at most 1 for each unit
        dgate, sizes = wide * slope * value, wide.abs() * (1.2 * (value.abs() + values) + gates * value.abs())
        if not of.glu:
            return dgate, sizes, dy
        dvalue, others = wide * through, wide.abs() * (through.abs() + 1.2 * gates)
        return torch.cat([dgate, dvalue], -1), torch.cat([sizes, others], -1), dy

    def _product(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The product and its bias in float64, and the size of the terms of its sums."""
        x, weight = self.x[rows].double(), self.weight.double()
        y, scale = matmul_blocks(x, weight), matmul_blocks(x.abs(), weight.abs())
        if self.bias is not None:
            y, scale = y + self.bias.double(), scale + self.bias.double().abs()
        return y, scale

    def exact(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The result of these rows in float64, and the size of the terms of its sums."""
        (y, scale), act = self._product(rows), ACTIVATIONS[self.problem.activation]
        if self.problem.glu:  # an error of either half, times the other
            (gate, rest), (first, second) = y.chunk(2, dim=-1), scale.chunk(2, dim=-1)
            y, scale = act(gate) * rest, first * (1 + rest.abs()) + act(gate).abs() * second
        else:
            y = act(y)
        if self.residual is not None:
            beside = self.residual[rows].double()
            y, scale = y + beside, scale + beside.abs()
        return y, scale

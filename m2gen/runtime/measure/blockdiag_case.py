"""Products with block-diagonal weights to be measured and tried: held against the same product in float64."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.runtime.bindings.blockdiag import matmul_blocks
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

    def opposite(self) -> BlockDiagCase:
        other = copy(self)
        other.x = -self.x
        return other

    def wrong_gradient(self, kernel: Any) -> str | None:
        """Of the weight; that of x is a product of its own."""
        of = self.problem
        dy = torch.randn(of.rows, of.n_out, device=self.device).to(self.x.dtype)
        a = dy.double().reshape(of.rows, of.blocks, of.block_out).permute(1, 2, 0)
        b = self.x.double().reshape(of.rows, of.blocks, of.block_in).transpose(0, 1)
        return self.off("gradient of weight", kernel.outer(dy, self.x), a @ b, a.abs() @ b.abs(), of.rows)

    def exact(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The result of these rows in float64, and the size of the terms of its sums."""
        x, weight, act = self.x[rows].double(), self.weight.double(), ACTIVATIONS[self.problem.activation]
        y, scale = matmul_blocks(x, weight), matmul_blocks(x.abs(), weight.abs())
        if self.bias is not None:
            y, scale = y + self.bias.double(), scale + self.bias.double().abs()
        if self.problem.glu:  # an error of either half, times the other
            (gate, rest), (first, second) = y.chunk(2, dim=-1), scale.chunk(2, dim=-1)
            y, scale = act(gate) * rest, first * (1 + rest.abs()) + act(gate).abs() * second
        else:
            y = act(y)
        if self.residual is not None:
            beside = self.residual[rows].double()
            y, scale = y + beside, scale + beside.abs()
        return y, scale

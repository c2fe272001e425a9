"""Gates to be measured and tried: held against the same in float64."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.gate.problem import GateProblem
from m2gen.runtime.bindings.gate import ACTIVATIONS
from m2gen.runtime.measure.rows_case import RowsCase


class GateCase(RowsCase[GateProblem]):
    """A gate of normal numbers."""

    FEWEST = 1
    terms = 1

    def __init__(self, problem: GateProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        generator = torch.Generator().manual_seed(0)
        z = torch.randn(problem.rows, 2 * problem.n, generator=generator)
        self.z = z.to(device, getattr(torch, DTYPES[problem.dtype].torch_name))

    @staticmethod
    def widest(problem: GateProblem) -> int:
        return 2 * problem.n

    def call(self, kernel: Any) -> Tensor:
        y: Tensor = kernel.gated(self.z)
        return y

    def opposite(self) -> GateCase:
        """The value turned round, not what is activated."""
        other, (half, value) = copy(self), self.z.chunk(2, dim=1)
        other.z = torch.cat([half, -value], 1)
        return other

    def exact(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        half, value = self.z[rows].double().chunk(2, dim=1)
        return ACTIVATIONS[self.problem.activation](half) * value, half.abs() * value.abs()

    def wrong_gradient(self, kernel: Any) -> str | None:
        dy = self.z[:, : self.problem.n].contiguous()
        found = kernel.gradient(dy, self.z)
        if found is None:  # the operator composes it
            return None
        z = self.z.double().requires_grad_()
        half, value = z.chunk(2, dim=1)
        (expected,) = torch.autograd.grad(ACTIVATIONS[self.problem.activation](half) * value, z, dy.double())
        half, value, d = half.detach().abs(), value.detach().abs(), dy.double().abs()
        return self.off("gradient", found, expected, torch.cat([d * value * (1 + half), d * half], 1), self.terms)

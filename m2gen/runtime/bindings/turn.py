"""Turning copies: by PyTorch, or by a generated Triton kernel. Compiled and interpreted, not yet run on a device."""

from __future__ import annotations

from torch import Tensor

from m2gen.planner.turn.problem import TurnProblem
from m2gen.planner.turn.steps import FusedTurn, LibraryTurn
from m2gen.runtime.bindings.turn_triton import turned


class LibraryKernel:
    """By PyTorch."""

    def __init__(self, problem: TurnProblem, step: LibraryTurn) -> None:
        pass

    def turn(self, x: Tensor, y: Tensor) -> None:
        """Fill y (B, H, N), any strides, with x (B, N, H)."""
        y.copy_(x.transpose(1, 2))


class FusedKernel:
    """By one launch."""

    def __init__(self, problem: TurnProblem, step: FusedTurn) -> None:
        self.spec = step.spec

    def turn(self, x: Tensor, y: Tensor) -> None:
        """Fill y (B, H, N), any strides, with x (B, N, H)."""
        turned(x, y, self.spec)

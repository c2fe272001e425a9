"""Turning copies to be measured and tried: the same bits in other places."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.plan import Plan
from m2gen.planner.turn.problem import TurnProblem
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.measure.case import Case

_NUMBERS = 2**26  # of a tensor: larger problems are timed on fewer matrices


class TurnCase(Case[TurnProblem]):
    """A copy of normal numbers. Its gradient is a copy back, which is planned by itself."""

    def __init__(self, problem: TurnProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(problem.b, problem.n, problem.h, generator=generator)
        self.x = x.to(device, getattr(torch, DTYPES[problem.dtype].torch_name))

    @staticmethod
    def reduced(problem: TurnProblem) -> TurnProblem:
        return replace(problem, b=min(problem.b, max(1, _NUMBERS // (problem.n * problem.h))))

    @staticmethod
    def small(problem: TurnProblem) -> TurnProblem:
        return replace(problem, b=min(problem.b, 2), n=min(problem.n, 300), h=min(problem.h, 130))

    @property
    def large(self) -> bool:
        return False  # a comparison of copies is quick

    def call(self, kernel: Any) -> Tensor:
        y = self.x.new_empty((self.problem.b, self.problem.h, self.problem.n))
        kernel.turn(self.x, y)
        return y

    def opposite(self) -> TurnCase:
        other = copy(self)
        other.x = -self.x
        return other

    def wrong(self, y: Tensor) -> str | None:
        return None if torch.equal(y, self.x.transpose(1, 2)) else "it is wrong: not a copy of what was given"

    def wrong_somewhere(self, plan: Plan) -> str | None:
        return self.wrong(self.call(kernel_of(plan)))

    def wrong_in_a_sample(self, plan: Plan) -> str | None:
        return self.wrong_somewhere(plan)

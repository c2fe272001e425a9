"""What is done to each row alone: timed on fewer rows, looked at in some of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.measure.case import Case

P = TypeVar("P", bound=Problem)
_LOOKED_AT = 16  # rows of a large result, the first and the last among them


class RowsCase(Case[P], Generic[P]):
    """A problem of `rows` rows, no one of which knows of the others."""

    NUMBERS: ClassVar[int] = 2**26  # in a tensor: larger problems are timed on fewer rows
    FEWEST: ClassVar[int] = 4096  # but on no fewer: they are packed and split as all are
    SMALL: ClassVar[int] = 300  # rows of the small problem: several tiles, and a rest
    CHECKED: ClassVar[int] = 1300  # rows of a first check: more than are read together, and a rest
    terms: int  # of a result's sum, or how often it is rounded

    @staticmethod
    def widest(problem: Any) -> int:
        """Numbers of a row of the largest tensor."""
        raise NotImplementedError

    def exact(self, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """The result of these rows in float64, and the size of the terms of its sums."""
        raise NotImplementedError

    def wrong_gradient(self, kernel: Any) -> str | None:
        """Why a gradient is wrong."""
        raise NotImplementedError

    @classmethod
    def reduced(cls, problem: Any) -> Any:
        most = max(cls.FEWEST, cls.NUMBERS // cls.widest(problem))
        return problem if problem.rows <= most else replace(problem, rows=most)

    @classmethod
    def small(cls, problem: Any) -> Any:
        return replace(problem, rows=min(problem.rows, cls.SMALL))

    @classmethod
    def checked(cls, problem: Any) -> Any:
        return replace(problem, rows=min(problem.rows, cls.CHECKED))

    @property
    def large(self) -> bool:
        of: Any = self.problem
        return bool(of.rows * self.widest(of) > self.LARGE)

    def wrong(self, y: Tensor) -> str | None:
        of: Any = self.problem
        at = torch.tensor(sorted({*range(0, of.rows, max(1, of.rows // _LOOKED_AT)), of.rows - 1}), device=self.device)
        return self.off("result", y[at], *self.exact(at), self.terms)

    def wrong_somewhere(self, plan: Plan) -> str | None:
        kernel = kernel_of(plan)
        wrong = self.off("result", self.call(kernel), *self.exact(slice(None)), self.terms)
        return wrong or self.wrong_gradient(kernel)

    def wrong_in_a_sample(self, plan: Plan) -> str | None:
        kernel = kernel_of(plan)
        return self.wrong(self.call(kernel)) or self.wrong_gradient(kernel)

"""What measuring and trying a plan needs to know of its op: operands of a problem, a call, what the right answer is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.testing.tolerances import check

P = TypeVar("P", bound=Problem)


class Case(Generic[P]):
    """A problem with operands, drawn on a device. Its `kernel`s are what `kernel_of` gives for plans of it."""

    LARGE: ClassVar[int] = 2**22  # numbers in a tensor: of more, not all results are looked at

    def __init__(self, problem: P, device: torch.device) -> None:
        self.problem, self.device = problem, device

    @staticmethod
    def reduced(problem: P) -> P:
        """A problem that is timed in the other's stead, where that one is too large."""
        return problem

    @staticmethod
    def small(problem: P) -> P:
        """A problem of few numbers that the same kernels do."""
        return problem

    @classmethod
    def checked(cls, problem: P) -> P:
        """A problem that the same kernels do in a moment, of several programs: their first check on a device."""
        return cls.small(problem)

    @property
    def large(self) -> bool:
        """Whether there are too many results to look at each."""
        raise NotImplementedError

    def call(self, kernel: Any) -> Tensor:
        """The forward pass."""
        raise NotImplementedError

    def back(self, kernel: Any, y: Tensor) -> None:
        """Every gradient that the kernel makes, of any given one: which kernels run is what is asked, no results."""

    def opposite(self) -> Case[P]:
        """The same problem with the opposite answer: a result left over from another call would be wrong."""
        raise NotImplementedError

    def wrong(self, y: Tensor) -> str | None:
        """Why `y` is not the answer; None where it is, as far as a sample of it shows."""
        raise NotImplementedError

    def wrong_somewhere(self, plan: Plan) -> str | None:
        """Why a number of the plan's result or of a gradient is wrong, held against float64; None where none is."""
        raise NotImplementedError

    def wrong_in_a_sample(self, plan: Plan) -> str | None:
        """The same for some rows of the result, and whether all gradients are numbers."""
        raise NotImplementedError

    @staticmethod
    def off(what: str, found: Tensor, expected: Tensor, scale: Tensor, terms: int) -> str | None:
        """Why `found` is not `expected`, in float64, sums of so many terms of the sizes `scale`; None where it is."""
        try:
            check(found, expected, scale, terms)
        except AssertionError as error:
            return f"it is wrong: {what}: {error}"
        return None

    def staying(self, kernel: Any) -> Callable[[], Tensor]:
        """A call with weights that their user keeps."""
        return lambda: self.call(kernel)

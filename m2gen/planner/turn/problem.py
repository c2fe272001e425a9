"""A turning copy as a problem: what is behind one another in memory becomes neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from m2gen.dtypes import DTYPES
from m2gen.planner.problem import Grammar, Nearness, Problem, check_size, check_words

_GRAMMAR = Grammar(
    op="turn",
    sizes={"n": "n", "h": "h", "b": "b"},
    words={dtype: {"dtype": dtype} for dtype in DTYPES},
    required=("n", "h"),
    example="turn n=4096 h=768 b=8 bf16",
    kinds="op, sizes and dtype",
)
_NEARNESS = Nearness(equal=(), doublings={"n": 0.25, "h": 0.25, "b": 0.25}, differences={"dtype": 0.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnProblem(Problem):
    """x (b, n, h), whose last axis is contiguous, copied to (b, h, n) with that of times contiguous."""

    grammar: ClassVar = _GRAMMAR
    nearness: ClassVar = _NEARNESS
    columns: ClassVar = ("way", "tile")

    n: int
    h: int
    b: int = 1
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        check_words(dtype=(self.dtype, tuple(DTYPES)))
        for word in ("n", "h", "b"):
            check_size(word, getattr(self, word))

    def __str__(self) -> str:
        return f"{self.op} n={self.n} h={self.h} b={self.b} {self.dtype}"

    @property
    def main(self) -> str:
        return f"n={self.n} h={self.h} b={self.b}"

    @property
    def least_bytes(self) -> int:
        return 2 * self.b * self.n * self.h * DTYPES[self.dtype].bytes

"""The gate of a gated linear unit as a problem."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from m2gen.dtypes import DTYPES
from m2gen.kernels.activation import ACTIVATIONS
from m2gen.planner.problem import Grammar, Nearness, Problem, check_size, check_words

_GRAMMAR = Grammar(
    op="gate",
    sizes={"n": "n", "rows": "rows"},
    words={
        **{dtype: {"dtype": dtype} for dtype in DTYPES},
        **{activation: {"activation": activation} for activation in ACTIVATIONS},
    },
    required=("n",),
    example="gate n=3072 rows=4096 bf16 gelu",
    kinds="op, sizes, dtype and activation",
)
_NEARNESS = Nearness(equal=("activation",), doublings={"n": 0.25, "rows": 0.25}, differences={"dtype": 0.5})


@dataclass(frozen=True, slots=True, kw_only=True)
class GateProblem(Problem):
    """y = activation(first half) * second half of each of `rows` rows of 2 n numbers; an `activation` or None."""

    grammar: ClassVar = _GRAMMAR
    nearness: ClassVar = _NEARNESS
    columns: ClassVar = ("way", "passes over memory")

    n: int
    rows: int = 1
    dtype: str = "fp32"
    activation: str | None = None

    def __post_init__(self) -> None:
        check_words(dtype=(self.dtype, tuple(DTYPES)))
        if self.activation is not None:
            check_words(activation=(self.activation, ACTIVATIONS))
        for word, name in self.grammar.sizes.items():
            check_size(word, getattr(self, name))

    def __str__(self) -> str:
        words = [self.op, f"n={self.n}", f"rows={self.rows}", self.dtype]
        return " ".join([*words, *([self.activation] if self.activation else [])])

    @property
    def numbers(self) -> int:
        """Of the result."""
        return self.n * self.rows

    @property
    def main(self) -> str:
        return f"n={self.n} rows={self.rows}"

    @property
    def least_bytes(self) -> int:
        return 3 * self.numbers * DTYPES[self.dtype].bytes

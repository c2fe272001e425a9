"""A product with a block-diagonal weight as a problem: sizes, dtype, what is done to the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError
from m2gen.kernels.activation import ACTIVATIONS
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.problem import Grammar, Nearness, Problem, check_size, check_words

_GRAMMAR = Grammar(
    op="blockdiag",
    sizes={"in": "n_in", "out": "n_out", "blocks": "blocks", "rows": "rows"},
    words={
        **{dtype: {"dtype": dtype} for dtype in DTYPES},
        **{activation: {"activation": activation} for activation in ACTIVATIONS},
        "bias": {"bias": True},
        "glu": {"glu": True},
        "residual": {"residual": True},
    },
    required=("in", "out"),
    example="blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 gelu glu",
    kinds="op, sizes, dtype and activation",
)
_NEARNESS = Nearness(
    equal=("glu",),
    doublings={"n_in": 0.5, "n_out": 0.5, "blocks": 0.5, "rows": 0.25},
    differences={"dtype": 0.25, "bias": 0.05, "activation": 0.1, "residual": 0.05},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDiagProblem(Problem):
    """y = activation(x W^T + bias) with x (rows, n_in) and W the matrix of `blocks` blocks of equal size, n_out x n_in.

    `glu`: instead y = activation(first half) * second half of the n_out results, (rows, n_out / 2). `residual`: at the
    end a tensor of y's size is added. One block is a dense linear layer.
    """

    grammar: ClassVar = _GRAMMAR
    nearness: ClassVar = _NEARNESS
    columns: ClassVar = ("way", "tile", "weight")

    n_in: int
    n_out: int
    blocks: int = 1
    rows: int = 1
    dtype: str = "fp32"
    bias: bool = False
    activation: str | None = None
    glu: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        check_words(dtype=(self.dtype, tuple(DTYPES)))
        if self.activation is not None:
            check_words(activation=(self.activation, ACTIVATIONS))
        for word, name in self.grammar.sizes.items():
            check_size(word, getattr(self, name))
        for word, size in (("in", self.n_in), ("out", self.n_out)):
            if size % self.blocks:
                raise ProblemError(
                    str(self), f"{word}={size} is no multiple of blocks={self.blocks}", "give blocks that divide both"
                )
        if self.glu and self.blocks % 2:
            raise ProblemError(
                str(self), f"the halves of a glu are whole blocks, and blocks={self.blocks} is odd", "give an even one"
            )

    def __str__(self) -> str:
        words = [self.op, f"in={self.n_in}", f"out={self.n_out}", f"blocks={self.blocks}", f"rows={self.rows}"]
        words += [
            self.dtype,
            *["bias"] * self.bias,
            *([self.activation] if self.activation else []),
            *["glu"] * self.glu,
            *["residual"] * self.residual,
        ]
        return " ".join(words)

    @property
    def block_in(self) -> int:
        """Columns of a block."""
        return self.n_in // self.blocks

    @property
    def block_out(self) -> int:
        """Rows of a block."""
        return self.n_out // self.blocks

    @property
    def of_gradients(self) -> tuple[Problem, ...]:
        """The bare product, whose result an activation's gradient needs, and a gate of it; the gradients of the weight
        and of x."""
        bare = replace(self, activation=None, glu=False, residual=self.residual and not self.glu)
        of_weight = replace(bare, bias=False, residual=False)
        of_x = replace(of_weight, n_in=self.n_out, n_out=self.n_in)
        gate = GateProblem(n=self.results, rows=self.rows, dtype=self.dtype, activation=self.activation)
        return (bare, replace(bare, residual=False), of_weight, of_x, *([gate] if self.glu else []))

    @property
    def weights(self) -> int:
        """Numbers of the weight."""
        return self.n_out * self.block_in

    @property
    def results(self) -> int:
        """Numbers of a row of the result."""
        return self.n_out // 2 if self.glu else self.n_out

    @property
    def result_blocks(self) -> int:
        """Blocks of the result."""
        return self.blocks // 2 if self.glu else self.blocks

    @property
    def flop(self) -> int:
        """Of the product; a multiply-add counts two."""
        return 2 * self.rows * self.weights

    @property
    def main(self) -> str:
        return f"in={self.n_in} out={self.n_out} rows={self.rows}"

    @property
    def least_bytes(self) -> int:
        numbers = self.rows * (self.n_in + (1 + self.residual) * self.results) + self.weights + self.n_out * self.bias
        return numbers * DTYPES[self.dtype].bytes

"""A product with a Monarch matrix as a problem: sizes, and the factors, given or to be found within constraints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.problem import Grammar, Nearness, Problem, check_size, check_words

Shape = tuple[int, int, int]  # nblocks, block_out, block_in

_FEW = 64  # rows, whose plan decides how any number of them is computed
_SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9}


def _shapes(text: str) -> tuple[Shape, ...] | None:
    """64x64x64,64x64x64: nblocks x out x in of each factor, the first one first."""
    found = [part.split("x") for part in text.split(",")]
    if not all(len(sizes) == 3 and all(size.isdecimal() and len(size) < 20 for size in sizes) for sizes in found):
        return None
    return tuple((int(a), int(b), int(c)) for a, b, c in found)


def _block(text: str) -> tuple[int, int] | None:
    match = re.fullmatch(r"(\d{1,19})x(\d{1,19})", text, re.ASCII)
    sizes = (int(match[1]), int(match[2])) if match else (0, 0)
    return sizes if all(sizes) else None


def _count(text: str) -> int | None:
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kKMG]?)", text, re.ASCII)
    return (int(float(match[1]) * _SCALES[match[2]]) or None) if match else None


_GRAMMAR = Grammar(
    op="monarch",
    sizes={"in": "n_in", "out": "n_out", "rows": "rows", "order": "order"},
    words={dtype: {"dtype": dtype} for dtype in DTYPES},
    required=("in", "out"),
    example="monarch in=4096 out=4096 rows=8192 bf16 order=2",
    kinds="op, sizes, dtype, factors and constraints",
    values={
        "factors": ("factors", _shapes, "factors=64x64x64,64x64x64, nblocks x out x in of each"),
        "blocks": ("block", _block, "blocks=64x64, out x in"),
        "params<": ("params", _count, "params<=2M, or 300k, or 0.5M, or 300000"),
    },
)
_NEARNESS = Nearness(
    equal=("order", "factors", "block", "params"),
    doublings={"n_in": 0.5, "n_out": 0.5, "rows": 0.25},
    differences={"dtype": 0.25},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonarchProblem(Problem):
    """y = M x for each of `rows` rows, M an n_out x n_in Monarch matrix of `order` block-diagonal factors.

    `factors`, where given, are the shapes that M has (`m2gen.monarch_matmul`). Else the planner finds them: of the
    `order` asked for, or of any (0), every block `block` (out, in), at most `params` numbers in all (0: any number).
    """

    grammar: ClassVar = _GRAMMAR
    nearness: ClassVar = _NEARNESS
    columns: ClassVar = ("order", "factors (nblocks x out x in)", "parameters", "FLOP a row")

    n_in: int
    n_out: int
    rows: int = 1
    dtype: str = "fp32"
    order: int = 0
    block: tuple[int, int] | None = None
    params: int = 0
    factors: tuple[Shape, ...] = ()

    def __post_init__(self) -> None:
        check_words(dtype=(self.dtype, tuple(DTYPES)))
        for word, size in (("in", self.n_in), ("out", self.n_out), ("rows", self.rows)):
            check_size(word, size)
        for word, sizes in (("order", (self.order,)), ("blocks", self.block or ()), ("params<", (self.params,))):
            for size in sizes:
                if size:
                    check_size(word, size)
        if self.factors:
            self._check_factors()

    def _check_factors(self) -> None:
        size = self.n_in
        for i, shape in enumerate(self.factors):
            for number in shape:
                check_size("factors", number)
            if shape[0] * shape[2] != size:
                raise ProblemError(
                    str(self), f"factor {i} takes {shape[0] * shape[2]} numbers where there are {size}", "see factors="
                )
            size = shape[0] * shape[1]
        if size != self.n_out:
            raise ProblemError(str(self), f"the factors give {size} numbers, not out={self.n_out}", "see factors=")
        inner_widths(self.factors)
        if (self.order not in (0, len(self.factors))) or self.block or self.params:
            raise ProblemError(str(self), "its factors are given", "leave out order=, blocks= and params<=")

    def __str__(self) -> str:
        words = [self.op, f"in={self.n_in}", f"out={self.n_out}", f"rows={self.rows}", self.dtype]
        words += [f"order={self.order}"] if self.order else []
        words += [f"blocks={self.block[0]}x{self.block[1]}"] if self.block else []
        words += [f"params<={self.params}"] if self.params else []
        words += ["factors=" + ",".join("x".join(map(str, shape)) for shape in self.factors)] if self.factors else []
        return " ".join(words)

    @property
    def alone(self) -> MonarchProblem:
        """In 16 bits the plan of few rows decides for all: results are rounded once, or between stages. In 32 and 64 it
        does not matter: every way of generated C++ gives the same bits."""
        return replace(self, rows=_FEW) if self.factors and DTYPES[self.dtype].bytes == 2 else self

    @property
    def remedy(self) -> str:
        if self.order or self.block or self.params:
            return "loosen order=, blocks= or params<=, or leave them out"
        return super(MonarchProblem, self).remedy

    @property
    def measured(self) -> bool:
        """Only where the factors are given: other orders are other matrices, with other numbers of parameters."""
        return bool(self.factors)

    @property
    def main(self) -> str:
        return f"in={self.n_in} out={self.n_out} rows={self.rows}"

    @property
    def least_bytes(self) -> int:
        """The rows and the result, and the factors where they are given."""
        return (self.rows * (self.n_in + self.n_out) + parameters(self.factors)) * DTYPES[self.dtype].bytes


def stage_problems(problem: MonarchProblem, factors: Sequence[Shape]) -> tuple[BlockDiagProblem, ...]:
    """The product with each factor, the first one first."""
    return tuple(
        BlockDiagProblem(n_in=c * into, n_out=c * out, blocks=c, rows=problem.rows, dtype=problem.dtype)
        for c, out, into in factors
    )


def turned(factors: Sequence[Shape]) -> tuple[Shape, ...]:
    """The shapes of the factors' transposes, each in its place: what gradients are multiplied by."""
    return tuple((count, into, out) for count, out, into in factors)


def parameters(factors: Sequence[Shape]) -> int:
    """Numbers of all factors."""
    return sum(prod(shape) for shape in factors)


def inner_widths(shapes: Sequence[Shape]) -> list[int]:
    """C_i of every stage, from the factors' shapes: how far apart a block's neighbours lie in the vector."""
    order = len(shapes)
    widths = [1] * order
    for i in range(order - 2, 0, -1):
        widths[i] = widths[i + 1] * shapes[i + 1][2]
    widths[0] = shapes[0][0] if order > 1 else 1
    for i, (shape, width) in enumerate(zip(shapes, widths, strict=True)):
        if shape[0] % width if width else shape[0]:
            raise ProblemError(
                f"a standard Monarch of order {order}: factors[{i}] of shape {shape}",
                f"its {shape[0]} blocks do not split into groups of {width}, the product of the later block_in",
                "make nblocks of each inner factor a multiple of that product, or use order 2",
            )
    return widths

"""A short depthwise convolution, or the three of a sequence mixer with their gate, as a problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError
from m2gen.planner.problem import LAYOUTS, Grammar, Nearness, Problem, check_size, check_words

_GRAMMAR = Grammar(
    op="shortconv",
    sizes={"n": "n", "h": "h", "b": "b", "width": "width", "out": "out"},
    words={
        **{dtype: {"dtype": dtype} for dtype in DTYPES},
        **{layout.lower(): {"layout": layout} for layout in LAYOUTS},
        "bias": {"bias": True},
        "gated": {"gated": True},
        "offset": {"offset": True},
        "masked": {"masked": True},
    },
    required=("n", "h"),
    example="shortconv n=4096 h=768 b=8 width=3 bf16 bias gated blh to=bhl",
    kinds="op, sizes, dtype and layouts",
    values={"to": ("to", lambda word: word.upper() if word.upper() in LAYOUTS else None, "to=bhl or to=blh")},
)
_NEARNESS = Nearness(
    equal=("layout", "to", "gated"),
    doublings={"n": 0.5, "h": 0.25, "b": 0.25, "width": 0.5},
    differences={"dtype": 0.25, "bias": 0.05, "offset": 0.05, "masked": 0.1, "out": 0.0},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortconvProblem(Problem):
    """y[b, h, i] = bias[h] + sum over the `width` taps w of weight[h, w] x[b, h, i + w - left] with x (b, h, n) and y
    (b, h, out), zeros outside; `left` is of no account. `out` is n where it is not given.

    `gated`: of three streams x (b, 3 h, n) = (x1, x2, v), s the convolution of each, z = s(x1) s(v) and g = s(x2);
    `offset`: something is added to every sample of a channel first; `masked`: x and s(v) are zero where a mask says no.
    `to` is the results' layout, that of x where it is not given.
    """

    grammar: ClassVar = _GRAMMAR
    nearness: ClassVar = _NEARNESS
    columns: ClassVar = ("way", "tile", "layout")

    n: int
    h: int
    b: int = 1
    width: int = 3
    out: int = 0
    dtype: str = "fp32"
    bias: bool = False
    gated: bool = False
    offset: bool = False
    masked: bool = False
    layout: str = "BHL"
    to: str = ""

    def __post_init__(self) -> None:
        check_words(dtype=(self.dtype, tuple(DTYPES)), layout=(self.layout, LAYOUTS), to=(self.to or "BHL", LAYOUTS))
        for word in ("n", "h", "b", "width"):
            check_size(word, getattr(self, word))
        if self.out in (0, self.n):  # equal problems are equal
            object.__setattr__(self, "out", 0)
        else:
            check_size("out", self.out)
        if self.to == self.layout:
            object.__setattr__(self, "to", "")
        if self.gated and self.out:
            raise ProblemError(str(self), f"out={self.out}: gated streams are as long as they were", "leave out out=")
        if not self.gated and (self.offset or self.masked):
            raise ProblemError(str(self), "offset and masked are of the gated form", "add the word gated")

    def __str__(self) -> str:
        words = [self.op, f"n={self.n}", f"h={self.h}", f"b={self.b}", f"width={self.width}"]
        words += [f"out={self.out}"] * bool(self.out) + [self.dtype] + ["bias"] * self.bias + ["gated"] * self.gated
        words += ["offset"] * self.offset + ["masked"] * self.masked
        words += ["blh"] * (self.layout == "BLH") + [f"to={self.to.lower()}"] * bool(self.to)
        return " ".join(words)

    @property
    def outputs(self) -> int:
        """Times of the result."""
        return self.out or self.n

    @property
    def layout_out(self) -> str:
        return self.to or self.layout

    @property
    def channels(self) -> int:
        """That are convolved."""
        return 3 * self.h if self.gated else self.h

    @property
    def numbers_in(self) -> int:
        return self.b * self.channels * self.n

    @property
    def numbers_out(self) -> int:
        """Of the results: two where they are gated."""
        return self.b * self.h * self.outputs * (2 if self.gated else 1)

    @property
    def of_gradients(self) -> tuple[Problem, ...]:
        """The convolutions of gradients, which lie in memory as they come; behind a gate in the arithmetic's dtype."""
        if self.gated:
            plain = replace(self, gated=False, bias=False, offset=False, masked=False)
            bare = replace(plain, to="", h=3 * self.h, dtype=DTYPES[self.dtype].compute)
            return (*(replace(self, to=layout) for layout in LAYOUTS), bare)
        bare = replace(self, bias=False, to="")
        back = replace(bare, n=self.outputs, out=self.n)
        return (bare, *(replace(back, layout=layout) for layout in LAYOUTS))

    @property
    def main(self) -> str:
        return f"n={self.n} h={self.h} b={self.b}"

    @property
    def least_bytes(self) -> int:
        weights = self.channels * (self.width + self.bias + self.offset)
        return (self.numbers_in + self.numbers_out + weights) * DTYPES[self.dtype].bytes

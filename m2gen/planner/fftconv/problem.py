"""A long convolution as a problem: sizes, dtype, mode, gates, skip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError
from m2gen.planner.problem import LAYOUTS, Grammar, Nearness, Problem, check_size, check_words

MODES = ("causal", "bidirectional", "same", "circular")

_GRAMMAR = Grammar(
    op="fftconv",
    sizes={name: name for name in "nkhb"},
    words={
        **{dtype: {"dtype": dtype} for dtype in DTYPES},
        **{mode: {"mode": mode} for mode in MODES},
        **{layout.lower(): {"layout": layout} for layout in LAYOUTS},
        "gated": {"pre_gate": True, "post_gate": True},
        "pre_gated": {"pre_gate": True},
        "post_gated": {"post_gate": True},
        "skip": {"skip": True},
        "add": {"add": True},
        "wide": {"wide": True},
    },
    required=("n",),
    example="fftconv n=8192 h=768 b=4 bf16 causal gated skip",
    kinds="op, sizes, dtype, mode, layout and gates",
)
_NEARNESS = Nearness(
    equal=("layout",),
    doublings={"n": 2.0, "h": 0.25, "b": 0.25},
    differences={
        "mode": 0.25,
        "k": 0.25,
        "dtype": 0.25,
        "pre_gate": 0.1,
        "post_gate": 0.1,
        "skip": 0.05,
        "add": 0.05,
        "wide": 0.1,
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FftConvProblem(Problem):
    """One convolution: y = post_gate * (conv(z, k) + skip * z) + add with z = u * pre_gate, u of shape (b, h, n).

    `k` is the filter's length; None means `n` (and a `k` equal to `n` is stored as None, so equal problems are equal).
    `wide`: matrix products of 16-bit tensors keep bfloat16's range.
    """

    grammar: ClassVar = _GRAMMAR
    nearness: ClassVar = _NEARNESS
    columns: ClassVar = ("order", "size", "radices", "blocks", "channels")

    n: int
    h: int = 1
    b: int = 1
    dtype: str = "fp32"
    mode: str = "causal"
    k: int | None = None
    pre_gate: bool = False
    post_gate: bool = False
    skip: bool = False
    add: bool = False
    layout: str = "BHL"
    wide: bool = False

    def __post_init__(self) -> None:
        if self.k == self.n:
            object.__setattr__(self, "k", None)
        check_words(dtype=(self.dtype, tuple(DTYPES)), mode=(self.mode, MODES), layout=(self.layout, LAYOUTS))
        for name in ("n", "h", "b"):
            check_size(name, getattr(self, name))
        if self.k is not None:
            check_size("k", self.k)
        self._check_filter()

    def _check_filter(self) -> None:
        if self.mode == "same" and self.taps_given % 2 == 0:
            raise ProblemError(
                str(self),
                f"mode same centres the filter, and k={self.taps_given} is even",
                "give an odd filter length such as k=17",
            )
        if self.mode == "circular" and self.taps_given > self.n:
            raise ProblemError(
                str(self), f"a circular filter has at most n={self.n} taps, not {self.k}", "fold or cut the filter"
            )

    def __str__(self) -> str:
        words = [self.op, f"n={self.n}"]
        words += [f"k={self.k}"] if self.k is not None else []
        words += [f"h={self.h}", f"b={self.b}", self.dtype, self.mode]
        words += [self._gate_word] if self.gates else []
        words += ["skip"] if self.skip else []
        words += ["add"] if self.add else []
        words += ["blh"] if self.layout == "BLH" else []
        words += ["wide"] if self.wide else []
        return " ".join(words)

    @property
    def _gate_word(self) -> str:
        return "gated" if self.gates == 2 else "pre_gated" if self.pre_gate else "post_gated"

    @property
    def gates(self) -> int:
        """How many gates there are, 0 to 2."""
        return int(self.pre_gate) + int(self.post_gate)

    @property
    def taps_given(self) -> int:
        """The filter's length, `k` or by default `n`."""
        return self.n if self.k is None else self.k

    @property
    def taps(self) -> tuple[int, int]:
        """The lags (lo, hi) that reach an output: y[i] = sum over d = -lo .. hi of w[d] z[i - d]."""
        n, k = self.n, self.taps_given
        if self.mode == "causal":
            return 0, min(k, n) - 1
        if self.mode == "bidirectional":  # k_rev[m] sits at lag -(m + 1)
            return min(k, n - 1), min(k, n) - 1
        if self.mode == "same":
            reach = min((k - 1) // 2, n - 1)
            return reach, reach
        return 0, k - 1

    @property
    def linear_size(self) -> int:
        """The least transform size whose wrap-around misses every wanted output.

        i - j lies in -(n-1) .. n-1, so a cyclic product of size N is exact where N >= n + max(lo, hi). A circular
        problem wraps by definition: either a transform of exactly `n`, or any size >= n + k - 1 (this figure) whose
        tail, beyond `n`, is then added onto the head.
        """
        return self.n + max(self.taps)

    @property
    def of_gradients(self) -> tuple[Problem, ...]:
        """That of what is added is the result's own."""
        return (replace(self, add=False),) if self.add else ()

    @property
    def alone(self) -> FftConvProblem:
        """One sequence of the batch."""
        return replace(self, b=1)

    @property
    def main(self) -> str:
        return f"n={self.n}"

    @property
    def least_bytes(self) -> int:
        """The sequence, its gates and what is added, and the result."""
        return self.b * self.h * self.n * DTYPES[self.dtype].bytes * (2 + self.gates + self.add)

"""What is asked for, as a value: sizes, dtype, mode, gates. One text grammar serves the command line, tests and tuning.

    fftconv n=8192 h=768 b=4 bf16 causal gated skip

The words may come in any order; `str` prints the canonical one, and `Problem.parse(str(p)) == p`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError

OPS = ("fftconv",)
MODES = ("causal", "bidirectional", "same", "circular")
LAYOUTS = ("BHL", "BLH")
LARGEST = 2**40  # no size may pass it: beyond any device, and factorising stays quick

_INTEGERS = ("n", "k", "h", "b")
_EXAMPLE = "fftconv n=8192 h=768 b=4 bf16 causal gated skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One convolution: y = post_gate * (conv(z, k) + skip * z) with z = u * pre_gate, u of shape (b, h, n).

    `k` is the filter's length; None means `n` (and a `k` equal to `n` is stored as None, so equal problems are equal).
    `wide`: matrix products of 16-bit tensors keep bfloat16's range.
    """

    n: int
    op: str = "fftconv"
    h: int = 1
    b: int = 1
    dtype: str = "fp32"
    mode: str = "causal"
    k: int | None = None
    pre_gate: bool = False
    post_gate: bool = False
    skip: bool = False
    layout: str = "BHL"
    wide: bool = False

    def __post_init__(self) -> None:
        if self.k == self.n:
            object.__setattr__(self, "k", None)
        for name, value, allowed in (
            ("op", self.op, OPS),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("mode", self.mode, MODES),
            ("layout", self.layout, LAYOUTS),
        ):
            if value not in allowed:
                raise ProblemError(f"{name} {value!r}", f"not a known {name}", f"use one of {', '.join(allowed)}")
        for name in _INTEGERS:
            _check_size(name, getattr(self, name))
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

    @classmethod
    def parse(cls, text: str) -> Problem:
        """The problem that `text` describes; memoised."""
        return _parse(text)

    def __str__(self) -> str:
        words = [self.op, f"n={self.n}"]
        words += [f"k={self.k}"] if self.k is not None else []
        words += [f"h={self.h}", f"b={self.b}", self.dtype, self.mode]
        words += [self._gate_word] if self.gates else []
        words += ["skip"] if self.skip else []
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


def parse_all(text: str) -> list[Problem]:
    """Problems in a row; each begins with the name of its op. Raises ProblemError."""
    found: list[list[str]] = []
    for word in text.split():
        if word in OPS or not found:
            found.append([])
        found[-1].append(word)
    return [Problem.parse(" ".join(one)) for one in found]


def _check_size(name: str, value: object) -> None:
    if name == "k" and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ProblemError(f"{name}={value}", f"{name} is a whole number from 1 to 2^40", f"write for example {name}=8")


@lru_cache(maxsize=4096)
def _parse(text: str) -> Problem:
    found: dict[str, object] = {}
    for word in text.split():
        for field, value in _read(word, text).items():
            if field in found:
                raise ProblemError(
                    f"problem {text!r}",
                    f"{word!r} says {field} a second time",
                    "keep one word for each of op, sizes, dtype, mode, layout and gates",
                )
            found[field] = value
    for field, example in (("op", f"start with one of {', '.join(OPS)}"), ("n", f"write for example {_EXAMPLE!r}")):
        if field not in found:
            raise ProblemError(f"problem {text!r}", f"{field} is missing", example)
    return Problem(**found)  # type: ignore[arg-type]


_WORDS: dict[str, dict[str, object]] = {
    **{op: {"op": op} for op in OPS},
    **{dtype: {"dtype": dtype} for dtype in DTYPES},
    **{mode: {"mode": mode} for mode in MODES},
    **{layout.lower(): {"layout": layout} for layout in LAYOUTS},
    "gated": {"pre_gate": True, "post_gate": True},
    "pre_gated": {"pre_gate": True},
    "post_gated": {"post_gate": True},
    "skip": {"skip": True},
    "wide": {"wide": True},
}


def _read(word: str, text: str) -> dict[str, object]:
    """The fields that one word sets."""
    name, equals, digits = word.partition("=")
    if equals and name in _INTEGERS:
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
            raise ProblemError(
                f"problem {text!r}", f"{word!r} is not a whole number", f"write for example {name}=8, digits only"
            )
        return {name: int(digits)}
    if word in _WORDS:
        return _WORDS[word]
    raise ProblemError(
        f"problem {text!r}",
        f"the word {word!r} is unknown",
        f"use the sizes {', '.join(f'{size}=' for size in _INTEGERS)} and the words {', '.join(_WORDS)} "
        f"(known ops: {', '.join(OPS)})",
    )

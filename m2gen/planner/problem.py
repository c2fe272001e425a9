"""What is asked for, as a value: a class an op, with sizes, a dtype and words. One text grammar serves the command
line, tests and tuning.

    fftconv n=8192 h=768 b=4 bf16 causal gated skip

The words may come in any order; `str` prints the canonical one, and `parse(str(p)) == p` (planner/problems.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from m2gen.errors import ProblemError

if TYPE_CHECKING:
    from typing_extensions import Self

LAYOUTS = ("BHL", "BLH")  # of sequences: times or channels are neighbours in memory
LARGEST = 2**40  # no size may pass it: beyond any device, and factorising stays quick


@dataclass(frozen=True)
class Grammar:
    """The words of an op's problems.

    op          the word that names it
    sizes       words of whole numbers, written n=8, each with its field
    words       what every other word sets: {"skip": {"skip": True}}
    required    the sizes that have no default
    example     a problem as text, for errors
    kinds       what the fields are, for an error about a word that says one of them again
    values      words of other values, written name=value, each with its field, how it is read (None: not to be
                understood) and an example
    """

    op: str
    sizes: Mapping[str, str]
    words: Mapping[str, Mapping[str, object]]
    required: tuple[str, ...]
    example: str
    kinds: str
    values: Mapping[str, tuple[str, Callable[[str], Any], str]] = field(default_factory=dict)

    def fields(self, words: list[str], text: str) -> dict[str, Any]:
        """What the words after the op's name say. Raises ProblemError."""
        found: dict[str, Any] = {}
        for word in words:
            for name, value in self._read(word, text).items():
                if name in found:
                    raise ProblemError(
                        f"problem {text!r}",
                        f"{word!r} says {self._word(name)} a second time",
                        f"keep one word for each of {self.kinds}",
                    )
                found[name] = value
        for word in self.required:
            if self.sizes[word] not in found:
                raise ProblemError(f"problem {text!r}", f"{word} is missing", f"write for example {self.example!r}")
        return found

    def knows(self, word: str) -> bool:
        """Whether a word may stand in a problem of this op."""
        name, equals, _ = word.partition("=")
        return word == self.op or word in self.words or (bool(equals) and name in (*self.sizes, *self.values))

    def _word(self, name: str) -> str:
        """How a field is called in a problem's text."""
        return next((word for word, of in self.sizes.items() if of == name), name)

    def _read(self, word: str, text: str) -> Mapping[str, object]:
        """The fields that one word sets."""
        name, equals, digits = word.partition("=")
        if equals and name in self.sizes:
            if not (digits.isascii() and digits.isdecimal() and len(digits) <= 20):
                raise ProblemError(
                    f"problem {text!r}", f"{word!r} is not a whole number", f"write for example {name}=8, digits only"
                )
            if not int(digits):
                do = f"give a whole number from 1 to 2^40, or leave {name}= out where it may be"
                raise ProblemError(f"problem {text!r}", f"{name}=0", do)
            return {self.sizes[name]: int(digits)}
        if word in self.words:
            return self.words[word]
        if equals and name in self.values:
            into, read, example = self.values[name]
            value = read(digits)
            if value is None:
                raise ProblemError(f"problem {text!r}", f"{word!r} is not understood", f"write for example {example}")
            return {into: value}
        raise ProblemError(
            f"problem {text!r}",
            f"the word {word!r} is unknown",
            f"use the sizes {', '.join(f'{size}=' for size in self.sizes)} and the words "
            f"{', '.join((*self.words, *(example.split(',')[0] for _, _, example in self.values.values())))} with "
            f"{self.op}",
        )


@dataclass(frozen=True)
class Nearness:
    """How far apart two problems of an op are, for wisdom: fields that must be equal, sizes by what a doubling counts,
    and what any other difference counts."""

    equal: tuple[str, ...]
    doublings: Mapping[str, float]
    differences: Mapping[str, float]


class Problem:
    """What every op's problem is; the fields are a frozen dataclass's, `dtype` among them."""

    __slots__ = ()
    grammar: ClassVar[Grammar]
    nearness: ClassVar[Nearness]
    columns: ClassVar[tuple[str, ...]]  # titles of `Body.row`
    dtype: str
    layout: str = "BHL"  # of its sequences, or "BLH"

    @property
    def op(self) -> str:
        return self.grammar.op

    @property
    def measured(self) -> bool:
        """Whether its plans can be; where not, every rigor is "estimate"."""
        return True

    @classmethod
    def of(cls, problem: Problem) -> Self:
        """`problem`, which is one of this op. Raises ProblemError."""
        if not isinstance(problem, cls):
            raise ProblemError(
                str(problem), f"not a problem of {cls.grammar.op}", f"give one such as {cls.grammar.example!r}"
            )
        return problem

    @property
    def alone(self) -> Problem:
        """The problem of one of those that are done together, whose plan decides how all of them are computed
        (`Body.arithmetic`); itself, where nothing depends on company."""
        return self

    @property
    def of_gradients(self) -> tuple[Problem, ...]:
        """Other problems that are posed where its gradients are wanted."""
        return ()

    @property
    def remedy(self) -> str:
        """What to do where no solver can do it."""
        return "use smaller sizes, or a device with more memory"

    @property
    def main(self) -> str:
        """The size that decides most, as text, for what is said of the nearest wisdom."""
        raise NotImplementedError

    @property
    def least_bytes(self) -> int:
        """Of memory that any way of doing it reads or writes: every tensor once."""
        raise NotImplementedError


def check_words(**found: tuple[str, tuple[str, ...]]) -> None:
    """Raises ProblemError for a field whose value is none of those allowed."""
    for name, (value, allowed) in found.items():
        if value not in allowed:
            raise ProblemError(f"{name} {value!r}", f"not a known {name}", f"use one of {', '.join(allowed)}")


def check_size(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
        raise ProblemError(f"{name}={value}", f"{name} is a whole number from 1 to 2^40", f"write for example {name}=8")

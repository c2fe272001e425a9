"""The ops that can be planned, and text to a problem of one of them."""

from __future__ import annotations

from functools import lru_cache

from m2gen.errors import ProblemError
from m2gen.planner.problem import Problem
from m2gen.planner.registry import OPS

PROBLEMS = tuple(op.problem for op in OPS.values())


@lru_cache(maxsize=4096)
def parse(text: str) -> Problem:
    """The problem that `text` describes. Raises ProblemError."""
    words = text.split()
    named = [word for word in words if word in OPS]
    if not named:
        strange = next((word for word in words if not any(one.grammar.knows(word) for one in PROBLEMS)), None)
        found = "op is missing" if strange is None else f"the word {strange!r} is unknown, and op is missing"
        examples = "; ".join(one.grammar.example for one in PROBLEMS)
        raise ProblemError(
            f"problem {text!r}", found, f"start with an op (known ops: {', '.join(OPS)}), for example {examples}"
        )
    first, *more = named
    if more:
        raise ProblemError(f"problem {text!r}", f"{more[0]!r} says op a second time", "keep one word for the op")
    words.remove(first)
    kind = OPS[first].problem
    return kind(**kind.grammar.fields(words, text))


def parse_all(text: str) -> list[Problem]:
    """Problems in a row; each begins with the name of its op. Raises ProblemError."""
    found: list[list[str]] = []
    for word in text.split():
        if word in OPS or not found:
            found.append([])
        found[-1].append(word)
    return [parse(" ".join(one)) for one in found]

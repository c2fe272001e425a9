"""What `m2gen compile` does with its options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from m2gen.ahead.build import build
from m2gen.ahead.record import Wanted, record
from m2gen.dtypes import DTYPES
from m2gen.errors import M2GenError, ProblemError
from m2gen.planner.problem import OPS, Problem
from m2gen.runtime.planning import limits_of


def run(
    problems: str,
    out: str,
    targets: Iterable[str],
    say: Callable[[str], None],
    *,
    corpus: bool = False,
    model: Iterable[str] = (),
    lengths: str = "",
    batches: str = "1",
    dtype: str | None = None,
    backward: bool = False,
) -> list[str]:
    """Compile for every target, telling of each kernel; what failed, as lines. Raises M2GenError."""
    asked, models = split(problems), list(model)
    sizes = {"lengths": _numbers("--lengths", lengths), "batches": _numbers("--batches", batches)}
    if dtype is not None and dtype not in DTYPES:
        raise ProblemError(f"--dtype {dtype}", "there is no such dtype", f"use one of {', '.join(DTYPES)}")
    if not (asked or corpus or models):
        raise M2GenError("m2gen compile", "nothing to compile is named", "give a PROBLEM, --corpus or --model")
    failed: list[str] = []
    for target in targets:
        limits = limits_of(target)
        wanted = _named(asked, corpus, backward)
        for name in models:
            record(wanted, name, limits, dtype=dtype, gradients=backward, **sizes)
        result = build(Path(out), target, wanted, lambda name, what: say(f"{name}: {what}"))
        failed += result.failed
        say(f"{result.folder}: {result.problems} problems, {result.new} kernels compiled, {result.there} were there")
    return failed


def split(text: str) -> list[Problem]:
    """The problems in a text, each of which starts with its op."""
    found: list[list[str]] = []
    for word in text.split():
        if word in OPS or not found:
            found.append([])
        found[-1].append(word)
    return [Problem.parse(" ".join(words)) for words in found]


def _named(problems: Iterable[Problem], corpus: bool, backward: bool) -> Wanted:
    """The problems given, and those of the corpus, gradients where a model is trained on them."""
    from m2gen.testing.corpus import corpus as entries

    wanted = Wanted()
    for problem in problems:
        wanted.add(problem, "command line", backward)
    for entry in entries() if corpus else ():
        wanted.add(entry.problem, entry.name, backward and "train" in entry.tags)
    return wanted


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        found = [0]
    if any(number < 1 for number in found):
        raise ProblemError(f"{option} {text}", "not numbers from 1 on", f"write for example {option} 512,2048")
    return found

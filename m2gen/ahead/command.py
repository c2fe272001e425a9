"""What `m2gen compile` does with its options."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from m2gen.ahead.build import build
from m2gen.ahead.models import Sizes, record
from m2gen.ahead.record import Wanted, counted
from m2gen.errors import M2GenError
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse_all
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
    asked, models = parse_all(problems), list(model)
    sizes = Sizes.of(lengths, batches, dtype)
    if not (asked or corpus or models):
        raise M2GenError("m2gen compile", "nothing to compile is named", "give a PROBLEM, --corpus or --model")
    failed: list[str] = []
    for target in targets:
        limits = limits_of(target)
        wanted = _named(asked, corpus, backward)
        for name in models:
            record(wanted, name, limits, sizes, gradients=backward)
        result = build(Path(out), target, wanted, lambda name, what: say(f"{name}: {what}"))
        failed += result.failed
        for line in result.without:
            say(line)
        done = f"{counted(result.new, 'kernel')} compiled, {result.there} were there"
        say(f"{result.folder}: {counted(result.problems, 'problem')}, {done}")
    return failed


def _named(problems: Iterable[Problem], corpus: bool, backward: bool) -> Wanted:
    """The problems given, and those of the corpus, gradients where a model is trained on them."""
    from m2gen.testing.corpus import corpus as entries

    wanted = Wanted()
    for problem in problems:
        wanted.add(problem, "command line", backward)
        for other in problem.of_gradients if backward else ():
            wanted.add(other, f"gradients of {problem}", True)
    for entry in entries() if corpus else ():
        trained = backward and "train" in entry.tags
        wanted.add(entry.problem, entry.name, trained)
        for other in entry.problem.of_gradients if trained else ():
            wanted.add(other, f"gradients of {entry.problem}", True)
    return wanted

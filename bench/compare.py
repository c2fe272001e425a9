"""`python -m bench compare OLD NEW`: what became slower between two runs, judged by intervals.

What is compared is not milliseconds but how many times as fast a contender is as what was measured beside it in the
same rounds, so that a machine that was busier that day does not count. A change is told where the two 95 % intervals of
the median (by resampling the rounds; the quartiles, for files that have no rounds) do not overlap.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.fit import median_interval
from bench.report import Run, read

THEIRS = (
    "torch",
    "scipy",
    "FFTW",
    "library",
    "dense",
    "conv1d",
    "elementwise",
    "copy",
    "flash",
)  # not ours to make faster


class Interval(NamedTuple):
    """How many times as fast as the one beside it, at least and at most."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.3g} to {self.high:.3g}"


def verdict(old: Interval, new: Interval) -> str:
    """ "slower", "faster" or "same": intervals that overlap are the same."""
    return "slower" if new.high < old.low else "faster" if new.low > old.high else "same"


def speeds(row: dict[str, Any]) -> dict[str, Interval]:
    """Every contender of ours, by what it is measured against."""
    found = {}
    for name, quartiles in row.get("ratio", {}).items():
        if row["group"] == "models" or "pass" in row:  # others by our own time
            ours = "M2-BERT" if row["group"] == "models" else "m2gen"
            found[f"{ours} beside {name}"] = _interval(row, name, ours, quartiles)
        elif not name.startswith(THEIRS):
            found[name] = _interval(row, next(iter(row["ms"])), name, quartiles)
    return found


def _interval(row: dict[str, Any], slow: str, fast: str, quartiles: dict[str, float]) -> Interval:
    times = row.get("times", {})
    if slow in times and fast in times:
        pairs = zip(times[slow], times[fast], strict=True)
        return Interval(*median_interval([a / b for a, b in pairs]))
    return Interval(quartiles["q1"], quartiles["q3"])


def compare(old: Run, new: Run) -> Iterator[tuple[str, str]]:
    """(verdict, line) for everything in both runs, and ("missing", line) for what is in the old one only."""
    then, now = (_by_key(run) for run in (old, new))
    for key, row in then.items():
        if key not in now:
            yield "missing", f"{key}: not in {new.file}"
            continue
        before, after = speeds(row), speeds(now[key])
        for name in before:
            if name not in after:
                yield "missing", f"{key}, {name}: not in {new.file}"
            else:
                change = verdict(before[name], after[name])
                yield change, f"{key}, {name}: {before[name]} then, {after[name]} now"


def _by_key(run: Run) -> dict[str, dict[str, Any]]:
    return {f"{row['group']} {row['problem']}": row for row in run.rows}


def main(old: str, new: str) -> int:
    """Print what changed; 1 if anything is slower, else 0."""
    runs = read(old), read(new)
    for fact in ("processor", "threads", "memory"):
        values = [run.provenance.get(fact) for run in runs]
        if values[0] != values[1]:
            print(f"these differ in {fact}, so their speeds need not agree: {values[0]}; {values[1]}", file=sys.stderr)
    found = list(compare(*runs))
    for change in ("slower", "faster", "missing"):
        for told, line in found:
            if told == change:
                print(f"{change}: {line}")
    counts = {change: sum(told == change for told, _ in found) for change in ("slower", "faster", "same", "missing")}
    print(", ".join(f"{count} {change}" for change, count in counts.items()))
    return 1 if counts["slower"] else 0

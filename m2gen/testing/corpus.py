"""The named problems of real models: `corpus.txt`, read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse


@dataclass(frozen=True)
class Entry:
    name: str
    problem: Problem
    tags: frozenset[str]


TAGS = frozenset({"train", "serve", "bench", "edge", "cpu"})


@lru_cache(maxsize=1)
def corpus() -> tuple[Entry, ...]:
    """Every named problem, in the file's order."""
    lines = files("m2gen.testing").joinpath("corpus.txt").read_text().splitlines()
    return tuple(_entry(line.split()) for line in lines if line.strip() and not line.startswith("#"))


def _entry(words: list[str]) -> Entry:
    name, *rest = words
    problem = parse(" ".join(word for word in rest if word not in TAGS))
    return Entry(name, problem, frozenset(word for word in rest if word in TAGS))

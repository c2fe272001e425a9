"""`m2gen demo`: a small M2-GPT trained in a few minutes on the interpreter's own standard library."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from m2gen.demo.data import load_corpus
from m2gen.demo.report import Report, run
from m2gen.demo.training import Settings
from m2gen.errors import M2GenError

__all__ = ["Report", "Settings", "main"]


def main(
    minutes: float = 2.5,
    seed: int = 0,
    *,
    root: Path | None = None,
    settings: Settings | None = None,
    console: Console | None = None,
) -> Report:
    """Train a small M2-GPT on the Python standard library for `minutes`, and print what came of it.

    Held-out bits per byte before and after training stand beside byte n-gram models of the same training text, scored
    on the same bytes; then a sample, and the time of its long convolution beside torch.fft. All that takes up to a
    minute more. `root` is another folder of Python files to train on. Runs on the CPU and writes no file. Training
    follows the clock, so figures differ a little from run to run. Raises M2GenError for no minutes.
    """
    if not 0 < minutes < math.inf:
        raise M2GenError(f"m2gen demo of {minutes} minutes", "it trains by the clock", "give a number above 0")
    return run(minutes, seed, load_corpus(root), settings or Settings(), console or Console())

"""Rows of results for models that were trained: what every comparison of them writes, and `bench report` reads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def row(task: str, unit: str, model: str, values: Sequence[float], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One model's held-out figures, in `unit`, of several seeds, and what its runs had in common."""
    return {
        "group": "trained",
        "problem": task,
        "model": model,
        "unit": unit,
        "values": list(values),
        "mean": statistics.mean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        **{name: runs[0][name] for name in ("parameters", "learning_rate", "steps")},
        "cpu_seconds": [run["cpu_seconds"] for run in runs],
    }

"""Interleaved timing and peak memory, with the machine and versions beside the figures."""

from __future__ import annotations

import ctypes
import datetime
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import m2gen


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every call in every round; a warm-up first, then the calls in random order each round."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median, quartiles and least of some milliseconds."""
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "q1": low, "q3": high, "min": min(times)}


def rounded(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Every round's milliseconds, with digits that mean something: what intervals are drawn from."""
    return {name: [float(f"{ms:.5g}") for ms in values] for name, values in times.items()}


def ratios(slow: list[float], fast: list[float]) -> dict[str, float]:
    """slow / fast, round by round: the median and the quartiles."""
    return summary([a / b for a, b in zip(slow, fast, strict=True)])


def peak_mib(call: Callable[[], Any]) -> float:
    """MiB by which the process's resident memory rises, at its highest, over what it was before the call (Linux).

    Freed memory that the allocator kept would hide in the start value, so it is given back to the system first.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    result = call()
    del result
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def provenance() -> dict[str, Any]:
    """What a reader needs to judge the figures."""
    return {
        "date": datetime.date.today().isoformat(),
        "m2gen": m2gen.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def write(out: str | None, found: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """The raw results as JSON, if a file is named."""
    if out:
        Path(out).write_text(json.dumps({"provenance": found, "results": results}, indent=1) + "\n")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    stripped = {key.strip(): value.strip() for key, value in fields.items()}
    return f"{stripped.get('model name')}, family {stripped.get('cpu family')} model {stripped.get('model')}"

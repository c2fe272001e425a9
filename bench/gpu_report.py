"""Tables of what was measured on GPUs, for the page that bench/report.py writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # head, lines


def convolutions(rows: Sequence[Row]) -> Table:
    """Medians and, in brackets, how many times the floor, the time of a copy of sequence, gates and result."""
    names = _names(rows, "ms")
    lines = []
    for row in rows:
        cells = [_over(row, name) if name in row["ms"] else "" for name in names]
        more = [f"{name} {value:.1e}" for name, value in row.get("error", {}).items()]
        more += [f"{name} left out: {why}" for name, why in row.get("left_out", {}).items()]
        lines.append([row["problem"], f"{row['floor_ms']:.3g}", *cells, "; ".join(more)])
    return ["problem", "floor ms", *(f"{name} ms (floors)" for name in names), "error against float64"], lines


def _over(row: Row, name: str) -> str:
    median = row["ms"][name]["median"]
    return f"{median:.3g} ({median / row['floor_ms']:.2f})"


def kernels(rows: Sequence[Row]) -> Table:
    """One launch beside what the plan's cost model said."""
    lines = []
    for row in rows:
        ms = row["ms"]["m2gen"]["median"]
        estimate = row["estimate_ms"]
        numbers = (f"{ms:.3g}", f"{estimate:.3g}", f"{ms / estimate:.2f}", f"{ms / row['floor_ms']:.2f}")
        lines.append([row["problem"], row["part"], row["kernel"], *numbers])
    return ["problem", "part", "kernel", "ms", "estimate ms", "times the estimate", "floors"], lines


def profile(rows: Sequence[Row]) -> Table:
    """Where a forward and backward pass spends its time."""
    lines = []
    for row in rows:
        for name, launches, us in row["kernels"]:
            shown = name.replace("|", "/")[:72]
            lines.append([row["problem"], f"`{shown}`", f"{launches}", f"{us:,.1f}"])
    return ["problem", "kernel", "launches", "us"], lines


def models(rows: Sequence[Row]) -> Table:
    """A line a length: tokens a millisecond, and in brackets the peak of memory in GiB."""
    names, cells = _names(rows, "tokens_per_ms"), dict[tuple[int, str], str]()
    for row in rows:
        for name, rate in row["tokens_per_ms"].items():
            mib = row.get("peak_mib", {}).get(name)
            cells[row["length"], name] = f"{rate:,.0f}" + ("" if mib is None else f" ({mib / 1024:.1f})")
    lines = [[f"{n}", *(cells.get((n, name), "") for name in names)] for n in sorted({n for n, _ in cells})]
    return ["L", *(f"{name}, tokens/ms" for name in names)], lines


def errors(rows: Sequence[Row]) -> Table:
    """Beside the same weights in float32."""
    names = _names(rows, "error")
    lines = [
        [f"{row['length']}", *(f"{row['error'][name]:.2e}" if name in row["error"] else "" for name in names)]
        for row in sorted(rows, key=lambda row: int(row["length"]))
    ]
    return ["L", *names], lines


def first_calls(rows: Sequence[Row]) -> Table:
    """Seconds, compiling among them."""
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    lines = [[row["problem"], *(f"{row['seconds'].get(name, float('nan')):.1f}" for name in names)] for row in rows]
    return ["problem, nothing compiled before", *(f"{name}, s" for name in names)], lines


def unmeasured(rows: Sequence[Row]) -> Table:
    return ["what", "why"], [[row["problem"], row["why"]] for row in rows]


def _names(rows: Sequence[Row], field: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.get(field, {})))


_CONVOLUTIONS = [f"gpu {what}{way}" for what in ("forward", "forward and backward") for way in ("", ", graph")]
_CONVOLUTIONS += ["gpu forward, first bench", "gpu backward, first bench"]
TABLES: dict[str, Callable[[Sequence[Row]], Table]] = {
    **dict.fromkeys(_CONVOLUTIONS, convolutions),
    "gpu kernels": kernels,
    "gpu profile": profile,
    "gpu first call": first_calls,
    "gpu models, forward": models,
    "gpu models, training": models,
    "gpu models, error": errors,
    "failed": unmeasured,
    "left out": unmeasured,
    "not compiled before": unmeasured,
}

"""`python -m bench report FILES...`: the raw results of benchmark runs as one Markdown page with pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import gpu_report
from bench.fit import Power, power
from m2gen.errors import M2GenError
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse

Row = dict[str, Any]
LEAST_MIB = 0.1  # memory below this is pages, not a law


@dataclass(frozen=True)
class Run:
    """One file of results: of a CPU, models, ... benchmark."""

    file: str
    provenance: Row
    rows: list[Row]

    def of(self, group: str) -> list[Row]:
        return [row for row in self.rows if row.get("group") == group]


def read(file: str | Path) -> Run:
    try:
        data = json.loads(Path(file).read_text())
        if not isinstance(data, dict) or not {"provenance", "results"} <= data.keys():
            raise ValueError("there is no provenance, or there are no results")
    except (OSError, ValueError) as error:
        raise M2GenError(f"results in {file}", str(error), "give a file that a benchmark wrote by --out") from error
    return Run(Path(file).name, data["provenance"], [_alike(row) for row in data["results"]])


def _alike(row: Row) -> Row:
    """Rows of the other benchmarks with the fields that those of the long convolution have."""
    if "product" in row:
        problem = f"{row['product']}, {row['rows']} rows"
        return row | {"group": row["what"], "problem": problem, "ratio": {"m2gen": row["ratio"]}}
    if "pass" in row:  # of the short convolution, all by m2gen's time
        return row | {"group": row["pass"], "ratio": row["speedup"]}
    if "speedup" in row:  # the oldest files have one group only, and one ratio
        return row | {"group": "causal", "ratio": {"m2gen": row["speedup"]}}
    return row


# -- what is read off the rows -----------------------------------------------------------------------------------------


def laws(rows: Sequence[Row]) -> dict[str, tuple[list[int], list[float], Power]]:
    """Of the growth group: microseconds of one row of N points, for every contender, and the power law through them."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        problem = parse(row["problem"])
        for name, ms in row["ms"].items():
            found.setdefault(name, []).append((problem.n, 1e3 * ms["median"] / problem.h))
    return {
        name: ([n for n, _ in points], [us for _, us in points], power(*zip(*points, strict=True)))
        for name, points in found.items()
        if len(points) > 2
    }


def memory(rows: Sequence[Row]) -> dict[str, tuple[list[int], list[float]]]:
    """Of the growth group: sizes, and MiB that a call takes beyond its inputs and output."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row in rows:
        for name, mib in row.get("peak_mib", {}).items():
            sizes, values = found.setdefault(name, ([], []))
            sizes.append(parse(row["problem"]).n)
            values.append(mib)
    return found


def memory_law(sizes: Sequence[int], values: Sequence[float]) -> Power | None:
    """Through the sizes whose memory is more than a few pages; None for fewer than three."""
    kept = [(n, mib) for n, mib in zip(sizes, values, strict=True) if mib >= LEAST_MIB]
    return power(*zip(*kept, strict=True)) if len(kept) > 2 else None


def formula(name: str, sizes: Sequence[int]) -> tuple[str, float]:
    """The cost's formula, and its exponent over these sizes: p N^((p+1)/p), or N log N for order log N."""
    if name.startswith("order "):
        order = int(name.split()[1])
        return f"N^{{{order + 1}/{order}}}", (order + 1) / order
    return r"N \log N", power(sizes, [n * math.log2(2 * n) for n in sizes]).exponent


def traffic(problem: Problem) -> tuple[float, float]:
    """(FLOP, bytes) of the least that a causal convolution can do: transforms of N = n points counted as 5 N log2 N,
    two for each row and one for each filter; input, output and filter moved once."""
    flop = problem.h * (2 * problem.b + 1) * 5 * problem.n * math.log2(problem.n)
    return flop, 4.0 * problem.h * problem.n * (2 * problem.b + 1)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Row, digits: int = 3) -> str:
    """A median with its quartiles."""
    return " ".join(
        [_short(values["median"], digits), f"({_short(values['q1'], digits)} to {_short(values['q3'], digits)})"]
    )


def _short(value: float, digits: int = 3) -> str:
    return f"{value:,.0f}" if value >= 10**digits else f"{value:.{digits}g}"


def timings(rows: Sequence[Row], peak: float | None = None) -> str:
    """Medians of every contender, how many times as fast the later ones are as the first, useful work as a share of the
    measured `peak` in GFLOP/s, and memory."""
    names = list(dict.fromkeys(name for row in rows for name in row["ms"]))
    lines = [
        [
            row["problem"],
            *(_short(row["ms"][name]["median"]) if name in row["ms"] else "" for name in names),
            gains(row),
        ]
        for row in rows
    ]
    more = ["GFLOP/s, share of peak", "peak MiB"] if any("gflops" in row for row in rows) else []
    lines = [[*line, *_work(row, peak)][: len(line) + len(more)] for line, row in zip(lines, rows, strict=True)]
    means = "as long as m2gen" if any("pass" in row for row in rows) else "as fast as the first"
    return table(["problem", *(f"{name} ms" for name in names), f"times {means} (quartiles)", *more], lines)


def _work(row: Row, peak: float | None) -> tuple[str, str]:
    """Useful work done in a second, and memory beyond inputs and output."""
    if "gflops" not in row:
        return "", ""
    share = f" ({row['gflops'] / peak:.0%})" if peak else ""
    memory = ", ".join(f"{name} {max(mib, 0):.1f}" for name, mib in row.get("peak_mib", {}).items())
    return f"{row['gflops']:.0f}{share}", memory


def gains(row: Row) -> str:
    return "; ".join(f"{name} {spread(ratio)}" for name, ratio in row["ratio"].items())


def growth(rows: Sequence[Row]) -> str:
    lines = []
    for name, (sizes, _, law) in laws(rows).items():
        text, exponent = formula(name, sizes)
        lines.append([name, f"{law.exponent:.3f} ± {law.error:.3f}", f"${text}$", f"{exponent:.3f}"])
    time = table(["time of one row", "fitted exponent", "formula", "its exponent there"], lines)
    lines = []
    for name, (sizes, values) in memory(rows).items():
        law = memory_law(sizes, values)
        fitted = "too little to fit" if law is None else f"{law.exponent:.3f} ± {law.error:.3f}"
        meant = "N: one row at a time" if name == "m2gen" else "constant: every row at once"
        lines.append([name, f"{max(min(values), 0):.1f} to {max(values):.1f}", fitted, meant])
    return "\n\n".join([time, table(["memory of a call", "MiB", "fitted exponent", "formula"], lines)])


def dispatch(rows: Sequence[Row]) -> str:
    lines = [[name, spread(us)] for row in rows for name, us in row["ms"].items()]
    return table(["a call on next to nothing", "us"], lines)


def errors(rows: Sequence[Row]) -> str:
    names = list(rows[0]["error"])
    lines = [[f"{parse(row['problem']).n}", *(f"{row['error'][name]:.2e}" for name in names)] for row in rows]
    return table(["N", *names], lines)


def models(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for name, ms in row["ms"].items():
            ratio = spread(row["ratio"][name]) if name in row["ratio"] else ""
            rate, mib = f"{row['tokens_per_s'][name]:,.0f}", f"{row['peak_mib'][name]:,.0f}"
            lines.append([row["problem"], name, spread(ms), rate, mib, ratio])
        lines += [
            [row["problem"], name, f"left out: {why}", "", "", ""] for name, why in row.get("left_out", {}).items()
        ]
    return table(["input", "model", "ms", "tokens/s", "peak MiB", "times M2-BERT's time"], lines)


def trained(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        spread_ = "" if row["deviation"] is None else f" ({row['deviation']:.3f})"
        found = f"{row['mean']:.3f}{spread_} {row['unit']}"
        seconds = sum(row["cpu_seconds"]) / len(row["cpu_seconds"])
        lines.append(
            [row["problem"], row["model"], f"{row['parameters']:,}", found, str(len(row["values"])), f"{seconds:.0f}"]
        )
    return table(["task", "model", "parameters", "held out, mean (deviation)", "seeds", "CPU s a run"], lines)


def generation(rows: Sequence[Row]) -> str:
    names = ("mean", "median", "worst", "whole_pass")
    lines = [[row["problem"], *(_short(row["token_ms"][name]) for name in names)] for row in rows]
    return table(["tokens", "ms a token, mean", "median", "worst", "whole pass, ms"], lines)


def _of_gpu(made: Callable[[Sequence[Row]], gpu_report.Table], rows: Sequence[Row]) -> str:
    return table(*made(rows))


TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "growth": growth,
    "dispatch": dispatch,
    "error": errors,
    "models": models,
    "trained": trained,
    "generation": generation,
    **{group: partial(_of_gpu, made) for group, made in gpu_report.TABLES.items()},
}


def page(runs: Sequence[Run], pictures: Sequence[tuple[str, str]]) -> str:
    """The whole Markdown text; `pictures` are (file, caption)."""
    parts = ["# Measured", "Written by `python -m bench report`. Medians; quartiles in brackets."]
    parts += [f"![{Path(file).stem}]({file})\n\n{caption}" for file, caption in pictures]
    for run in runs:
        facts = ", ".join(
            f"{key} {value if isinstance(value, str) else _short(value)}" for key, value in run.provenance.items()
        )
        parts += [f"## {run.file}", facts]
        for group in dict.fromkeys(row["group"] for row in run.rows if "group" in row):
            rows = run.of(group)
            text = TABLES[group](rows) if group in TABLES else timings(rows, run.provenance.get("fma_peak_gflops"))
            parts += [f"### {group}", text]
    return "\n\n".join(parts) + "\n"

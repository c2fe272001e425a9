"""The pictures of a report: speed-up, roofline, error and cost over length, models, and what a call costs; those of
GPUs are in bench/gpu_pictures.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from bench import drawing, gpu_pictures, report
from bench.drawing import FAINT, INK, OTHERS, STYLE
from bench.report import Row, Run
from m2gen.planner.problems import parse


def draw(runs: Sequence[Run], folder: Path) -> list[tuple[str, str]]:
    """Every picture that the runs have rows for, as (file, caption); of several such runs the longest is shown."""
    found = []
    with plt.rc_context(STYLE):
        for name, groups, picture in PICTURES:
            run = max((run for run in runs if _has(run, name, groups)), key=lambda run: len(run.rows), default=None)
            if run is not None:
                figure, caption = picture(run)
                figure.savefig(folder / f"{name}.png", bbox_inches="tight")
                plt.close(figure)
                found.append((f"{name}.png", caption))
    return found


def _has(run: Run, name: str, groups: Sequence[str]) -> bool:
    """Whether the run has what the picture shows; a roofline is made of measured rates."""
    return any(run.of(group) for group in groups) and (name != "roofline" or "copy_gbs" in run.provenance)


def speedup(run: Run) -> tuple[Figure, str]:
    """How many times as fast as torch.fft, over L, with quartiles."""
    figure, axes = plt.subplots(figsize=(7.5, 4.4))
    series: dict[str, list[tuple[int, Row]]] = {}
    for group in ("causal", "bidirectional"):
        for row in run.of(group):
            problem = parse(row["problem"])
            series.setdefault(f"{group}, batch {problem.b}", []).append((problem.n, row["ratio"]["m2gen"]))
    for colour, (name, points) in zip(OTHERS, series.items(), strict=False):
        sizes, middle = [n for n, _ in points], [ratio["median"] for _, ratio in points]
        low, high = ([ratio[end] for _, ratio in points] for end in ("q1", "q3"))
        axes.fill_between(sizes, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.plot(sizes, middle, "o-", color=colour, label=name, markersize=5)
    axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("torch.fft", (0.995, 1), (0, 4), ("axes fraction", "data"), "offset points", ha="right", fontsize=9)
    drawing.sizes(axes, sorted({n for points in series.values() for n, _ in points}), "sequence length L")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("times as fast as torch.fft")
    axes.set_title("Long convolutions, float32, 768 channels")
    axes.legend(loc="upper left")
    return (
        figure,
        f"Speed-up over torch.fft on whole tensors; bands are quartiles of the rounds. {drawing.machine(run)}.",
    )


def roofline(run: Run) -> tuple[Figure, str]:
    """Useful FLOP/s over FLOP per byte, under the measured peak and the measured bandwidth."""
    peak, copy = run.provenance["fma_peak_gflops"], run.provenance["copy_gbs"]
    figure, axes = plt.subplots(figsize=(7.5, 4.6))
    ends = [peak / copy / 8, peak / copy, peak / copy * 8]
    axes.plot(ends, [min(peak, copy * x) for x in ends], color=INK, linewidth=2.2)
    axes.annotate(
        f"{peak:.0f} GFLOP/s of multiply-adds", (ends[2], peak), (0, 5), textcoords="offset points", ha="right"
    )
    low = ends[0] * 1.3
    axes.annotate(f"{copy:.0f} GB/s of copying", (low, copy * low), (12, 0), textcoords="offset points", va="center")
    rows = [row for row in run.of("causal") if parse(row["problem"]).b == 1] or run.of("causal")
    for name in ("torch.fft", "m2gen"):
        points = []
        for row in rows:
            flop, moved = report.traffic(parse(row["problem"]))
            points.append((flop / moved, flop / row["ms"][name]["median"] / 1e6, parse(row["problem"]).n))
        axes.plot([x for x, _, _ in points], [y for _, y, _ in points], "o-", color=drawing.colour(name), label=name)
        for (x, y, n), left in ((points[0], True), (points[-1], False)):
            shift, side = (-8, "right") if left else (8, "left")
            axes.annotate(
                f"L = {drawing.size(n)}", (x, y), (shift, -4), textcoords="offset points", ha=side, fontsize=9
            )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    drawing.plain(axes)
    axes.set_xlabel("FLOP for each byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("Roofline of one core")
    axes.legend(loc="upper left")
    return figure, (
        "Useful work, 5 N log2 N a transform, beside the measured rates of multiply-adds and of copying in memory; "
        f"bytes are those of input, filter and output. {drawing.machine(run)}."
    )


def error(run: Run) -> tuple[Figure, str]:
    """Relative error against float64 over N."""
    rows = run.of("error")
    sizes = [parse(row["problem"]).n for row in rows]
    figure, axes = plt.subplots(figsize=(7.5, 4.4))
    for name in rows[0]["error"]:
        values = [row["error"][name] for row in rows]
        axes.plot(sizes, values, "o-", color=drawing.colour(name), markersize=4)
        axes.annotate(
            name if " " in name else f"{name} fp32",
            (sizes[0], values[0]),
            (0, -15 if name == "torch.fft" else 8),
            textcoords="offset points",
            color=drawing.colour(name),
            weight="bold",
            fontsize=9.5,
        )
    drawing.sizes(axes, sizes, "sequence length N")
    axes.set_yscale("log")
    axes.set_ylim(5e-8, 1e-2)
    axes.set_ylabel("relative error against float64")
    axes.set_title("Error of a causal convolution")
    return figure, (
        "Root-mean-square error against float64, relative to the result; of 16-bit tensors, whose results are rounded "
        f"to 16 bits, against float64 on the same inputs. {drawing.machine(run)}."
    )


def growth(run: Run) -> tuple[Figure, str]:
    """Time and memory over N on logarithmic axes, with the fitted power laws."""
    rows = run.of("growth")
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(3, 2))
    for name, (sizes, values, law) in report.laws(rows).items():
        text, exponent = report.formula(name, sizes)
        label = f"{name}: $N^{{{law.exponent:.2f}}}$, formula ${text}$: {exponent:.2f}"
        left.plot(sizes, values, "o", color=drawing.colour(name), markersize=5, label=label)
        left.plot(sizes, [law(n) for n in sizes], "-", color=drawing.colour(name), linewidth=1.2, alpha=0.8)
    left.set_yscale("log")
    left.set_ylabel("microseconds for one row")
    left.set_title("Time")
    left.legend(loc="upper left", fontsize=9.5)
    for name, (sizes, values) in report.memory(rows).items():
        law = report.memory_law(sizes, values)
        fitted = "" if law is None else f": $N^{{{law.exponent:.2f}}}$"
        right.plot(
            sizes,
            [max(value, report.LEAST_MIB / 2) for value in values],
            "o",
            color=drawing.colour(name),
            label=name + fitted,
        )
        if law is not None:
            kept = [n for n, value in zip(sizes, values, strict=True) if value >= report.LEAST_MIB]
            right.plot(kept, [law(n) for n in kept], "-", color=drawing.colour(name), linewidth=1.2, alpha=0.8)
    drawing.plain(right)
    right.axhspan(report.LEAST_MIB / 3, report.LEAST_MIB, color=FAINT, alpha=0.5, linewidth=0)
    right.annotate(
        "a few pages",
        (0.98, report.LEAST_MIB / 1.7),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="center",
        fontsize=9,
    )
    right.set_ylim(bottom=report.LEAST_MIB / 3)
    right.set_ylabel("MiB beyond inputs and output")
    right.set_title("Memory of a call")
    right.legend(loc="center left")
    for axes in (left, right):
        drawing.sizes(axes, [parse(row["problem"]).n for row in rows], "points N of a row")
    figure.tight_layout(w_pad=3)
    return figure, (
        "Cost of a causal convolution over N, the same number of points in all at every N; lines are power laws fitted "
        "by least squares. Orders 2 to 4 are Monarchs by matrix products; the generated kernel's order is log N. "
        f"{drawing.machine(run)}."
    )


def models(run: Run) -> tuple[Figure, str]:
    """Tokens a second, and memory, over L, in both dtypes."""
    rows = run.of("models")
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, grid = plt.subplots(
        2, len(dtypes), figsize=(5.8 * len(dtypes), 7.4), squeeze=False, sharex=True, sharey="row"
    )
    for column, dtype in enumerate(dtypes):
        own = [row for row in rows if row["dtype"] == dtype]
        for axes, field in zip(grid[:, column], ("tokens_per_s", "peak_mib"), strict=True):
            for name in dict.fromkeys(name for row in own for name in row[field]):
                points = [(row["length"], row[field][name]) for row in own if name in row[field]]
                axes.plot(*zip(*points, strict=True), "o-", color=drawing.colour(name), label=name, markersize=5)
            drawing.plain(axes)
        grid[0, column].set_title({"fp32": "float32", "bf16": "bfloat16"}[dtype])
        drawing.sizes(grid[1, column], sorted({row["length"] for row in rows}), "tokens in the sequence")
    grid[0, 0].set_ylabel("tokens a second")
    grid[1, 0].set_ylabel("MiB beyond the model")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 1, 0.955))
    figure.legend(handles, labels, loc="upper center", ncols=3)
    return figure, f"M2-BERT-80M beside BERT-base, random weights, one sequence, evaluation. {drawing.machine(run)}."


def dispatch(run: Run) -> tuple[Figure, str]:
    """Microseconds of a call that computes next to nothing."""
    ms = run.of("dispatch")[0]["ms"]
    names = list(ms)[::-1]
    figure, axes = plt.subplots(figsize=(7.5, 3.6))
    colours = [drawing.colour("m2gen") if name.startswith("m2gen") else drawing.colour("torch.fft") for name in names]
    bars = axes.barh(names, [ms[name]["median"] for name in names], color=colours, height=0.65)
    axes.bar_label(bars, [f"{ms[name]['median']:.1f}" for name in names], padding=4, fontsize=9.5)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    axes.set_xlabel("microseconds for a call")
    axes.set_title("Calls on next to nothing")
    return figure, f"What a call costs by itself. {drawing.machine(run)}."


Picture = Callable[[Run], tuple[Figure, str]]
PICTURES: tuple[tuple[str, tuple[str, ...], Picture], ...] = (
    ("speedup", ("causal",), speedup),
    ("models", ("models",), models),
    ("growth", ("growth",), growth),
    ("roofline", ("causal",), roofline),
    ("error", ("error",), error),
    ("dispatch", ("dispatch",), dispatch),
    ("gpu-speed", gpu_pictures.FORWARD, gpu_pictures.speed),
    ("gpu-kernels", ("gpu kernels",), gpu_pictures.kernels),
    ("gpu-models", tuple(gpu_pictures.MODELS), gpu_pictures.models),
)


def main(files: Sequence[str], out: str | None) -> None:
    """Write the page and its pictures."""
    folder = Path(out or "bench/results")
    folder.mkdir(parents=True, exist_ok=True)
    runs = [report.read(file) for file in files]
    pictures = draw(runs, folder)
    (folder / "report.md").write_text(report.page(runs, pictures))
    print(*(folder / name for name in ("report.md", *(file for file, _ in pictures))), sep="\n")

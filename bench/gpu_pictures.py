"""The pictures of a report that are of GPUs: the convolution over its floor, kernels beside estimates, models."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from bench import drawing
from bench.drawing import INK, OTHERS
from bench.report import Row, Run
from m2gen.planner.problems import parse

FORWARD = ("gpu forward, graph", "gpu forward")
MODELS = {"gpu models, forward": "Forward", "gpu models, training": "Forward and backward"}
_PARTS = {"fwd": ("forward", OTHERS[0], "o"), "dk": ("filter's gradient", OTHERS[1], "^")}
_CALLED = {"m2gen": "m2gen, spectrum in the call", "m2gen kept": "m2gen, spectrum kept"}
_ORDER = ("torch.fft", "flash-fft-conv", "m2gen", "m2gen kept")


def speed(run: Run) -> tuple[Figure, str]:
    """The forward pass over L as times its floor, a panel for each kind of call measured at several lengths."""
    rows = next(rows for group in FORWARD if (rows := run.of(group)))
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    panels = {kind: found for kind, found in kinds.items() if len(found) > 2} or kinds
    figure, grid = plt.subplots(1, len(panels), figsize=(5.2 * len(panels), 4.6), squeeze=False, sharey=True)
    for axes, (kind, found) in zip(grid[0], panels.items(), strict=True):
        found.sort(key=lambda row: parse(row["problem"]).n)
        for name in _ORDER:
            points = [
                (parse(r["problem"]).n, r["ms"][name]["median"] / r["floor_ms"]) for r in found if name in r["ms"]
            ]
            if points:
                label = _CALLED.get(name, name)
                axes.plot(*zip(*points, strict=True), "o-", color=drawing.colour(name), label=label, markersize=5)
        axes.axhline(1, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate("copy", (0.995, 1), (0, 4), ("axes fraction", "data"), "offset points", ha="right", fontsize=9)
        drawing.sizes(axes, [parse(row["problem"]).n for row in found], "sequence length L")
        axes.set_title(kind)
    grid[0, 0].set_ylim(bottom=0)
    grid[0, 0].set_ylabel("times the copy's time")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    figure.legend(handles, labels, loc="upper center", ncols=4)
    return figure, (
        "Forward pass of a long convolution with 768 channels beside the floor, the time of copying sequence, gates "
        f"and result; lower is better. {drawing.machine(run)}."
    )


def _kind(row: Row) -> str:
    """A problem without its sizes: "circular fp16 gated"."""
    problem = parse(row["problem"])
    words = [problem.mode, problem.dtype] + ["gated"] * (problem.gates == 2) + ["skip"] * problem.skip
    return " ".join(words)


def kernels(run: Run) -> tuple[Figure, str]:
    """Each kernel's time over its estimate's."""
    figure, axes = plt.subplots(figsize=(6.4, 5.6))
    rows = run.of("gpu kernels")
    handles = []
    for part, (text, colour, mark) in _PARTS.items():
        for turned in (False, True):
            own = [r for r in rows if r["part"] == part and turned == (parse(r["problem"]).layout == "BLH")]
            if not own:
                continue
            face = "none" if turned else colour
            points = [(row["estimate_ms"], row["ms"]["m2gen"]["median"]) for row in own]
            axes.plot(*zip(*points, strict=True), mark, color=colour, markerfacecolor=face, markersize=6, alpha=0.85)
            label = f"{text}, channels last" if turned else text
            handles.append(Line2D([], [], color=colour, marker=mark, markerfacecolor=face, linestyle="", label=label))
    both = [value for row in rows for value in (row["estimate_ms"], row["ms"]["m2gen"]["median"])]
    ends = (min(both) * 0.8, max(both) * 1.25)
    for factor, dash in ((1, "-"), (2, (0, (4, 3)))):
        axes.plot(ends, [factor * end for end in ends], color=INK, linewidth=1, linestyle=dash)
        text = "as estimated" if factor == 1 else "twice that"
        axes.annotate(text, (ends[1], factor * ends[1]), (4, -3), textcoords="offset points", fontsize=9)
    drawing.plain(axes)
    drawing.plain(axes, across=True)
    axes.set_xlabel("estimated ms")
    axes.set_ylabel("measured ms")
    axes.set_title("Kernels beside their estimates")
    axes.legend(handles=handles, loc="upper left")
    return figure, (
        "One launch of each kernel, the filter's spectrum kept, beside what the cost model of that day said. "
        f"{drawing.machine(run)}."
    )


def models(run: Run) -> tuple[Figure, str]:
    """Tokens a millisecond over L of encoders of text, a panel for what was done; the other models are in the table."""
    groups = [group for group in MODELS if run.of(group)]
    figure, grid = plt.subplots(1, len(groups), figsize=(7.2 * len(groups), 4.8), squeeze=False)
    for axes, group in zip(grid[0], groups, strict=True):
        rows = run.of(group)
        names = list(dict.fromkeys(name for row in rows for name in row["tokens_per_ms"]))
        for name in [name for name in names if _look(name)[0] in _ENCODERS] or names:
            points = sorted((r["length"], r["tokens_per_ms"][name]) for r in rows if name in r["tokens_per_ms"])
            base, dash = _look(name)
            colour = drawing.colour(base)
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, linestyle=dash, label=name, markersize=4.5)
        drawing.sizes(axes, sorted({row["length"] for row in rows}), "tokens in a sequence")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.set_title(MODELS[group])
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9.5, handlelength=3.6)
    grid[0, 0].set_ylabel("tokens a millisecond")
    figure.tight_layout()
    prototype = any("by hand" in name for row in run.of(groups[0]) for name in row["tokens_per_ms"])
    more = " What is patched by hand is a prototype, not in m2gen as it was then." if prototype else ""
    return figure, f"Models in bfloat16, random weights, 32,768 tokens a call.{more} {drawing.machine(run)}."


_ENCODERS = ("M2-BERT", "BERT, SDPA", "BERT, eager", "ModernBERT, flash-attention 2")
_DASHES = {", compiled": "--", ", CUDA graph": "-.", " patched by hand": ":"}


def _look(name: str) -> tuple[str, str]:
    """The model, and a dash for how it is called."""
    return next(((name.removesuffix(way), dash) for way, dash in _DASHES.items() if name.endswith(way)), (name, "-"))

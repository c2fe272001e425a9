"""How a report's pictures look: colours, axes of sizes, and the machine under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.report import Run

INK, PAPER, FAINT = "#22303c", "#ffffff", "#d9e0e6"
COLOURS = {
    "m2gen": "#0b7285",
    "M2-BERT": "#0b7285",
    "m2gen bf16": "#e8890c",
    "m2gen fp16": "#7b4fb5",
    "m2gen kept": "#5c940d",
    "flash-fft-conv": "#e8890c",
    "torch.fft": "#8795a1",
    "BERT, fused attention": "#8795a1",
    "BERT, plain attention": "#c9a27a",
    "BERT, SDPA": "#8795a1",
    "BERT, eager": "#c9a27a",
    "ModernBERT, flash-attention 2": "#7b4fb5",
    "order 2": "#c92a2a",
    "order 3": "#e8890c",
    "order 4": "#5c940d",
}
OTHERS = ("#0b7285", "#e8890c", "#7b4fb5", "#5c940d")
STYLE: dict[str, Any] = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "figure.facecolor": PAPER,
    "font.size": 10.5,
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 2.0,
    "legend.frameon": False,
}


def colour(name: str) -> str:
    return COLOURS.get(name, INK)


def size(n: float, _: Any = None) -> str:
    """2048 as 2K."""
    for unit, text in ((2**20, "M"), (2**10, "K")):
        if n >= unit:
            return f"{n / unit:g}{text}"
    return f"{n:g}"


def sizes(axes: Axes, sizes: Sequence[int], label: str) -> None:
    """A logarithmic axis of sizes, marked at those that were measured, every second where they are many."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes)[:: 1 if len(sizes) < 9 else 2])
    axes.xaxis.set_major_formatter(FuncFormatter(size))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)


def plain(axes: Axes, across: bool = False) -> None:
    """Numbers as they are written, not powers of ten, on a logarithmic y axis, or with `across` x axis."""
    (axes.set_xscale if across else axes.set_yscale)("log")
    low, high = axes.get_xlim() if across else axes.get_ylim()
    axis = axes.xaxis if across else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def machine(run: Run) -> str:
    told = run.provenance
    if "gpu" in told:
        return f"{told['gpu']}, {told['date']}"
    return f"{told['processor']}, {told['threads']} thread{'s' * (told['threads'] > 1)}, {told['date']}"

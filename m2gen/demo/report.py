"""What the demo prints."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from m2gen.demo.data import Corpus, held_out_windows
from m2gen.demo.ngram import SMOOTHING, fit_ngrams
from m2gen.demo.timing import Timing, time_long_convolution
from m2gen.demo.training import Progress as TrainingState
from m2gen.demo.training import Settings, bits_per_byte, train
from m2gen.models.m2gpt import M2GPT
from m2gen.planner import search
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.runtime.build.limits import live

PROMPT = b"def "
_ORDERS = {1: "unigram", 2: "bigram", 3: "trigram"}


@dataclass(frozen=True, slots=True)
class Report:
    """The demo's figures: held-out bits per byte by model, the sample, the timings, and the plan as an s-expression."""

    bits: dict[str, float]
    sample: bytes
    timings: tuple[Timing, Timing]
    plan: str
    steps: int
    seconds: float


def run(minutes: float, seed: int, corpus: Corpus, settings: Settings, console: Console) -> Report:
    """Train, compare, sample and time; prints as it goes."""
    begin = time.perf_counter()
    torch.manual_seed(seed)
    model = settings.model()
    windows, starts = held_out_windows(
        corpus.held_out, length=settings.context, count=settings.evaluated // settings.context
    )
    _introduce(console, corpus, model, settings, windows.shape[0])
    chosen = _plan(settings)
    _plain(console, f"plan     {chosen}", f"kernel   {_kernel(chosen)}")
    with console.status("counting bytes for the n-gram models"):
        ngrams = fit_ngrams(corpus.train)
        positions = starts[:, None] + torch.arange(1, settings.context + 1)
        bits = {_ORDERS[n]: ngrams[n].bits(corpus.held_out, positions) for n in _ORDERS}
    bits["before"] = bits_per_byte(model, windows)
    state = _train(console, model, corpus, settings, minutes, seed)
    bits["after"] = bits_per_byte(model, windows)
    console.print(_table(bits, state))
    console.print(f"n-gram models: {SMOOTHING}.", style="dim", highlight=False)
    sample = _sample(console, model, settings, seed)
    timings = _time(console, settings)
    return Report(bits, sample, timings, str(chosen), state.steps, time.perf_counter() - begin)


def _introduce(console: Console, corpus: Corpus, model: M2GPT, settings: Settings, windows: int) -> None:
    parameters = sum(p.numel() for p in model.parameters())
    _plain(
        console,
        f"text     {corpus.source}: {corpus.train.numel() / 1e6:.1f} MB of Python in {corpus.train_files} files",
        f"held out {corpus.held_out_files} other files; bits per byte are over {windows * settings.context:,} of their"
        f" {corpus.held_out.numel():,} bytes, the same for every model",
        f"model    M2-GPT, {settings.n_layers} layers of width {settings.d_model}, {parameters:,} parameters,"
        f" context {settings.context} bytes; no attention, no MLP",
        f"machine  {torch.get_num_threads()} threads",
    )


def _plan(settings: Settings) -> Plan:
    problem = f"fftconv n={settings.context} h={settings.d_model} b={settings.batch} fp32 causal gated skip blh"
    return search.plan(parse(problem), live(torch.device("cpu")))


def _kernel(chosen: Plan) -> str:
    """What the long convolutions of the training run on."""
    if isinstance(chosen.body, NativeConv):
        return f"generated C++ for the long convolutions, forward and backward: {chosen.body.spec.name}"
    return f"none generated for the long convolutions: solver {chosen.solver} (m2gen doctor tells why)"


def _train(
    console: Console, model: M2GPT, corpus: Corpus, settings: Settings, minutes: float, seed: int
) -> TrainingState:
    columns = (
        TextColumn("training"),
        BarColumn(),
        TextColumn("{task.fields[state]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0, state="")

        def report(state: TrainingState) -> None:
            shown = f"{state.steps} steps, {state.bytes_seen / 1e6:.2f} MB, {state.bits:.2f} bits per byte"
            bar.update(task, completed=min(state.share, 1.0), state=shown)

        return train(model, corpus.train, seconds=minutes * 60, settings=settings, seed=seed, report=report)


def _table(bits: dict[str, float], state: TrainingState) -> Table:
    table = Table(title="held-out bits per byte")
    table.add_column("model")
    table.add_column("bits", justify="right")
    table.add_row("uniform", "8.000")
    for order in _ORDERS.values():
        table.add_row(order, f"{bits[order]:.3f}")
    table.add_section()
    table.add_row("M2-GPT before training", f"{bits['before']:.3f}")
    after = f"M2-GPT after {state.steps} steps, {state.bytes_seen / 1e6:.2f} MB read"
    table.add_row(after, f"{bits['after']:.3f}", style="bold")
    return table


def _sample(console: Console, model: M2GPT, settings: Settings, seed: int) -> bytes:
    prompt = torch.tensor([list(PROMPT)])
    generator = torch.Generator().manual_seed(seed)
    with console.status("sampling"):
        ids = model.generate(prompt, settings.sampled, temperature=0.7, top_k=40, generator=generator)
    sample = bytes(ids[0].tolist())
    text = sample.decode("utf-8", errors="replace").replace("\0", "\n--- end of file ---\n")
    console.print(Panel(Text(text), title=f"{settings.sampled} bytes after {PROMPT.decode()!r}, temperature 0.7"))
    return sample


def _time(console: Console, settings: Settings) -> tuple[Timing, Timing]:
    shape = (settings.batch, settings.d_model, settings.context)
    with console.status("timing"):
        timings = time_long_convolution(*shape)
    _plain(console, f"long convolution {shape}, gates and skip, float32, forward; median (range) of 9 rounds:")
    for timing in timings:
        _plain(console, f"  {timing.name:9} {timing}")
    return timings


def _plain(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

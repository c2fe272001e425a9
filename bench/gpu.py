"""The long convolution on a GPU, `python -m bench gpu`, and models of long sequences, `python -m bench gpu --models`.

For whoever has a GPU for fifteen minutes, in the repository's folder, with PyTorch, Triton, transformers and pytest:

    export PYTHONPATH=$PWD
    timeout 600 python -m pytest -m gpu -n 14 --maxfail 20    # right before fast
    python -m bench gpu --minutes 5 --note "COMMIT" --out gpu.json
    python -m bench gpu --models --minutes 5 --note "COMMIT" --out gpu-models.json
    cp gpu.json bench/results/DATE-gpu-CARD.json; cp gpu-models.json bench/results/DATE-gpu-models-CARD.json
    python -m bench report bench/results/*.json    # look at the pictures, then commit them with the results

A run compiles every kernel first, in parallel processes; then times, the most important rows first, each under a limit
of its own and written to --out at once, until its minutes are over. A row that fails or that there was no time for is a
result. `--device cpu --tiny` takes the same way on any machine, to try it.

B = 64 and H = 768 as in flash-fft-conv's README, fewer rows and channels where sequences are long. Beside m2gen:
torch.fft on whole tensors (float32, as models write it), flash-fft-conv where it is installed, and a copy of as many
bytes as the sequence, its gates and the result have. All make the filter's spectrum in the call, but "m2gen kept",
whose filter is from `m2gen.prepare_filter`. Forward passes run without gradients; nothing is kept because of that,
since `fftconv` keeps spectra of prepared filters alone (gradients are off inside an autograd Function, too, so that
grad mode says nothing of it). "gpu first call" is a process that finds nothing compiled. "gpu kernels" are single
kernels beside their estimates, to which `m2gen tune --fit --from gpu.json` fits the planner's constants: of each
problem the planned one and up to four of the next plans (bench/gpu_kernels.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import m2gen
from bench import device as devices
from bench import gpu_kernels, workers
from bench.device import Clock
from bench.first_call import alone
from bench.gpu_operands import NAMES, copying, drawn, posed_as, relative, whole
from bench.timing import ratios, rounded, summary, write
from bench.workers import Job, Row
from m2gen.dtypes import DTYPES
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problems import parse
from m2gen.runtime import executor
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure import wisdom

LENGTHS = (1024, 4096, 8192, 32768, 256, 2048, 16384, 512, 2**16, 2**20, 2**18, 2**22)  # the most telling first
FIRST_CALLS = (4096, 1024, 8192, 32768, 2**20)
WORDS = ("fp16 circular gated", "bf16 causal gated", "fp16 circular")
BATCH, CHANNELS, ELEMENTS = 64, 768, 64 * 768 * 8192
COMPILING = 0.45  # share of the minutes that compiling may take
Call = Callable[[], Any]


@dataclass(frozen=True)
class Options:
    """Of a run; as of `python -m bench gpu --help`."""

    device: str = "cuda"
    tiny: bool = False
    rounds: int = 9
    workers: int = 12
    minutes: float = 9.0
    seconds: float = 60.0  # a row's limit
    only: str | None = None
    note: str | None = None
    out: str | None = None
    threads: int | None = None  # of a CPU


# -- operands and contenders -------------------------------------------------------------------------------------------


def problems(tiny: bool = False) -> list[FftConvProblem]:
    """In the order in which they are measured: what flash-fft-conv is known for, and what models call, first."""
    if tiny:
        return [parse(f"fftconv n={n} h=4 b=2 {words}") for words in WORDS for n in (64, 256)]
    both = [parse(f"{at(n)} {words}") for n in LENGTHS for words in WORDS[:2]]
    return both + [parse(f"{at(n)} {words}") for words in WORDS[2:] for n in LENGTHS]


def at(n: int) -> str:
    """Sizes of at most ELEMENTS numbers: fewer rows of long sequences, two at least, and then fewer channels."""
    batch = max(2, min(BATCH, ELEMENTS // (CHANNELS * n)))
    return f"fftconv n={n} h={min(CHANNELS, ELEMENTS // (batch * n))} b={batch}"


def contenders(problem: FftConvProblem, device: str) -> dict[str, Callable[..., Tensor]]:
    """All that make the filter's spectrum in the call: functions of u, k and gates."""
    found: dict[str, Callable[..., Tensor]] = {
        "torch.fft": lambda **x: whole(problem, **x),
        "m2gen": lambda u, k, **gates: m2gen.fftconv(u, k, mode=problem.mode, **gates),
    }
    flash = _flash(problem, device)
    return found | ({"flash-fft-conv": flash} if flash else {})


def _flash(problem: FftConvProblem, device: str) -> Callable[..., Tensor] | None:
    try:
        from flashfftconv import FlashFFTConv
    except ImportError:
        return None
    size = problem.n if problem.mode == "circular" else 2 * problem.n
    if problem.gates == 1 or size not in {2**i for i in range(8, 23)} or torch.device(device).type != "cuda":
        return None
    conv = FlashFFTConv(size, dtype=torch.float16 if problem.dtype == "fp16" else torch.bfloat16).to(device)
    return lambda **x: conv(*(x[name] for name in NAMES if name in x))


def forward(problem: FftConvProblem, device: str, x: dict[str, Tensor]) -> dict[str, Call]:
    """The forward pass of every contender, m2gen's with a kept filter, and the copy."""

    def alone(call: Callable[..., Tensor], args: dict[str, Any]) -> Call:
        def run() -> Tensor:
            with torch.no_grad():
                return call(**args)

        return run

    calls = {name: alone(call, x) for name, call in contenders(problem, device).items()}
    kept = x | {"k": m2gen.prepare_filter(x["k"], mode=problem.mode)}
    calls["m2gen kept"] = alone(lambda u, k, **gates: m2gen.fftconv(u, k, **gates), kept)
    return calls | {"copy": copying(problem, x["u"])}


def both(problem: FftConvProblem, device: str, x: dict[str, Tensor]) -> dict[str, Call]:
    """Forward, and backward with the gradients of u, k and gates."""
    args = {name: value.clone().requires_grad_() for name, value in x.items()}
    leaves, dy = list(args.values()), torch.randn_like(x["u"])

    def step(call: Callable[..., Tensor]) -> Call:
        return lambda: torch.autograd.grad(call(**args), leaves, dy)

    return {name: step(call) for name, call in contenders(problem, device).items()}


# -- a problem's rows --------------------------------------------------------------------------------------------------


def measure(text: str, device: str, rounds: int) -> list[Row]:
    """Forward, and forward with backward, each as called and as a graph; and the forward kernel beside its estimate."""
    problem, clock = parse(text), Clock(device)
    x = drawn(problem, device)
    rows: list[Row] = []
    for what, calls in (("forward", forward), ("forward and backward", both)):
        rows += _timed(clock, f"gpu {what}", text, calls(problem, device, x), rounds)
    floor = next(row["ms"]["copy"]["median"] for row in rows if "copy" in row["ms"])
    plan = executor.planned(posed_as(problem), live(torch.device(device)), torch.get_num_threads())
    rows[0]["error"] = _errors(problem, device, x)
    graph = rows[1]["ms"].get("m2gen kept")
    if graph is not None:
        row: Row = {"group": "gpu kernels", "problem": text, "ms": {"m2gen": graph}, "ratio": {}}
        rows.append(row | gpu_kernels.told(plan))
    return [row | {"floor_ms": floor, "plan": str(plan)} for row in rows]


def _timed(clock: Clock, group: str, text: str, calls: dict[str, Call], rounds: int) -> list[Row]:
    """Two rows: as called, and as a graph. A contender that fails is left out of its row, with its reason."""
    ways: tuple[tuple[str, Callable[[Call], Call]], ...] = (
        (group, lambda call: call),
        (f"{group}, graph", clock.graph),
    )
    times: dict[str, dict[str, list[float]]] = {name: {} for name, _ in ways}
    missing: dict[str, dict[str, str]] = {name: {} for name, _ in ways}
    for name, call in calls.items():
        for way, prepared in ways:
            try:
                times[way][name] = clock.times(prepared(call), rounds)
            except (RuntimeError, m2gen.M2GenError) as error:
                missing[way][name] = " ".join(str(error).split())[:300]
            clock.settle()  # raises where the device is lost: then the row is
    found = []
    for way, _ in ways:
        ms = {name: summary(values) for name, values in times[way].items()}
        first = next(iter(times[way].values()), None)
        gains = {name: ratios(first, values) for name, values in times[way].items() if first is not values and first}
        row: Row = {"group": way, "problem": text, "ms": ms, "ratio": gains, "times": rounded(times[way])}
        found.append(row | ({"left_out": missing[way]} if missing[way] else {}))
    return found


def _errors(problem: FftConvProblem, device: str, x: dict[str, Tensor]) -> dict[str, float]:
    """Relative l2 error of some rows of the result against float64."""
    found = {}
    for name, call in contenders(problem, device).items():
        with torch.no_grad():
            found[name] = relative(problem, x, call(**x))
    return found


def compile_plan(text: str, device: str) -> list[Row]:
    """Call the problem's kernels, forward and for every gradient; Triton's on few of its rows, which they read off
    the tensors. What Triton compiles depends on which sizes are multiples of 16, and so many rows are left."""
    problem = parse(text)
    kernel = executor.bound(posed_as(problem), live(torch.device(device)), torch.get_num_threads(), wisdom.generation())
    rows = next((rows for rows in (32, 16) if problem.b % rows == 0), problem.b)  # two make a tile
    few = replace(problem, b=rows) if isinstance(kernel, FusedKernel) else problem
    x = Operands(**drawn(few, device))
    dy = kernel.forward(x)
    given = {name: value for name in NAMES if (value := getattr(x, name)) is not None}
    kernel.backward(dy, x, Gradients(**{name: torch.zeros_like(value) for name, value in given.items()}))
    torch.sum(dy).item()  # waits
    return []


# -- a run -------------------------------------------------------------------------------------------------------------


def jobs(options: Options) -> tuple[list[Job], list[Job]]:
    """What is compiled first, and what is timed."""
    chosen = [p for p in problems(options.tiny) if options.only is None or options.only in str(p)]
    first = [Job(str(p), compile_plan, (str(p), options.device), _gigabytes(p)) for p in chosen]
    timed = []
    for p in chosen:
        first += gpu_kernels.compiling(p, options.device, _gigabytes(p))
        timed.append(Job(str(p), measure, (str(p), options.device, options.rounds)))
        timed += gpu_kernels.jobs(p, options.device, options.rounds)
    first.sort(key=lambda job: job.call is not compile_plan)  # what calls follow comes before the kernels beside it
    calls = [p for p in chosen if options.tiny or (p.n in FIRST_CALLS and p.dtype == "bf16")]
    return first, timed + [Job(f"first call {p}", first_call, (str(p), options.device)) for p in calls]


def first_call(text: str, device: str) -> list[Row]:
    """Seconds from a call to its result, and to its gradients, in a process that finds nothing compiled."""
    seconds = alone(text, device)
    return [{"group": "gpu first call", "problem": text, "seconds": seconds}]


def _gigabytes(problem: FftConvProblem) -> float:
    """Of `compile_plan`: sequences, gates and their gradients, the filter's spectra, and PyTorch's own."""
    rows = min(problem.b, 16) * problem.h * problem.n * DTYPES[problem.dtype].bytes * 2 * (2 + problem.gates)
    return (rows + 64 * problem.h * problem.n) / 2**30 + 1.5


def run(options: Options, first: Sequence[Job], timed: Sequence[Job]) -> dict[str, Any]:
    """Compile, then time; every row is printed and written as soon as it is there. The file's content."""
    devices.check(options.device)
    begun = time.monotonic()
    end = begun + 60 * options.minutes
    found, results = devices.described(options.device, options.note), list[Row]()
    print(json.dumps(found), flush=True)
    until = begun + 60 * options.minutes * COMPILING
    room = devices.room(options.device)
    for job, done in workers.together(first, options.workers, room, 5 * options.seconds, until, options.threads):
        if done.why:  # its own call compiles what is missing, or fails
            results.append(workers.told("not compiled before", job.name, done.why))
            print(f"{job.name}: not compiled before: {done.why}", flush=True)
    found["compiling_seconds"] = round(time.monotonic() - begun, 1)
    print(f"{len(first) - len(results)} of {len(first)} compiled in {found['compiling_seconds']} s", flush=True)
    write(options.out, found, results)
    for _, rows in workers.in_turn(timed, options.seconds, end, options.threads):
        results += rows
        write(options.out, found, results)
        for line in _lines(rows):
            print(line, flush=True)
    found["seconds"] = round(time.monotonic() - begun, 1)
    write(options.out, found, results)
    return {"provenance": found, "results": results}


def _lines(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        cells = [f"{name} {ms['median']:.4g}" for name, ms in row.get("ms", {}).items()]
        cells += [f"{name}: {value:.3g}" for name, value in row.get("error", {}).items()]
        cells += [f"{name}: {rate:,.0f} tokens/ms" for name, rate in row.get("tokens_per_ms", {}).items()]
        cells += [f"{name} {value:.2f} s" for name, value in row.get("seconds", {}).items()]
        cells += [row["kernel"]] if "kernel" in row else []
        cells += [f"{name} left out: {why[:80]}" for name, why in row.get("left_out", {}).items()]
        yield f"{row['group']:32} {row['problem']:48} {'  '.join(cells) or row.get('why', '')}"


def main(options: Options, models: bool = False) -> dict[str, Any]:
    """The convolution, or with `models` the models. Raises M2GenError where there is no such device, or no place for
    the results."""
    if options.out and not Path(options.out).absolute().parent.is_dir():
        raise m2gen.M2GenError(f"results in {options.out}", "there is no such folder", "make it first")
    if models:
        from bench import gpu_models

        return run(options, *gpu_models.jobs(options))
    return run(options, *jobs(options))

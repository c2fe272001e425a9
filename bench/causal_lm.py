"""M2-GPT beside a Transformer of as many parameters and the same processor time, byte by byte on the standard library.

    OMP_NUM_THREADS=1 python -m bench.causal_lm --out bench/results/FILE.json

Both are trained by examples/causal_lm.py on one thread. A short run of each gives the processor time of a step, and
with it the number of steps that the budget pays for; the schedule ends with the last one. Each model's learning rate is
the best of the same values by held-out loss after a short budget; where that is the first or last of them, the next
one beyond is tried too. Then come the seeds, with the processor time that was really used beside each result. An
interrupted comparison goes on where it was: what is in FILE is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bench.timing import provenance
from bench.trained import row

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import causal_lm

MODELS = ("m2gpt", "transformer")
UNIT = "bits a byte"
RATES = (2e-3, 4e-3, 8e-3)
CALIBRATION = 40  # steps


class Clock(TrainerCallback):  # type: ignore[misc]
    """Processor seconds at the end of every step."""

    def __init__(self) -> None:
        self.times = [time.process_time()]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.times.append(time.process_time())


def train(model: str, steps: int, rate: float, seed: int, options: list[str]) -> dict[str, Any]:
    """One run; held-out bits per byte, the processor seconds of training, and those of a step (median)."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fixed = [
            "--output_dir",
            folder,
            "--model",
            model,
            "--use_cpu",
            "--eval_strategy",
            "no",
            "--save_strategy",
            "no",
        ]
        sizes = [
            "--max_steps",
            str(steps),
            "--learning_rate",
            str(rate),
            "--seed",
            str(seed),
            "--sampled",
            "0",
        ]
        trainer = causal_lm.main([*fixed, *sizes, "--disable_tqdm", "true", *options], callbacks=[clock])
    spans = [b - a for a, b in zip(clock.times[5:], clock.times[6:], strict=False)]
    log = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return {
        "model": model,
        "parameters": trainer.model.num_parameters(),
        "steps": steps,
        "learning_rate": rate,
        "seed": seed,
        "bits_per_byte": log[-1]["eval_loss"] / math.log(2),
        "cpu_seconds": clock.times[-1] - clock.times[0],
        "step_cpu_ms": 1e3 * statistics.median(spans),
    }


class Comparison:
    """The runs so far, kept in a file."""

    def __init__(self, path: Path, options: list[str]) -> None:
        self.path, self.options = path, options
        known = json.loads(path.read_text()) if path.exists() else {}
        self.runs: dict[str, dict[str, Any]] = known.get("runs", {})

    def run(self, name: str, model: str, steps: int, rate: float, seed: int) -> dict[str, Any]:
        key = f"{name} {model} {rate:g} {seed}"
        if key not in self.runs:
            self.runs[key] = train(model, steps, rate, seed, self.options)
            self.save([])
            print(key, json.dumps(self.runs[key]), flush=True)
        return self.runs[key]

    def save(self, results: list[dict[str, Any]]) -> None:
        found = {"provenance": provenance(), "options": self.options, "results": results, "runs": self.runs}
        self.path.write_text(json.dumps(found, indent=1) + "\n")


def plan(comparison: Comparison, model: str, arguments: argparse.Namespace) -> tuple[int, float]:
    """Steps that the budget pays for, and the best learning rate."""
    step = comparison.run("calibration", model, CALIBRATION, RATES[0], 0)["step_cpu_ms"] / 1e3
    short, whole = (round(seconds / step) for seconds in (arguments.tuning, arguments.seconds))
    tried: dict[float, float] = {}
    new = list(arguments.rates)
    while new:
        tried.update({rate: comparison.run("tuning", model, short, rate, 100)["bits_per_byte"] for rate in new})
        best = min(tried, key=tried.__getitem__)
        beyond = {min(tried): best / 2, max(tried): best * 2}
        new = [beyond[best]] if best in beyond else []
    return whole, best


def main(arguments: argparse.Namespace, options: list[str]) -> None:
    torch.set_num_threads(1)
    comparison = Comparison(Path(arguments.out), options)
    plans = {model: plan(comparison, model, arguments) for model in MODELS}
    runs: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
    for seed in range(arguments.seeds):
        for model, (steps, rate) in plans.items():
            runs[model].append(comparison.run("final", model, steps, rate, seed))
    task = f"bytes of the standard library, {arguments.seconds:g} CPU seconds"
    rows = [row(task, UNIT, model, [done["bits_per_byte"] for done in runs[model]], runs[model]) for model in MODELS]
    comparison.save(rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.causal_lm", description=__doc__)
    parser.add_argument("--seconds", type=float, default=240, help="of processor time for each run")
    parser.add_argument("--tuning", type=float, default=80, help="of processor time for each learning rate tried")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", required=True, help="a JSON file, written after every run")
    main(*parser.parse_known_args())

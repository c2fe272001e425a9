"""Fashion-MNIST: an M2-ViT beside a plain ViT of the same width and depth, for the same epochs.

    OMP_NUM_THREADS=1 python -m bench.images --data /usr/share/datasets/fashion-mnist --out bench/results/images.json

Both are trained by examples/image_classification.py with its own settings. Short runs on 50,000 training images choose
each model's learning rate, of the same three, by its accuracy on the other 10,000; then three seeds each are trained
on all 60,000 and evaluated once, at their end, on the test images. About half an hour on one core; a run
that is in --out already is not done again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.timing import provenance
from bench.trained import row
from examples.image_classification import main as train

MODELS = ("M2-ViT-fashion", "ViT-fashion")
UNIT = "accuracy"
RATES = (2.5e-3, 6e-3, 1.5e-2)
SEEDS = (1, 2, 3)
SHORT, LONG = 1, 4  # epochs


def run(data: str, model: str, learning_rate: float, seed: int, epochs: int, hold_out: int) -> dict[str, Any]:
    """One training; its accuracy at the end and the CPU seconds of everything, reading and evaluation included."""
    settings = {
        "data": data,
        "preset": model,
        "learning_rate": learning_rate,
        "seed": seed,
        "num_train_epochs": epochs,
        "hold_out": hold_out,
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_steps": 100,
        "disable_tqdm": 1,
    }
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        command = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        trainer = train([*command, "--output_dir", folder])
    log = trainer.state.log_history
    found = next(entry for entry in reversed(log) if "eval_accuracy" in entry)
    return {
        "model": model,
        "learning_rate": learning_rate,
        "seed": seed,
        "epochs": epochs,
        "hold_out": hold_out,
        "parameters": trainer.model.num_parameters(),
        "steps": trainer.state.global_step,
        "accuracy": found["eval_accuracy"],
        "loss": found["eval_loss"],
        "training_loss": [entry["loss"] for entry in log if "loss" in entry],
        "cpu_seconds": time.process_time() - start,
    }


class Results:
    """The runs so far, kept in a file after each of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def get(self, data: str, **asked: Any) -> dict[str, Any]:
        """The run asked for, trained now if need be."""
        for done in self.runs:
            if all(done[name] == value for name, value in asked.items()):
                return done
        self.runs.append(run(data, **asked))
        self.write([])
        return self.runs[-1]

    def write(self, results: list[dict[str, Any]]) -> None:
        found = {"provenance": provenance(), "results": results, "runs": self.runs}
        self.path.write_text(json.dumps(found, indent=1) + "\n")


def main(data: str, out: Path) -> None:
    results = Results(out)
    chosen = {}
    for model in MODELS:
        short = [
            results.get(data, model=model, learning_rate=rate, seed=0, epochs=SHORT, hold_out=10_000) for rate in RATES
        ]
        chosen[model] = max(short, key=lambda done: done["accuracy"])["learning_rate"]
    finals: dict[str, list[dict[str, Any]]] = {model: [] for model in MODELS}
    for seed in SEEDS:
        for model in MODELS:
            asked = {"learning_rate": chosen[model], "seed": seed, "epochs": LONG, "hold_out": 0}
            finals[model].append(results.get(data, model=model, **asked))
    task = f"Fashion-MNIST, {LONG} epochs"
    rows = [row(task, UNIT, model, [done["accuracy"] for done in runs], runs) for model, runs in finals.items()]
    results.write(rows)
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    main(arguments.data, arguments.out)

"""Masked LM at length 512: M2-BERT beside BERT with as many parameters, for the same CPU seconds of training.

    python -m bench.masked_lm --out bench/results/masked-lm.json        # about an hour on one core

Both read the Python standard library (whole files held out) with one WordPiece tokenizer, in the same order with the
same masks; both compute logits only where a word is masked; both start with the published deviation of 0.02 at width
768, scaled by the root of the width; neither drops anything out. Each model's step is timed first, which gives the
number of steps of a budget; the schedule ends with it. Short runs with the same learning rates choose each model's
own; then three seeds each. Held-out loss is in nats per masked word, 15 % masked, the same words for all.

M2-BERT's filters start smooth, hyena_w = 1: with the published 10 it stays at the words' frequencies for as long as
BERT does (training loss after 400 steps 5.89 for both, 5.33 with 1, one run each).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_outputs import MaskedLMOutput

from bench.timing import provenance
from bench.trained import row
from examples.masked_lm import IGNORE, PUBLISHED, MaskedWindows, Options, make_tokenizer, read_texts, windows
from m2gen.models import M2BertConfig, M2BertForMaskedLM
from m2gen.models.training import M2Trainer, param_groups

MODELS = {
    "m2bert": Options(model="m2bert", width=192, layers=5, filter_width=64, vocabulary=4096),
    "bert": Options(model="bert", width=192, layers=4, heads=4, vocabulary=4096),
}
BATCH = 2
UNIT = "nats a masked word"
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
SEEDS = (1, 2, 3)


class SparseBert(BertForMaskedLM):
    """transformers' BERT with SDPA attention, logits only where there are labels: what M2-BERT's option does."""

    def forward(self, input_ids: Tensor, labels: Tensor) -> MaskedLMOutput:
        """input_ids, labels (B, L) -> the mean loss in nats, logits (n, V)."""
        chosen = labels != IGNORE
        logits = self.cls(self.bert(input_ids).last_hidden_state[chosen])
        return MaskedLMOutput(loss=F.cross_entropy(logits, labels[chosen]), logits=logits)


def build(options: Options, vocabulary: int, seed: int) -> PreTrainedModel:
    set_seed(seed)
    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": options.width,
        "num_hidden_layers": options.layers,
        "intermediate_size": 4 * options.width,
        "max_position_embeddings": options.length,
        "hidden_dropout_prob": 0.0,
        "initializer_range": 0.02 * (768 / options.width) ** 0.5,
    }
    if options.model == "m2bert":
        own = {"hyena_filter_order": options.filter_width, "hyena_w": 1, "sparse_prediction": True}
        return M2BertForMaskedLM(M2BertConfig(**sizes, **own))
    config = BertConfig(**sizes, num_attention_heads=options.heads, attention_probs_dropout_prob=0.0)
    return SparseBert._from_config(config, attn_implementation="sdpa")


class Clock(TrainerCallback):
    """CPU seconds of the training steps, evaluation left out."""

    def __init__(self) -> None:
        self.seconds = self.mark = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.mark = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        now = time.process_time()
        self.seconds, self.mark = self.seconds + now - self.mark, now

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.mark = time.process_time()


class Comparison:
    """The data, and runs on it."""

    def __init__(self) -> None:
        texts = read_texts([], [])
        options = MODELS["bert"]
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer: BertTokenizer = make_tokenizer(Path(folder), texts[0], options.vocabulary)
        self.rows, self.held_out = (windows(part, self.tokenizer, options.length) for part in texts)

    def data(self, seed: int) -> MaskedWindows:
        return MaskedWindows(self.rows, self.tokenizer, 0.3, seed)

    def run(self, name: str, rate: float, seed: int, steps: int, evaluations: int) -> dict[str, Any]:
        """Train for `steps`; settings, held-out loss on the way and at the end, CPU seconds."""
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder:
            trainer = M2Trainer(
                model=build(MODELS[name], len(self.tokenizer), seed),
                args=arguments(folder, rate, seed, steps, evaluations),
                train_dataset=self.data(seed),
                eval_dataset=MaskedWindows(self.held_out, self.tokenizer, 0.15, seed=0, fixed=True),
                callbacks=[clock],
            )
            trainer.train()
        losses = [(e["step"], e["eval_loss"]) for e in trainer.state.log_history if "eval_loss" in e]
        training = [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e]
        found = {"model": name, "learning_rate": rate, "seed": seed, "steps": steps, "held_out": losses[-1][1]}
        print(json.dumps({**found, "cpu_seconds": round(clock.seconds, 1)}), flush=True)
        return {**found, "cpu_seconds": clock.seconds, "held_out_curve": losses, "training_curve": training}

    def step_seconds(self, rounds: int) -> dict[str, float]:
        """Median CPU seconds of a training step, the models taking turns."""
        calls = {name: self._step(build(options, len(self.tokenizer), 0)) for name, options in MODELS.items()}
        times: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 2):
            for name, call in calls.items():
                begin = time.process_time()
                call()
                if turn >= 2:  # the first ones compile and allocate
                    times[name].append(time.process_time() - begin)
        return {name: statistics.median(values) for name, values in times.items()}

    def _step(self, model: PreTrainedModel) -> Any:
        optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3))
        data = self.data(0)
        batch = {key: torch.stack([data[i][key] for i in range(BATCH)]) for key in ("input_ids", "labels")}

        def step() -> None:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        return step


def arguments(folder: str, rate: float, seed: int, steps: int, evaluations: int) -> TrainingArguments:
    options = {
        **PUBLISHED,
        "learning_rate": rate,
        "lr_scheduler_kwargs": {"lr_end": 0.02 * rate, "power": 1.0},
        "max_steps": steps,
        "seed": seed,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 8,
        "logging_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": -(-steps // evaluations),
        "save_strategy": "no",
    }
    return TrainingArguments(
        output_dir=folder, **options, prediction_loss_only=True, report_to="none", use_cpu=True, disable_tqdm=True
    )


def main(budget: float, short: float, out: str | None) -> None:
    torch.set_num_threads(1)
    comparison = Comparison()
    step = comparison.step_seconds(15)
    sizes = {name: build(options, len(comparison.tokenizer), 0).num_parameters() for name, options in MODELS.items()}
    result: dict[str, Any] = {
        "provenance": provenance(),
        "models": {n: {**vars(o), "parameters": sizes[n], "step_seconds": step[n]} for n, o in MODELS.items()},
        "batch": BATCH,
        "budget_seconds": budget,
        "tuning_seconds": short,
    }
    print(json.dumps(result), flush=True)
    result["tuning"] = [
        comparison.run(name, rate, 0, round(short / step[name]), 1) for name in MODELS for rate in RATES
    ]
    save(result, out)
    best = {n: min((r for r in result["tuning"] if r["model"] == n), key=_loss)["learning_rate"] for n in MODELS}
    result["runs"], result["results"] = [], []
    for seed in SEEDS:
        for name in MODELS:
            result["runs"].append(comparison.run(name, best[name], seed, round(budget / step[name]), 4))
            save(result, out)
    for name in MODELS:
        runs = [{**run, "parameters": sizes[name]} for run in result["runs"] if run["model"] == name]
        result["results"].append(row(f"words, {budget:g} CPU seconds", UNIT, name, [_loss(run) for run in runs], runs))
    save(result, out)
    print(json.dumps(result["results"]))


def _loss(run: dict[str, Any]) -> float:
    return run["held_out"]


def save(result: dict[str, Any], out: str | None) -> None:
    if out:
        Path(out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.masked_lm", description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=240, help="CPU seconds of a run")
    parser.add_argument("--short", type=float, default=60, help="CPU seconds of a run that tunes")
    parser.add_argument("--out", help="write the results there as JSON")
    given = parser.parse_args()
    main(given.budget, given.short, given.out)

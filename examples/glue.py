"""Fine-tune M2-BERT on a task of GLUE, from the standard TSV files.

    python examples/glue.py --task rte --data glue_data/RTE --model_path runs/m2bert --output_dir runs/rte
    python examples/glue.py --task rte --data glue_data/RTE --model_path runs/mnli --size 110M --output_dir runs/rte2
    python examples/glue.py --task mnli --data glue_data/MNLI --model_path m2-bert-80M --output_dir runs/mnli --resume

`--data` is a task's folder as GLUE ships it: train.tsv and dev.tsv (MNLI: dev_matched.tsv and dev_mismatched.tsv).
`--model_path` is a folder with a model and its tokenizer. Learning rates and weight decays are the published ones of
the model's `--size`; every option of transformers' TrainingArguments is one of this script and overrides them. The
published runs begin RTE, STS-B and MRPC from a model tuned on MNLI (give its folder; its classifier is left behind),
and pool the mean over tokens for QNLI. Numbers of epochs that were not found published are 3 (see EPOCHS).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats
from torch.utils.data import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    HfArgumentParser,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from m2gen.errors import M2GenError, ProblemError
from m2gen.models import M2BertConfig, M2BertForSequenceClassification
from m2gen.models.training import LossCurve, M2Trainer, starting_point

SIZES = ("80M", "110M", "260M", "341M")
# learning rate / weight decay for each size; a decay of 0.01 is PyTorch's own, the smaller ones are a step's, which the
# released optimizer does not multiply by the rate. Source: released settings of Monarch Mixer (arXiv 2310.12109)
PUBLISHED = {
    "mnli": ("5e-5/5e-6", "5e-5/5e-6", "5e-5/5e-6", "5e-5/5e-6"),
    "rte": ("5e-5/0.01", "1e-5/1e-6", "1e-5/1e-6", "5e-5/1e-6"),
    "qqp": ("3e-5/0.01", "3e-5/3e-6", "3e-5/3e-6", "3e-5/3e-6"),
    "qnli": ("5e-5/1e-6", "5e-5/1e-6", "5e-5/1e-6", "5e-5/1e-6"),
    "sst2": ("3e-5/3e-6", "3e-5/3e-6", "3e-5/3e-6", "3e-5/3e-6"),
    "stsb": ("7e-5/0.01", "8e-5/3e-6", "7e-5/3e-6", "8e-5/3e-6"),
    "mrpc": ("5e-5/0.01", "8e-5/8e-5", "8e-5/8e-6", "8e-5/8e-6"),
    "cola": ("5e-5/5e-6", "8e-5/5e-6", "8e-5/5e-6", "5e-5/1e-6"),
}
EPOCHS = {("rte", "80M"): 6, ("rte", "341M"): 2, ("qqp", "80M"): 10, ("stsb", "260M"): 10, ("stsb", "341M"): 8}
PYTORCHS = {("rte", "341M"), ("cola", "110M")}  # AdamW as PyTorch has it, with a small decay


@dataclass(frozen=True)
class Task:
    """Columns of the sentences and of the label, by their names in the header (by number where there is none)."""

    sentences: tuple[str | int, ...]
    label: str | int
    classes: tuple[str, ...]  # none: the label is a number
    dev: tuple[str, ...] = ("dev.tsv",)


TASKS = {
    "mnli": Task(
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("dev_matched.tsv", "dev_mismatched.tsv"),
    ),
    "rte": Task(("sentence1", "sentence2"), "label", ("entailment", "not_entailment")),
    "qqp": Task(("question1", "question2"), "is_duplicate", ("0", "1")),
    "qnli": Task(("question", "sentence"), "label", ("entailment", "not_entailment")),
    "sst2": Task(("sentence",), "label", ("0", "1")),
    "stsb": Task(("sentence1", "sentence2"), "score", ()),
    "mrpc": Task(("#1 String", "#2 String"), "Quality", ("0", "1")),
    "cola": Task((3,), 1, ("0", "1")),
}


@dataclass
class Options:
    """What to fine-tune on what, beside TrainingArguments."""

    task: Literal["mnli", "rte", "qqp", "qnli", "sst2", "stsb", "mrpc", "cola"]
    data: str = field(metadata={"help": "the task's folder of TSV files"})
    model_path: str = field(metadata={"help": "a folder with a model and its tokenizer"})
    size: Literal["80M", "110M", "260M", "341M"] = field(default="80M", metadata={"help": "whose settings to use"})
    length: int = field(default=128, metadata={"help": "tokens of a text at most"})
    resume: bool = field(default=False, metadata={"help": "go on from the folder's last whole checkpoint, if any"})


def published(task: str, size: str) -> dict[str, float]:
    """learning_rate, weight_decay as PyTorch counts it (times the rate a step), and num_train_epochs."""
    rate, decay = map(float, PUBLISHED[task][SIZES.index(size)].split("/"))
    of_a_step = decay < 0.01 and (task, size) not in PYTORCHS
    epochs = EPOCHS.get((task, size), 3)
    return {"learning_rate": rate, "weight_decay": decay / rate if of_a_step else decay, "num_train_epochs": epochs}


def read(path: Path, task: Task) -> tuple[list[tuple[str, ...]], list[int | float]]:
    """The sentences and labels of a TSV file. Lines cut short are left out and counted, as other readers do with QQP's.

    Raises ProblemError for a file that is not laid out like the task's, where more than one line in 100 is short.
    """
    if not path.is_file():
        raise ProblemError(f"the file {path}", "it is not there", "give --data the task's folder as GLUE ships it")
    with path.open(encoding="utf-8-sig", newline="") as file:  # MRPC's files begin with a byte order mark
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    header = rows.pop(0) if isinstance(task.label, str) and rows else []
    places = [_column(name, header, path) for name in (*task.sentences, task.label)]
    texts: list[tuple[str, ...]] = []
    labels: list[int | float] = []
    _check_columns(rows, 1 + max(places), 1 + bool(header), path)
    for number, row in enumerate(rows, start=1 + bool(header)):
        if len(row) > max(places):
            texts.append(tuple(row[place] for place in places[:-1]))
            labels.append(_label(row[places[-1]], task, f"{path}, line {number}"))
    if not labels:
        raise ProblemError(f"sentences of {path}", "it has none", "give --data the task's folder as GLUE ships it")
    return texts, labels


def _check_columns(rows: list[list[str]], columns: int, first: int, path: Path) -> None:
    """Tell of lines that are too short, the lines being numbered from `first`; raises ProblemError where many are."""
    short = [number for number, row in enumerate(rows, start=first) if len(row) < columns]
    if not short:
        return
    found = f"{len(short)} of {len(rows)} lines are short, line {short[0]} first"
    if len(short) > len(rows) / 100:
        raise ProblemError(f"{path}", found, f"each line needs {columns} columns, separated by tabs")
    print(f"{path}: {found}; left out", flush=True)


def _column(name: str | int, header: list[str], path: Path) -> int:
    if isinstance(name, int):
        return name
    if name not in header:
        raise ProblemError(f"{path}", f"its header has no column {name!r}", "give --data the folder of this task")
    return header.index(name)


def _label(text: str, task: Task, where: str) -> int | float:
    if task.classes and text in task.classes:
        return task.classes.index(text)
    try:
        if not task.classes:
            return float(text)
    except ValueError:
        pass
    raise ProblemError(where, f"the label is {text!r}", f"use {', '.join(task.classes) or 'a number'}")


class Sentences(Dataset):
    """Rows for the Trainer; padding is the collator's."""

    def __init__(self, path: Path, task: Task, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        texts, self.labels = read(path, task)
        columns = [list(column) for column in zip(*texts, strict=True)]
        self.rows = tokenizer(*columns, truncation=True, max_length=length)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.rows.items()} | {"labels": self.labels[index]}


def metrics(task: str) -> Any:
    """GLUE's measures: accuracy, with F1 for QQP and MRPC; Matthews for CoLA; Pearson and Spearman for STS-B."""

    def compute(found: EvalPrediction) -> dict[str, float]:
        logits, labels = np.asarray(found.predictions), np.asarray(found.label_ids)
        if task == "stsb":
            scores = logits[:, 0]
            return {"pearson": stats.pearsonr(scores, labels)[0], "spearman": stats.spearmanr(scores, labels)[0]}
        guess = logits.argmax(-1)
        right = {"accuracy": float((guess == labels).mean())}
        if task == "cola":
            return {"matthews": matthews(guess, labels)}
        return right | {"f1": f1(guess, labels)} if task in ("qqp", "mrpc") else right

    return compute


def f1(guess: np.ndarray, labels: np.ndarray) -> float:
    """2 TP / (2 TP + FP + FN); 0 where there is nothing to find."""
    hits = int(((guess == 1) & (labels == 1)).sum())
    return 2 * hits / max(1, int((guess == 1).sum() + (labels == 1).sum()))


def matthews(guess: np.ndarray, labels: np.ndarray) -> float:
    """The correlation of two binary sequences; 0 where one is constant."""
    if len(set(guess.tolist())) < 2 or len(set(labels.tolist())) < 2:
        return 0.0
    return float(np.corrcoef(guess, labels)[0, 1])


def make_trainer(options: Options, arguments: TrainingArguments) -> tuple[M2Trainer, dict[str, Sentences]]:
    task, folder = TASKS[options.task], Path(options.data)
    if not (Path(options.model_path) / "config.json").is_file():
        found = "it has no config.json"
        raise ProblemError(f"--model_path {options.model_path}", found, "give a folder with a model and its tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(options.model_path)
    longest = M2BertConfig.from_pretrained(options.model_path).max_position_embeddings
    set_seed(arguments.seed)
    model = M2BertForSequenceClassification.from_pretrained(
        options.model_path,
        num_labels=max(1, len(task.classes)),
        problem_type=None if task.classes else "regression",
        max_position_embeddings=max(longest, options.length),
        ignore_mismatched_sizes=True,  # the classifier of another task
        **({"pool_all": True} if options.task == "qnli" else {}),
    )
    held_out = {name: Sentences(folder / name, task, tokenizer, options.length) for name in task.dev}
    trainer = M2Trainer(
        model=model,
        args=arguments,
        train_dataset=Sentences(folder / "train.tsv", task, tokenizer, options.length),
        eval_dataset=held_out[task.dev[0]],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=metrics(options.task),
        preprocess_logits_for_metrics=lambda found, labels: found[0] if isinstance(found, tuple) else found,
        callbacks=[LossCurve(label="loss")],
    )
    return trainer, held_out


def main(command: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Fine-tune and evaluate as the command line says; the measures by file of held-out sentences."""
    parser = HfArgumentParser((Options, TrainingArguments), description=__doc__.splitlines()[0])
    parser.set_defaults(per_device_train_batch_size=16, adam_beta2=0.98, adam_epsilon=1e-6, warmup_steps=0.06)
    parser.set_defaults(eval_strategy="epoch", save_strategy="epoch", logging_steps=50, report_to="none")
    known, _ = parser.parse_known_args(command)
    parser.set_defaults(**published(known.task, known.size))
    options, arguments = parser.parse_args_into_dataclasses(command)
    begin = starting_point(arguments, options.resume)
    trainer, held_out = make_trainer(options, arguments)
    trainer.train(resume_from_checkpoint=begin)
    found = {
        name: trainer.evaluate(data, metric_key_prefix=name.removesuffix(".tsv")) for name, data in held_out.items()
    }
    for name, values in found.items():
        trainer.log_metrics(name.removesuffix(".tsv"), values)
    trainer.save_model()
    return found


if __name__ == "__main__":
    try:
        main()
    except M2GenError as error:  # it says what to do
        raise SystemExit(f"Error: {error}") from None

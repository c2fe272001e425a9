"""Training on the engine of transformers: the published settings of the filters, resumption, a picture of the loss.

    arguments = TrainingArguments(output_dir=folder, learning_rate=8e-4, weight_decay=1e-5, bf16=True, save_steps=500)
    trainer = M2Trainer(model=model, args=arguments, train_dataset=data, eval_dataset=held_out, callbacks=[LossCurve()])
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))  # scripts: starting_point(arguments, resume)

Everything else is TrainingArguments' own: bf16, gradient_checkpointing, gradient_accumulation_steps, evaluation, a
progress bar; `torchrun --nproc-per-node 2 script.py` trains on two processes. `pip install 'm2gen[train]'` brings what
is needed.

A resumed run repeats the losses of one that was not interrupted if its data do: a dataset that draws anything at random
has to draw it from (seed, epoch, index), not from a generator that runs along. The trainer tells a dataset its epoch by
`set_epoch(epoch)`, where it has such a method.
"""

from __future__ import annotations

import json
import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from m2gen.errors import MissingError, ProblemError
from m2gen.modules.param_groups import param_groups

__all__ = ["LossCurve", "M2Trainer", "last_checkpoint", "param_groups", "starting_point"]

_STATE = "trainer_state.json"  # the last file of a checkpoint that is written


class M2Trainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with the published settings for implicit filters; takes what Trainer takes, and

    filter_lr, filter_weight_decay    of the networks that make the filters, as published 1e-3 and 0.1
    position_lr                       of their positional features, as published 1e-5; no weight decay

    The other parameters get learning_rate and weight_decay of the arguments, biases and norms no decay. The schedule
    multiplies all rates alike. A model without implicit filters is trained with just these two groups. Source: the
    settings released with Monarch Mixer, arXiv 2310.12109.
    """

    def __init__(
        self,
        *args: Any,
        filter_lr: float = 1e-3,
        filter_weight_decay: float = 0.1,
        position_lr: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        self.optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None
        self.filter_settings = {
            "filter_lr": filter_lr,
            "filter_weight_decay": filter_weight_decay,
            "position_lr": position_lr,
        }
        super().__init__(*args, **kwargs)
        self.add_callback(_Epoch())

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name (`optim`, betas and so on), on the groups of `param_groups`."""
        if self.optimizer is None:
            model = self.model if model is None else model
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = param_groups(
                model, lr=self.args.learning_rate, weight_decay=self.args.weight_decay, **self.filter_settings
            )
            self.optimizer_cls_and_kwargs = (kind, {**options, "params": groups})
        made: torch.optim.Optimizer = super().create_optimizer(model)
        return made

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> TrainOutput:
        """As Trainer.train; a run that was finished already is loaded, where Trainer would take one step too many.

        True stands for the newest whole checkpoint in output_dir. Raises ProblemError where there is none.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                found = "there is no whole checkpoint"
                raise ProblemError(f"going on in {self.args.output_dir}", found, "start a new run, or give a folder")
        if isinstance(resume_from_checkpoint, str):
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / _STATE))
            if state.global_step >= self._wanted(state):
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                return TrainOutput(state.global_step, float("nan"), {})
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def _wanted(self, state: TrainerState) -> float:
        """The steps that the arguments ask for, as far as an earlier run's state can tell."""
        if self.args.max_steps > 0:
            return float(self.args.max_steps)
        same = state.num_train_epochs == math.ceil(self.args.num_train_epochs)
        return float(state.max_steps) if same else math.inf

    def _save_rng_state(self, output_dir: str) -> None:
        """Wait for every process, so that the state, which is written next, says that all of them have written."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


class _Epoch(TrainerCallback):  # type: ignore[misc]
    """Tells the training data their epoch. accelerate does so too, but not where a run goes on within an epoch: there
    it tells the sampler alone, and the rest of that epoch would be drawn as the first one was."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        tell = getattr(getattr(train_dataloader, "dataset", None), "set_epoch", None)
        if tell is not None:
            tell(int(state.epoch or 0))


def last_checkpoint(folder: str | Path) -> str | None:
    """The newest complete checkpoint of a run in `folder`, or None; one that a kill left half written is passed over.

    Its path is what `Trainer.train(resume_from_checkpoint=...)` takes; None there starts a run from its beginning.
    """
    names = [(re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(folder).glob("checkpoint-*")]
    found = [(int(name[1]), path) for name, path in names if name]  # others are somebody's copies
    return next((str(path) for _, path in sorted(found, reverse=True) if _is_complete(path)), None)


def starting_point(arguments: TrainingArguments, resume: bool) -> str | None:
    """Where a script's run begins: `--resume_from_checkpoint`, with `resume` the newest whole checkpoint in output_dir,
    or None, from the beginning.

    Raises ProblemError for a new run where there is one already, and for a checkpoint that is not there or not whole.
    """
    asked = arguments.resume_from_checkpoint
    if asked is not None:
        if not _is_complete(Path(asked)):
            found = f"no whole checkpoint is there, as it has no readable {_STATE}"
            raise ProblemError(f"--resume_from_checkpoint {asked}", found, "give a folder checkpoint-N, or --resume")
        return str(asked)
    last = last_checkpoint(arguments.output_dir)
    if last is not None and not resume:
        folder = arguments.output_dir
        raise ProblemError(f"a new run in {folder}", f"{last} is there", "add --resume, or use an empty folder")
    return last


def _is_complete(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / _STATE).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return True


class LossCurve(TrainerCallback):  # type: ignore[misc]
    """Draws training and held-out loss over the steps as a PNG, at every evaluation, checkpoint and at the end.

    path     default: loss.png in the run's output_dir. A resumed run draws the part before its interruption too
    label    of the axis, with its unit
    scale    what the losses are multiplied by, such as 1 / log(2) for bits

    Raises MissingError where matplotlib is not installed.
    """

    def __init__(self, path: str | Path | None = None, *, label: str = "loss (nats)", scale: float = 1.0) -> None:
        if find_spec("matplotlib") is None:
            raise MissingError("a picture of the loss", "matplotlib is not installed", "run pip install 'm2gen[train]'")
        self.path, self.label, self.scale = path, label, scale

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._draw(args, state)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._draw(args, state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._draw(args, state)

    def _draw(self, args: Any, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        curves = {name: _points(state.log_history, key, self.scale) for key, name in _CURVES.items()}
        draw_losses(self.path or Path(args.output_dir) / "loss.png", curves, self.label)


_CURVES = {"loss": "training", "eval_loss": "held out"}


def _points(history: list[dict[str, float]], key: str, scale: float) -> list[tuple[float, float]]:
    return [(entry["step"], scale * entry[key]) for entry in history if key in entry]


def draw_losses(path: str | Path, curves: dict[str, list[tuple[float, float]]], label: str) -> None:
    """One PNG at `path` with a line per name of `curves`, lists of (step, loss).

    Raises ProblemError for another kind of file.
    """
    if Path(path).suffix != ".png":
        raise ProblemError(f"a picture in {path}", "pictures are PNG files", "use a name that ends in .png")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no window, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in curves.items():
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, label=f"{name}: {losses[-1]:.3f}", marker="o" if len(points) < 30 else None, ms=3)
    axes.set(xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=120)

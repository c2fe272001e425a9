"""Training: who gets which learning rate, which checkpoint a run goes on from, and the picture of its loss."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from m2bert_tiny import tiny
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel, TrainingArguments

from m2gen.errors import ProblemError
from m2gen.models import M2BertForMaskedLM
from m2gen.models.training import LossCurve, M2Trainer, draw_losses, last_checkpoint, starting_point

PNG = b"\x89PNG\r\n\x1a\n"


def data(n: int = 8) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(0, 50, (n, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in ids]


def trainer(model: PreTrainedModel, folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> M2Trainer:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 8e-4,
        "weight_decay": 1e-5,
        "logging_steps": 1,
        "eval_steps": 2,
        "save_steps": 2,
        "eval_strategy": "steps",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(output_dir=str(folder), **{**settings, **(changes or {})})
    return M2Trainer(model=model, args=arguments, train_dataset=data(), eval_dataset=data(2), **options)


def settings_by_name(model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [(group, p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(id(p) for _, p in groups) == sorted(names), "each parameter once"
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group, p in groups}


def expected(name: str, norm: bool) -> tuple[float, float]:
    if "implicit_filter" in name:
        return 1e-3, 0.1
    if name.endswith("pos_emb.z"):
        return 1e-5, 0.0
    return 8e-4, 0.0 if name.endswith("bias") or norm else 1e-5


def test_filters_have_their_own_settings_and_biases_and_norms_do_not_decay(tmp_path: Path) -> None:
    model = tiny(M2BertForMaskedLM)
    found = settings_by_name(model, trainer(model, tmp_path).create_optimizer())
    assert found == {name: expected(name, "norm" in name.lower()) for name in found}
    assert {(1e-3, 0.1), (1e-5, 0.0), (8e-4, 0.0), (8e-4, 1e-5)} == set(found.values())


def test_the_settings_can_be_chosen_and_a_model_without_filters_has_none(tmp_path: Path) -> None:
    model = tiny(M2BertForMaskedLM)
    chosen = trainer(model, tmp_path, filter_lr=3e-3, filter_weight_decay=0.2, position_lr=2e-5)
    assert {(3e-3, 0.2), (2e-5, 0.0)} < set(settings_by_name(model, chosen.create_optimizer()).values())
    small = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "num_hidden_layers": 1}
    bert = BertForMaskedLM(BertConfig(vocab_size=50, max_position_embeddings=16, **small))
    optimizer = trainer(bert, tmp_path).create_optimizer()
    assert set(settings_by_name(bert, optimizer).values()) == {(8e-4, 0.0), (8e-4, 1e-5)}
    assert isinstance(optimizer, torch.optim.AdamW)


def test_a_run_trains_saves_and_draws(tmp_path: Path) -> None:
    model = tiny(M2BertForMaskedLM)
    before = {name: p.clone() for name, p in model.named_parameters()}
    run = trainer(model, tmp_path, callbacks=[LossCurve()])
    run.train()
    assert not {name for name, p in model.named_parameters() if torch.equal(p, before[name])}, "all of it is trained"
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")
    assert (tmp_path / "loss.png").read_bytes().startswith(PNG)
    logged = [entry for entry in run.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4]


def test_a_half_written_checkpoint_is_passed_over(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    assert last_checkpoint(tmp_path / "nowhere") is None
    for step in (900, 1000, 1100, 1200):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) is None
    for step in (900, 1000):
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (tmp_path / "checkpoint-1100" / "trainer_state.json").write_text('{"global_step": 11')
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1000")


def checkpoint(folder: Path, name: str, step: int) -> str:
    (folder / name).mkdir()
    (folder / name / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return str(folder / name)


def test_copies_of_checkpoints_are_passed_over(tmp_path: Path) -> None:
    for name in ("checkpoint-12-old", "checkpoint-13_old", "checkpoint-14.bak", "checkpoint-best"):
        checkpoint(tmp_path, name, 12)
    assert last_checkpoint(tmp_path) is None
    assert checkpoint(tmp_path, "checkpoint-8", 8) == last_checkpoint(tmp_path)


def test_where_a_script_begins(tmp_path: Path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True)
    assert starting_point(arguments, False) is None and starting_point(arguments, True) is None
    (tmp_path / "run").mkdir(exist_ok=True)
    last = checkpoint(tmp_path / "run", "checkpoint-8", 8)
    assert starting_point(arguments, True) == last
    with pytest.raises(ProblemError, match="Add --resume"):
        starting_point(arguments, False)
    arguments.resume_from_checkpoint = checkpoint(tmp_path, "checkpoint-3", 3)
    assert starting_point(arguments, False) == str(tmp_path / "checkpoint-3")
    arguments.resume_from_checkpoint = str(tmp_path)
    with pytest.raises(ProblemError, match="no whole checkpoint"):
        starting_point(arguments, True)


def test_true_is_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    """One left half written is passed over, and a finished run is not trained further."""
    with pytest.raises(ProblemError, match="no whole checkpoint"):
        trainer(tiny(M2BertForMaskedLM), tmp_path).train(resume_from_checkpoint=True)
    trainer(tiny(M2BertForMaskedLM), tmp_path).train()
    (tmp_path / "checkpoint-9").mkdir()
    again = trainer(tiny(M2BertForMaskedLM), tmp_path)
    assert again.train(resume_from_checkpoint=True).global_step == again.state.global_step == 4


@pytest.mark.parametrize(
    ("first", "then", "steps"),
    [
        ({"max_steps": 4}, {"max_steps": 4}, 4),
        ({"max_steps": 4}, {"max_steps": 6}, 6),
        ({"max_steps": -1, "num_train_epochs": 1}, {"max_steps": -1, "num_train_epochs": 1}, 4),
        ({"max_steps": -1, "num_train_epochs": 1}, {"max_steps": -1, "num_train_epochs": 2}, 8),
    ],
    ids=str,
)
def test_a_finished_run_is_loaded_and_a_longer_one_goes_on(
    first: dict[str, Any], then: dict[str, Any], steps: int, tmp_path: Path
) -> None:
    done = trainer(tiny(M2BertForMaskedLM), tmp_path, first)
    done.train()
    again = trainer(tiny(M2BertForMaskedLM, seed=7), tmp_path, then)
    assert again.train(resume_from_checkpoint=last_checkpoint(tmp_path)).global_step == steps
    pairs = zip(done.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs) == (steps == 4)


def test_what_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses over their steps, in the unit asked for; by one process only."""
    drawn: list[Any] = []
    monkeypatch.setattr("m2gen.models.training.draw_losses", lambda *arguments: drawn.append(arguments))
    history = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]
    for first in (False, True):
        state = SimpleNamespace(is_world_process_zero=first, log_history=history)
        LossCurve(label="bits", scale=2.0).on_train_end(SimpleNamespace(output_dir=str(tmp_path)), state, None)
        assert len(drawn) == first
    curves = {"training": [(1, 6.0), (2, 4.0)], "held out": [(2, 5.0)]}
    assert drawn == [(tmp_path / "loss.png", curves, "bits")]


def test_a_picture_is_a_png(tmp_path: Path) -> None:
    draw_losses(tmp_path / "a.png", {"training": [(1, 3.0), (2, 2.5)], "held out": []}, "loss (nats)")
    one = (tmp_path / "a.png").read_bytes()
    draw_losses(tmp_path / "b.png", {"training": [(1, 3.0), (2, 2.0)], "held out": [(2, 2.2)]}, "loss (nats)")
    assert one.startswith(PNG) and one != (tmp_path / "b.png").read_bytes()
    with pytest.raises(ProblemError, match=r"PNG.*ends in \.png"):
        draw_losses(tmp_path / "a.gif", {}, "loss")

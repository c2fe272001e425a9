"""examples/causal_lm.py: two models of one size, on the same bytes, from the command line to a file that loads."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM

from m2gen.errors import ProblemError

SCRIPT = Path(__file__).parents[2] / "examples" / "causal_lm.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("causal_lm", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["causal_lm"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("sizes", [{}, {"width": 256}, {"width": 192, "layers": 6, "head_width": 32}], ids=str)
def test_the_transformer_has_the_parameters_of_m2gpt(script: ModuleType, sizes: dict[str, int]) -> None:
    ours, theirs = (script.make_model(script.Options(model=m, **sizes)) for m in ("m2gpt", "transformer"))
    assert theirs.num_parameters() == pytest.approx(ours.num_parameters(), rel=0.02)


def test_windows(script: ModuleType) -> None:
    text = torch.arange(250, dtype=torch.uint8)
    windows = script.Windows(text, 20, seed=0)
    first = [windows[i]["input_ids"] for i in range(len(windows))]
    assert all(torch.equal(ids.diff(), torch.ones(19, dtype=torch.long)) for ids in first)
    assert len(torch.cat(first).unique()) == len(windows) * 20 == 220
    shifts = set()
    for epoch in range(20):
        windows.set_epoch(epoch)
        shifts.add(windows.shift)
    assert len(shifts) > 5
    even = script.Windows(text, 20, seed=0, count=3)
    assert [int(even[i]["input_ids"][0]) for i in range(3)] == [0, 115, 230]
    with pytest.raises(ProblemError, match="more text"):
        script.Windows(text[:30], 20, seed=0)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--text nowhere", "the text nowhere: there is no such file"),
        ("--text empty", "the text empty: it is empty"),
        ("--text text --held_out nowhere", "the text nowhere: there is no such file"),
        ("--text text --prompt=", "it has 0 bytes, a window 512"),
        ("--text text --length 4", "it has 4 bytes, a window 4"),
        ("--text text --width 0", "d_model=0"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, found: str
) -> None:
    """Before anything is trained."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_bytes(b"so long as the word is long, " * 100)
    (tmp_path / "empty").touch()
    with pytest.raises(ProblemError, match=found):
        script.main(["--output_dir", "run", "--use_cpu", *words.split()])


def test_any_schedule(script: ModuleType, tmp_path: Path) -> None:
    """The default's floor is not handed to another schedule; the default keeps it."""
    (tmp_path / "text").write_bytes(b"so long as the word is long, " * 100)
    run = ["--text", str(tmp_path / "text"), "--use_cpu", "--width", "16", "--layers", "1", "--length", "64"]
    run += ["--max_steps", "2", "--sampled", "0", "--disable_tqdm", "true", "--save_strategy", "no"]
    default, linear = (
        script.main([*run, "--output_dir", str(tmp_path / name), *more])
        for name, more in (("a", []), ("b", ["--lr_scheduler_type", "linear"]))
    )
    assert min(default.lr_scheduler.get_last_lr()) > 0
    assert max(linear.lr_scheduler.get_last_lr()) == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("causal_lm", "--text nowhere"),
        ("masked_lm", "--text nowhere"),
        ("glue", "--task rte --data nowhere --model_path nowhere"),
        ("image_classification", "--data nowhere"),
    ],
)
def test_a_script_says_what_is_wrong_in_a_line(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--output_dir", str(tmp_path), "--use_cpu", *words.split()])
    with pytest.raises(SystemExit, match=r"^Error: .*nowhere"):
        runpy.run_path(str(SCRIPT.with_name(f"{name}.py")), run_name="__main__")


def test_from_the_command_line(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"so long as the word is long, " * 100)
    sizes = ["--width", "16", "--layers", "1", "--length", "64", "--max_steps", "6", "--save_steps", "4"]
    run = ["--output_dir", str(tmp_path / "run"), "--text", str(text), "--use_cpu", "--sampled", "9", *sizes]
    trainer = script.main(run)
    assert "def " in capsys.readouterr().out
    assert (tmp_path / "run" / "loss.png").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    ids = torch.randint(256, (1, 30))
    assert torch.equal(model.eval()(ids).logits, trainer.model.eval()(ids).logits)
    with pytest.raises(ProblemError, match="--resume"):
        script.main(run)
    assert script.main([*run, "--resume"]).state.global_step == 6, "it is finished"
    shutil.rmtree(tmp_path / "run" / "checkpoint-6")  # as if killed before it
    again = script.main([*run, "--resume"])
    assert again.state.global_step == 6
    assert torch.equal(again.model.eval()(ids).logits, trainer.model.eval()(ids).logits)

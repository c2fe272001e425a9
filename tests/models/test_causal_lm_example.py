"""examples/causal_lm.py: two models of one size, on the same bytes, from the command line to a file that loads."""

from __future__ import annotations

import importlib.util
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

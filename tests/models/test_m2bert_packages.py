"""M2-BERT compiled ahead by AOTInductor: a package runs in a fresh process, with no compiler in PATH, as eager does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from m2bert_tiny import tiny
from test_m2bert_graphs import SMALL, inputs

from m2gen.cli import main
from m2gen.models import M2BertModel

pytestmark = pytest.mark.slow
BATCH, LENGTHS = 3, (40, 23)


def package(model: M2BertModel, file: Path) -> str:
    """The model with any batch and any length, compiled."""
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", min=2, max=64)}
    example = inputs(LENGTHS[0])
    with torch.no_grad():
        program = torch.export.export(model, (), example, dynamic_shapes=dict.fromkeys(example, dims))
        found: str = torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    return found


def test_a_package_in_a_fresh_process(tmp_path: Path) -> None:
    model = tiny(M2BertModel, **SMALL).double()
    file = package(model, tmp_path / "m2bert.pt2")
    model.save_pretrained(tmp_path / "model")
    words = ["compile", "--model", str(tmp_path / "model"), "--batches", str(BATCH), "--out", str(tmp_path / "kernels")]
    done = CliRunner().invoke(main, [*words, "--lengths", ",".join(map(str, LENGTHS))])
    assert done.exit_code == 0, done.output
    torch.save([inputs(length, left=2) for length in LENGTHS], tmp_path / "inputs")
    (tmp_path / "empty").mkdir()
    here = {"PATH": str(tmp_path / "empty"), "M2GEN_COMPILED_DIR": str(tmp_path / "kernels")}
    environment = {name: value for name, value in os.environ.items() if name != "CXX"} | here
    script = Path(__file__).with_name("load_package.py")
    words = [sys.executable, str(script), file, str(tmp_path / "inputs"), str(tmp_path / "out")]
    run = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "m2gen:" not in run.stderr, "nothing falls back"
    for length, found in zip(LENGTHS, torch.load(tmp_path / "out"), strict=True):
        with torch.no_grad():
            want = tuple(model(**inputs(length, left=2)).values())
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)

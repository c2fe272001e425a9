"""Run where nothing can be compiled: a model of a folder, forward twice and backward, its results into a file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from transformers import AutoModel

import m2gen.models
from m2gen.runtime.build import compiler


def results(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """Two calls of evaluation (the second reads kept spectra), one of training without dropout, and its gradients."""
    with torch.no_grad():
        found = [model(ids).last_hidden_state, model(ids).last_hidden_state]
    y = model(ids).last_hidden_state
    y.square().sum().backward()
    return [*found, y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("a process is started")


if __name__ == "__main__":
    model, ids, out = AutoModel.from_pretrained(sys.argv[1]).eval(), torch.load(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    subprocess.Popen = refuse  # type: ignore[assignment, misc]
    torch.save(results(model, ids), out)
    try:
        compiler.compiler()
    except m2gen.M2GenError as error:
        print(error)

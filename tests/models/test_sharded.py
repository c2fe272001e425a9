"""Models sharded by FSDP2 on two processes: trained, evaluated, loaded and evaluated again, they equal one process."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).parent / "sharded_worker.py"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Each evaluation sees the weights of its time: at the start, after each of two steps, after other weights were
    loaded into the shards."""
    words = [sys.executable, str(WORKER), str(tmp_path), str(free_port()), str(free_port())]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    one, two = (torch.load(tmp_path / f"{ranks}.pt") for ranks in (1, 2))
    assert one.keys() == two.keys() == {"M2-BERT", "M2-GPT"}
    for name, evaluations in one.items():
        assert len(evaluations) == len(two[name]) == 12
        for i, (want, y) in enumerate(zip(evaluations, two[name], strict=True)):
            assert (y - want).abs().max() <= 1e-10 * want.abs().max(), f"{name}, evaluation {i}"
        for before, after in zip(evaluations[2::3], evaluations[3::3], strict=False):
            assert (after - before).abs().max() > 1e-2 * before.abs().max(), "a step changes something"

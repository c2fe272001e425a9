"""Random arguments for every operator, in a process of its own: the right answer or an error of ours, never a crash."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("boundary.py")


def run(first: int, count: int, environment: dict[str, str]) -> None:
    """The program's last line counts outcomes; where it ends early, its last words name the call."""
    words = [sys.executable, "-X", "faulthandler", str(PROGRAM), str(first), str(count)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]}\n{done.stderr[-4000:]}"
    outcomes = dict(part.split(": ") for part in lines[-1].split("; "))
    assert sum(map(int, outcomes.values())) == count
    assert all(int(outcomes[how]) > count / 20 for how in ("right", "refused", "refused by the schema"))


@pytest.mark.slow
def test_right_or_refused() -> None:
    run(0, 2000, dict(os.environ))

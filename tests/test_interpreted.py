"""The generated Triton kernels, run by Triton's interpreter on the CPU: in two processes, one for each worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
LONGEST = "test_fused"  # about as long as all others


@pytest.mark.slow
@pytest.mark.parametrize("longest", [True, False], ids=[LONGEST, "others"])
def test_interpreted(longest: bool, tmp_path: Path) -> None:
    env = os.environ | {"TRITON_INTERPRET": "1", "M2GEN_CACHE_DIR": str(tmp_path)}
    paths = [str(path) for path in FILES if (path.stem == LONGEST) == longest]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *paths]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]

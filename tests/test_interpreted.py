"""The generated Triton kernels, run by Triton's interpreter on the CPU: in processes of about the same length."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "interpreted").glob("test_*.py"))
LONG = {
    "models": ("test_models",),
    "fused": ("test_fused",),
    "passes": ("test_passes",),
    "filters": ("test_spectrum", "test_large_filter"),
    "turned": ("test_turned", "test_compile"),
}
GROUPS = LONG | {"others": tuple(p.stem for p in FILES if not any(p.stem in group for group in LONG.values()))}


@pytest.mark.slow
@pytest.mark.parametrize("group", list(GROUPS))
def test_interpreted(group: str, tmp_path: Path) -> None:
    env = os.environ | {"TRITON_INTERPRET": "1", "M2GEN_CACHE_DIR": str(tmp_path)}
    paths = [str(path) for path in FILES if path.stem in GROUPS[group]]
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *paths]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]

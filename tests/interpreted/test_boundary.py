"""Random arguments of the products' operators, as in tests/ops/test_boundary.py, through the kernels of a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "ops" / "boundary.py"
NAMES = ("blockdiag_linear", "blockdiag_epilogue", "blockdiag_epilogue_bwd", "blockdiag_outer", "monarch_matmul",
         "monarch_backward")  # fmt: skip


def test_right_or_refused() -> None:
    words = [sys.executable, str(PROGRAM), "2000", "300", *NAMES]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-4000:]

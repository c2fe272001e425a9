"""Generated C++ under AddressSanitizer and UndefinedBehaviorSanitizer, in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("sanitized.py")
BOUNDARY = Path(__file__).parents[1] / "ops" / "boundary.py"
# behind those of m2gen, whose -O2 takes longer to compile. What a source reads and writes is looked at, not what -O2
# makes of it; by calls, which take half as long to compile as the same checks in place.
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1"
FLAGS += " --param=asan-instrumentation-with-call-threshold=0"
PROBLEMS = (
    "fftconv n=100 h=64 b=2 fp32 causal gated skip blh",  # the first with kept spectra, too
    "fftconv n=75 h=200 b=2 bf16 circular k=20 pre_gated blh",  # its last group of channels is not full
    "fftconv n=33 h=3 b=2 fp64 bidirectional post_gated skip add",
    "fftconv n=75 h=70 b=1 bf16 causal gated add blh",
    "fftconv n=130 h=21 b=1 fp16 same k=9 blh",
    "monarch 300 13x7x11 7x3x13",  # two parts; lanes, blocks and vectors that are not full
    "monarch 1 4x24x40 4x40x24",
    "monarch 37 2x6x3 12x1x1 6x2x2 4x5x3",
)


def libraries() -> str:
    """The sanitizers' runtimes, to be loaded first; skips where g++ has none."""
    gcc = shutil.which("g++")
    if gcc is None:
        pytest.skip("no g++ here")
    found = []
    for name in ("libasan.so", "libubsan.so"):
        asked = subprocess.run([gcc, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
        found.append(Path(asked.stdout.strip()))
        if not found[-1].is_absolute():
            pytest.skip(f"g++ comes without {name}")
    return " ".join(map(str, found))


def environment(cache: Path) -> dict[str, str]:
    wrapper = cache / "g++"
    wrapper.write_text(f'#!/bin/sh\nexec g++ "$@" {FLAGS}\n')
    wrapper.chmod(0o755)
    own = {"CXX": str(wrapper), "LD_PRELOAD": libraries(), "ASAN_OPTIONS": "detect_leaks=0"}
    return os.environ | own | {"M2GEN_CACHE_DIR": str(cache)}


@pytest.mark.slow
def test_no_arguments_make_an_operator_touch_foreign_memory(tmp_path: Path) -> None:
    """A sample of the operators' random arguments (tests/ops/boundary.py), of those whose kernels compile quickly."""
    names = (
        "depthwise_conv1d", "depthwise_conv1d_dw", "blockdiag_linear", "blockdiag_outer", "blockdiag_epilogue",
        "blockdiag_epilogue_bwd", "gated",
        "gated_depthwise_conv1d", "gated_depthwise_conv1d_bwd", "monarch_matmul", "monarch_backward", "turn",
    )  # fmt: skip
    words = [sys.executable, str(BOUNDARY), "50000", "60", *names]
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-400:] + done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].startswith("refused: ")


@pytest.mark.slow
def test_kernels_stay_within_their_memory(tmp_path: Path) -> None:
    """Every problem runs to its end: either sanitizer ends the process at its first finding."""
    words = [sys.executable, str(PROGRAM), *PROBLEMS]
    done = subprocess.run(words, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split("\n") == [*(f"ran {problem}" for problem in PROBLEMS), ""]

"""A trial whose kernel goes wrong: `python faulty.py HOW REQUEST`. Only plans whose kernel's name contains the text
after a colon in HOW, as in `signal:causal`, do."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

request = json.loads(Path(sys.argv[2]).read_text())
sys.path[:] = request["path"]

from m2gen.planner.stored import plan_from_json  # noqa: E402
from m2gen.runtime.bindings.native import NativeKernel  # noqa: E402
from m2gen.runtime.measure import trial  # noqa: E402

how, _, which = sys.argv[1].partition(":")
forward, backward = NativeKernel.forward, NativeKernel.backward


def broken_forward(self: NativeKernel, x: Any) -> Any:
    if how == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exit":
        os._exit(3)
    if how == "hang":
        time.sleep(1e6)
    if how == "raise":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    y = forward(self, x)
    return y + 1 if how == "wrong" else y


def broken_backward(self: NativeKernel, dy: Any, x: Any, out: Any) -> None:
    backward(self, dy, x, out)
    if how == "gradient" and out.k is not None:
        out.k.mul_(2)


if which in str(plan_from_json(request["plan"]).body):
    NativeKernel.forward, NativeKernel.backward = broken_forward, broken_backward
trial.answer(request)

"""Which CPU this is: its name, and its row of the device table."""

from __future__ import annotations

import platform
from functools import lru_cache
from pathlib import Path

import torch

_X86 = {"AVX512": "avx512", "AVX2": "avx2"}


def local_arch() -> str:
    """The table's row for this CPU, as far as PyTorch uses it."""
    return cpu_arch(torch.backends.cpu.get_cpu_capability(), platform.machine())


def cpu_arch(capability: str, machine: str) -> str:
    """The table's row for a CPU that PyTorch calls `capability`; anything unknown is generic."""
    if machine.lower() in ("aarch64", "arm64"):
        return "neon"
    return _X86.get(capability.upper().split("_")[0], "generic")


@lru_cache(maxsize=1)
def processor() -> str:
    """What the system calls this machine's processor; its family and model too, as virtual machines hide the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" not in told:
        return platform.processor() or platform.machine()
    return f"{told['model name']}, family {told.get('cpu family')} model {told.get('model')}"

"""What the planner knows of a device: one frozen row per architecture, the source of every figure beside it.

Rates are FLOP/s (a multiply-add counts two), bandwidths bytes/s, times seconds, sizes bytes. GPU rows describe the
whole device, CPU rows ONE core. GPU rates are data-sheet peaks without sparsity, CPU rates what PyTorch was seen to
reach. Data sheets were read as public pages quote them; "[unverified]" marks a figure that was found in none.
"""

from __future__ import annotations

from m2gen.device.cpus import CPUS
from m2gen.device.gpus import GPUS
from m2gen.device.row import DeviceLimits
from m2gen.errors import PlanError

__all__ = ["LIMITS", "DeviceLimits", "target"]

LIMITS: dict[str, DeviceLimits] = {row.arch: row for row in (*GPUS, *CPUS)}


def target(name: str) -> DeviceLimits:
    """The row of architecture `name`."""
    if name not in LIMITS:
        raise PlanError(f"target {name!r}", "no such architecture in the table", f"use one of {', '.join(LIMITS)}")
    return LIMITS[name]

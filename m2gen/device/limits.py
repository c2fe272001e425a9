"""What the planner knows of a device: one frozen row per architecture, the source of every figure beside it.

Rates are FLOP/s (a multiply-add counts two), bandwidths bytes/s, times seconds, sizes bytes. GPU rows describe the
whole device, CPU rows ONE core. GPU rates are data-sheet peaks without sparsity, CPU rates what PyTorch was seen to
reach. Data sheets were read as public pages quote them; "[unverified]" marks a figure that was found in none.
"""

from __future__ import annotations

import re

from m2gen import log
from m2gen.device.cpus import CPUS
from m2gen.device.gpus import CARDS, GPUS, NEAR
from m2gen.device.row import DeviceLimits
from m2gen.errors import PlanError

__all__ = ["LIMITS", "DeviceLimits", "target"]

_MAKERS = re.compile(r"nvidia|amd|geforce|instinct|rtx|sxm\d?|[\s_-]")  # what people write around a card's number
LIMITS: dict[str, DeviceLimits] = {row.arch: row for row in (*GPUS, *CPUS)}


def target(name: str) -> DeviceLimits:
    """The row of architecture `name`, such as "sm90"; or of a GPU, such as "h100" or "RTX 4090", in any spelling.

    Raises PlanError. A GPU whose row is another one's of its architecture is planned for as that one, with a line in
    the log."""
    if name in LIMITS:
        return LIMITS[name]
    card = _MAKERS.sub("", name.lower())
    row = LIMITS.get(CARDS.get(card, NEAR.get(card, name.lower())))
    if row is None:
        rows = ", ".join(f"{row.arch} ({row.description})" for row in LIMITS.values())
        raise PlanError(
            f"target {name!r}",
            "no such architecture or GPU in the table",
            f"use one of {rows}, or a GPU's own name: {', '.join((*CARDS, *NEAR))}",
        )
    if card in NEAR:
        log.fallback(f"there is no row for {name}: planned for as {row.arch} ({row.description})")
    return row

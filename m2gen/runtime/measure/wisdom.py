"""Wisdom at the device at hand: what is known, where this is, which plan that gives, and ranks that agree.

Nothing is measured here unless rigor "measure" is asked for.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

import torch
import torch.distributed as dist

from m2gen import log
from m2gen.cache import wisdom as store
from m2gen.config import config
from m2gen.device.limits import DeviceLimits
from m2gen.errors import CompileError
from m2gen.planner import search
from m2gen.planner.advice import Circumstances, Knowledge
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.runtime.build.cpu import processor
from m2gen.runtime.build.limits import default_device, live

T = TypeVar("T")
Measure = Callable[[Problem, DeviceLimits], "store.Entry | None"]
_GENERATION = [0]  # how often wisdom was read anew


def remember(entry: store.Entry) -> None:
    """Let plans of this process follow an entry from now on."""
    store.remember(entry)
    refresh()


def refresh() -> None:
    """Read wisdom again at the next plan."""
    store.known.cache_clear()
    knowledge.cache_clear()
    _GENERATION[0] += 1


def generation() -> int:
    """Another number after each `refresh`."""
    return _GENERATION[0]


def circumstances(limits: DeviceLimits, threads: int) -> Circumstances:
    """Where plans for the live device `limits` run; `threads` of a CPU."""
    if limits.kind == "gpu":
        name = limits.description.split(", planned for")[0]
        return Circumstances(name, limits.cores, f"triton {importlib.metadata.version('triton')}")
    return Circumstances(processor(), threads, _compiler(limits))


def _compiler(limits: DeviceLimits) -> str:
    """The C++ compiler's version, without its path; empty where there is none."""
    if not limits.languages:
        return ""
    from m2gen.runtime.build.compiler import compiler  # late: wisdom is read without one too

    try:
        return compiler().version
    except CompileError:
        return ""


@lru_cache(maxsize=64)
def knowledge(limits: DeviceLimits, threads: int, measure: Measure | None = None) -> Knowledge:
    """What is known of the live device, and how to get to know more."""
    return Knowledge(store.known(limits.arch), circumstances(limits, threads), measure)


def chosen(
    problem: Problem, limits: DeviceLimits, threads: int, rigor: str = "", measure: Measure | None = None
) -> Plan:
    """The plan to run on the live device. `rigor`, where not given, is M2GEN_RIGOR's; then nothing is measured where
    ranks would have to wait for one another, or inside a CUDA graph's capture."""
    wanted = rigor or config().rigor
    if not rigor and wanted == "measure" and (ranks() > 1 or _capturing()):
        log.fallback(f"{problem} is not tuned now (several ranks, or a capture): planned by estimate")
        wanted = "estimate"
    return search.plan(problem, limits, knowledge(limits, threads, measure), wanted)


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


# -- ranks -------------------------------------------------------------------------------------------------------------


def ranks() -> int:
    """How many processes torch.distributed connects; 1 without it."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if ranks() > 1 else 0


def agreed(value: T) -> T:
    """Rank 0's value, on every rank. A collective call where torch.distributed is initialised."""
    if ranks() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_wisdom(device: str | torch.device | None = None) -> int:
    """Give every rank rank 0's wisdom for `device` (default: the device at hand), and no other, so that all plan alike.

    A collective call: every rank makes it, after init_process_group and before the first convolution. Returns the
    number of entries.
    """
    arch = live(torch.device(device) if device is not None else default_device()).arch
    shared = agreed(store.known(arch))
    if rank() > 0:
        store.replace_all(arch, shared)
    refresh()
    return len(shared)

"""The limits of the device at hand: the table's row, with what can be read off the device put in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

import torch

from m2gen import log
from m2gen.cache import wisdom
from m2gen.config import config
from m2gen.device.limits import LIMITS, DeviceLimits, target
from m2gen.device.row import refitted
from m2gen.errors import PlanError
from m2gen.runtime.build.cpp_kernel import available
from m2gen.runtime.build.cpu import local_arch, processor

_elsewhere: ContextVar[DeviceLimits | None] = ContextVar("elsewhere", default=None)


@contextmanager
def planned_for(limits: DeviceLimits) -> Iterator[None]:
    """Inside, what is done on this CPU stands for what another device will do: tensors without numbers are told what
    would be done with them there."""
    token = _elsewhere.set(limits)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def live(device: torch.device) -> DeviceLimits:
    """The limits of `device`, a CPU core or a GPU; memoised. An architecture without a row gets the nearest one."""
    return _elsewhere.get() or _live(device)


def elsewhere() -> bool:
    """Whether what is done here stands for what another device will do (`planned_for`)."""
    return _elsewhere.get() is not None


def stands_for_gpu() -> bool:
    """Whether tensors on the CPU are computed as on a GPU: by Triton's interpreter, or not at all."""
    other = _elsewhere.get()
    return config().triton_interpret if other is None else other.kind == "gpu"


@lru_cache(maxsize=64)
def _live(device: torch.device) -> DeviceLimits:
    if device.type == "cpu":
        return _cpu()
    if device.type == "cuda":
        return _gpu(device)
    raise PlanError(f"limits of {device}", "neither a CPU nor a CUDA or ROCm device", "move the tensors to one of them")


def default_device() -> torch.device:
    """The current GPU where PyTorch sees one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _cpu() -> DeviceLimits:
    if config().triton_interpret:
        return replace(target("sm90"), description="Triton's interpreter on this CPU (TRITON_INTERPRET=1)")
    row = _fitted(target(local_arch()), processor())
    log.once(f"this CPU is planned for as {row.arch} ({row.description})")
    return replace(
        row,
        description=f"one core of this CPU, planned for as {row.description}",
        languages=row.languages if _compiles() else (),
        memory_bytes=_memory(),
    )


def _fitted(row: DeviceLimits, name: str) -> DeviceLimits:
    """The row with the constants that `m2gen tune --fit` found for this very processor or card, where it did."""
    found = wisdom.constants(row.arch, name)
    try:
        return refitted(row, found)
    except (ValueError, TypeError) as error:
        log.fallback(f"fitted constants left out: {error}")
        return row


def _compiles() -> bool:
    """Whether generated C++ can be compiled and run here."""
    if why := available():
        log.fallback(f"no generated C++ here: {why}")
        return False
    return True


def _memory() -> int:
    """Bytes of main memory; the row's own figure stands in on systems that do not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        log.fallback("this system does not tell its memory size: 16 GiB are assumed")
        return target("generic").memory_bytes


def _gpu(device: torch.device) -> DeviceLimits:
    found = torch.cuda.get_device_properties(device)
    name = getattr(found, "gcnArchName", "") if torch.version.hip else ""
    exact = name.split(":")[0] or f"sm{found.major}{found.minor}"
    row = _fitted(nearest_gpu(exact), found.name)
    shared = getattr(found, "shared_memory_per_block_optin", row.shared_bytes) or row.shared_bytes
    return replace(
        row,
        description=f"{found.name}, planned for as {row.description}",
        cores=found.multi_processor_count,
        languages=row.languages if find_spec("triton") else (),
        memory_bytes=found.total_memory,
        shared_bytes=shared,
        exact=exact,
    )


def nearest_gpu(arch: str) -> DeviceLimits:
    """The row of `arch`, or of the newest documented one not newer than it, with a line in the log."""
    if arch in LIMITS:
        return LIMITS[arch]
    if arch.startswith("gfx"):
        row = target("gfx942")
    else:
        documented = sorted(int(name[2:]) for name in LIMITS if name.startswith("sm"))
        asked = int(arch[2:]) if arch[2:].isdecimal() else documented[0]
        row = target(f"sm{max((sm for sm in documented if sm <= asked), default=documented[0])}")
    log.fallback(f"no limits are known for {arch}: planned for as {row.arch} ({row.description})")
    return row

"""Switching autocast off where single precision is needed, and asking whether it is on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which nothing on x's device is cast. The meta device knows no autocast, and refuses the question."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def as_autocast(x: Tensor) -> Tensor:
    """x as every operator that autocast casts for would see it: cast once, where several read it."""
    if not autocasting(x) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def autocasting(x: Tensor) -> bool:
    """Whether something on x's device may be cast."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)

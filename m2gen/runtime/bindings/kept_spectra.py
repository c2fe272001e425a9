"""Spectra kept from call to call, for filters that somebody has declared not to change.

A filter is kept by its user's own act (`m2gen.prepare_filter`): its taps are copied, nobody writes to the copies, and
calls with just these tensors find the spectra again by their addresses, whatever lies between (autograd, vmap, compiled
graphs). No other filter has its spectra kept: values change in ways that count no version.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from m2gen.log import fallback
from m2gen.runtime.bindings.spectral import Operands

T = TypeVar("T")

MOST = 8  # different transforms of one filter that are kept; never dropped again, since a CUDA graph may read them

_known: weakref.WeakValueDictionary[int, KeptFilter] = weakref.WeakValueDictionary()


class KeptFilter:
    """Taps k, k_rev (H, K) and skip (H,) that nobody writes to, and what kernels derived from them."""

    def __init__(self, k: Tensor, k_rev: Tensor | None, skip: Tensor | None) -> None:
        self.tensors = (k, k_rev, skip)
        self._derived: dict[Hashable, Any] = {}
        if type(k) is Tensor and k.device.type != "meta" and k.numel():  # not a fake one, which has no address
            _known[k.data_ptr()] = self  # as long as this lives, no other tensor is at that address

    def get(self, how: Hashable, derive: Callable[[], T]) -> T:
        """`derive()`, or its earlier result for the same `how`."""
        if how in self._derived:
            found: T = self._derived[how]
            return found
        value = derive()
        if len(self._derived) >= MOST:
            fallback(f"a kept filter has met more than {MOST} transforms: spectra of others are made in every call")
        elif not _capturing():  # what a capture computes is there only after a replay
            self._derived[how] = value
        return value

    @property
    def nbytes(self) -> int:
        """Bytes of the taps and of all that is kept of them."""
        held = [*self.tensors, *_tensors(self._derived.values())]
        return sum(t.numel() * t.element_size() for t in held if t is not None)

    def forget(self) -> None:
        """Drop what was derived."""
        self._derived.clear()


def of(x: Operands) -> KeptFilter | None:
    """The kept filter whose own tensors are in x; None for any other."""
    kept = _known.get(x.k.data_ptr()) if _known else None
    if kept is not None and all(_same(a, b) for a, b in zip(kept.tensors, (x.k, x.k_rev, x.skip), strict=True)):
        return kept
    return None


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a is b or (
        a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.is_neg() == b.is_neg()
    )


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        found += [value] if isinstance(value, Tensor) else _tensors(value) if isinstance(value, tuple) else []
    return found


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()

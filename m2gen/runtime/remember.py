"""Values derived from tensors, kept while the tensors live and do not change.

For evaluation only: with grad mode off, outside a CUDA graph's capture (a replay would not see a new weight), and for
tensors that count their versions (those made in inference mode do not). Fused optimizers change parameters without
counting a version, so every optimizer's step counts for all tensors. Writing through `tensor.data` is not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

T = TypeVar("T")

_steps = 0  # of all optimizers in this process


def _count(*_: object) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


def versions(tensors: Sequence[Tensor | None]) -> tuple[int | None, ...]:
    """What changes whenever one of the tensors may have: compare it, and the tensors themselves by identity."""
    return (_steps, *(None if t is None else t._version for t in tensors))


class Remembered:
    """One value for each leading tensor: what was derived from it last."""

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()

    def get(self, tensors: Sequence[Tensor | None], how: Hashable, derive: Callable[[], T]) -> T:
        """`derive()`, or its earlier result if it came from the same tensors, unchanged since, with the same `how`."""
        if not _countable(tensors):
            return derive()
        seen = versions(tensors)
        kept = self._kept.get(tensors[0], None)  # type: ignore[no-untyped-call]
        same = kept is not None and all(a() is b for a, b in zip(kept[2], tensors, strict=True))
        if kept is not None and same and kept[:2] == (how, seen):
            value: T = kept[3]
            return value
        value = derive()
        self._kept[tensors[0]] = (how, seen, [_reference(t) for t in tensors], value)
        return value


def _reference(tensor: Tensor | None) -> Callable[[], Tensor | None]:
    return (lambda: None) if tensor is None else weakref.ref(tensor)


def _countable(tensors: Sequence[Tensor | None]) -> bool:
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    return not (torch.is_grad_enabled() or capturing or any(t is not None and t.is_inference() for t in tensors))

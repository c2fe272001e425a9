"""Memory that shows where it was not written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill every `torch.empty_like` with NaN, so that an entry left unwritten shows."""
    empty_like = torch.empty_like

    def filled(*args: object, **kwargs: object) -> torch.Tensor:
        result = empty_like(*args, **kwargs)  # type: ignore[arg-type]
        return result.fill_(float("nan")) if result.is_floating_point() else result

    torch.empty_like = filled
    try:
        yield
    finally:
        torch.empty_like = empty_like

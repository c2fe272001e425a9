"""Keywords that a trainer hands on to a model's loss."""

from __future__ import annotations

from collections.abc import Iterable

LOSS_OPTIONS = ("num_items_in_batch",)


def check_loss_options(options: Iterable[str]) -> None:
    """Raise TypeError for a keyword that no loss takes: it must not vanish in silence."""
    unknown = [name for name in options if name not in LOSS_OPTIONS]  # no sets: torch.compile of 2.6 has none of keys
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")

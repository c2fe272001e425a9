"""A digest of all candidates of a problem, and the candidates by name.

Wisdom names a plan by `Plan.choice`, so it can only ever pick one of the candidates, each of which is legal.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

from m2gen.planner.plan import Plan

_COUNTED = 2**30  # bytes in use at once


def digest(plans: Iterable[Plan]) -> str:
    """12 digits that change with the set of candidates, and with nothing else.

    Plans of more than a gigabyte do not count, unless the least is one: whether they are candidates depends on the
    memory at hand.
    """
    sizes = [(plan.body.estimate.working_set, plan.choice) for plan in plans]
    counted = max(_COUNTED, min((size for size, _ in sizes), default=0.0))
    texts = sorted(text for size, text in sizes if size <= counted)
    return sha256("\n".join(texts).encode()).hexdigest()[:12]


@lru_cache(maxsize=1024)
def by_choice(plans: tuple[Plan, ...]) -> dict[str, Plan]:
    """Each candidate under its text."""
    return {plan.choice: plan for plan in plans}

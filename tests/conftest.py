"""Every test runs on one thread, with hypothesis deterministic and without deadlines: timings are for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "m2gen",
    deadline=None,
    derandomize=True,
    max_examples=200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
settings.load_profile("m2gen")
torch.set_num_threads(1)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every `torch.empty_like` and `new_empty` with NaN, so that an entry left unwritten shows."""
    empty_like = torch.empty_like

    def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
        result = empty_like(*args, **kwargs)
        return result.fill_(float("nan")) if result.is_floating_point() else result

    monkeypatch.setattr(torch, "empty_like", poisoned)
    yield

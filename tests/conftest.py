"""Every test runs on one thread, with hypothesis deterministic and without deadlines: timings are for benchmarks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from m2gen.testing.poison import poisoned

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
def poison() -> Iterator[None]:
    """Fill every `torch.empty_like` with NaN, so that an entry left unwritten shows."""
    with poisoned():
        yield

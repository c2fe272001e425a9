"""Every test runs on one thread, with hypothesis deterministic and without deadlines: timings are for benchmarks."""

from __future__ import annotations

import gc
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


def pytest_configure(config: pytest.Config) -> None:
    """A worker without work takes half of what another has left: with what takes long first, all end together."""
    if getattr(config.option, "dist", "no") == "load":  # the default of -n
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "slow" not in item.keywords)


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage has to look through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def poison() -> Iterator[None]:
    """Fill every `torch.empty_like` with NaN, so that an entry left unwritten shows."""
    with poisoned():
        yield

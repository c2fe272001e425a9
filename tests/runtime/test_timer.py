"""The comparison of calls, on clocks that are made up: nothing here depends on how fast the machine is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from m2gen.runtime.measure import timer
from m2gen.runtime.measure.timer import Samples, best_of, interleaved

CPU = torch.device("cpu")


class Clock:
    """A clock that only the calls move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def call(self, name: str, seconds: Callable[[int], float]) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds(len(self.order))
            self.order.append(name)

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    found = Clock()
    for name in ("thread_time", "perf_counter"):
        monkeypatch.setattr(timer.time, name, lambda: found.now)
    yield found


def test_every_round_has_every_call_in_an_order_of_its_own(clock: Clock) -> None:
    calls = {name: clock.call(name, lambda _: 1.0) for name in "abcd"}
    found = interleaved(calls, CPU, seconds=0.0, least=8, most=8)
    rounds = [clock.order[4 + 4 * i : 8 + 4 * i] for i in range(8)]
    assert clock.order[:4] == list("abcd"), "a warm-up first"
    assert all(sorted(one) == list("abcd") for one in rounds)
    assert len({tuple(one) for one in rounds}) > 4
    assert all(one.seconds == (1.0,) * 8 for one in found.values())
    first = list(clock.order)
    clock.order.clear()
    interleaved(calls, CPU, seconds=0.0, least=8, most=8)
    assert clock.order == first, "the same order every time"


def test_budget_and_repeats(clock: Clock) -> None:
    found = interleaved({"slow": clock.call("slow", lambda _: 1.0)}, CPU, seconds=6.5, least=2, most=60)
    assert len(found["slow"].seconds) == 7
    clock.order.clear()
    quick = interleaved({"quick": clock.call("quick", lambda _: 1e-5)}, CPU, seconds=0.0, least=3, most=3)
    assert len(clock.order) == 1 + 3 * 50 and quick["quick"].median == pytest.approx(1e-5)


def test_a_drift_meets_all_alike(clock: Clock) -> None:
    """A machine that becomes ten times slower while it measures: ratios stay what they are."""
    drift = {name: clock.call(name, lambda i, own=own: own * (1 + i / 50)) for name, own in (("a", 1.0), ("b", 0.9))}
    found = interleaved(drift, CPU, seconds=0.0, least=60, most=60)
    ratio, unsure = found["b"].ratio(found["a"])
    assert ratio == pytest.approx(0.9, rel=0.02) and unsure < 0.02
    assert best_of(found, "a", 0.02) == "b"


def steady(*seconds: float) -> dict[str, Samples]:
    return {name: Samples((own,) * 9) for name, own in zip("abcd", seconds, strict=False)}


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ((1.0, 0.99, 1.0), "a"),  # within noise of the default
        ((1.0, 0.5, 0.9), "b"),
        ((1.0, 0.905, 0.9), "b"),  # a tie of two that beat it: the planner's order
        ((1.0, 0.93, 0.9), "c"),
        ((1.0, 2.0, 3.0), "a"),
    ],
)
def test_ties_go_to_the_planners_order(times: tuple[float, ...], best: str) -> None:
    assert best_of(steady(*times), "a", 0.02) == best


def test_what_is_not_certain_does_not_displace_the_default() -> None:
    shaky = Samples((0.5, 1.5, 0.6, 1.6, 0.4, 1.4, 0.5, 1.5, 0.6))
    assert best_of({"a": Samples((1.0,) * 9), "b": shaky}, "a", 0.02) == "a"
    assert best_of({"a": Samples((1.0,)), "b": Samples((0.1,))}, "a", 0.02) == "a", "one round tells nothing"

"""The fit, on times that are made up from other constants: it finds estimates as good as those constants."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from m2gen.cache.wisdom import Entry, Key
from m2gen.device.limits import DeviceLimits, target
from m2gen.device.row import refitted
from m2gen.planner import search
from m2gen.planner.choice import digest
from m2gen.planner.problems import parse
from m2gen.runtime.build import cpu, limits
from m2gen.runtime.measure import fit

ROW = target("avx512")
TRUTH = replace(
    ROW,
    native_shares=tuple((at, 0.6 * share) for at, share in ROW.native_shares),
    native_numbers=2 * ROW.native_numbers,
    native_call=3 * ROW.native_call,
    fft_rates=tuple((at, 1.5 * rate) for at, rate in ROW.fft_rates),
)
TEXTS = [
    "fftconv n=64 h=8 b=2 fp32 causal",
    "fftconv n=784 h=64 b=2 bf16 causal gated",
    "fftconv n=2048 h=96 b=4 fp32 bidirectional",
    "fftconv n=6000 h=32 b=2 bf16 causal gated skip",
    "fftconv n=65536 h=8 b=1 fp32 causal",
]


def entries(truth: DeviceLimits, noise: float = 0.0, outlier: float = 1.0) -> list[Entry]:
    """What tuning would keep on a machine whose times are the estimates of `truth`."""
    random = np.random.default_rng(0)
    found = []
    for text in TEXTS:
        plans = search.rank(parse(text), ROW).plans
        timed = [*plans[:8], next(plan for plan in plans if plan.solver == "library")]
        seconds = {p.choice: p.expected(truth) * math.exp(noise * random.standard_normal()) for p in timed}
        seconds[timed[-1].choice] *= outlier if text == TEXTS[0] else 1.0
        best = min(timed, key=lambda plan: seconds[plan.choice])
        key = Key(problem=text, arch="avx512", processor="p", threads=1, candidates=digest(plans), compiler="c")
        found.append(
            Entry(
                key=key,
                choice=best.choice,
                style=best.style,
                default=plans[0].choice,
                measured=text,
                seconds=seconds,
            )
        )
    return found


@pytest.mark.parametrize(("noise", "outlier", "error"), [(0.0, 1.0, 1.02), (0.02, 1.0, 1.04), (0.0, 10.0, 1.20)])
def test_estimates_come_near_the_measurements(noise: float, outlier: float, error: float) -> None:
    known = entries(TRUTH, noise, outlier)
    before = fit.quality(known, ROW)
    after = fit.quality(known, fit.fitted(fit.samples(known, ROW), ROW))
    assert before.error > 1.3 and after.error < error
    assert not after.unmeasured
    if outlier == 1:
        assert after.mean_regret <= before.mean_regret
        assert after.worst_regret < (1.05 if noise else 1.005)


def test_an_outlier_moves_little() -> None:
    clean, spoilt = (fit.fitted(fit.samples(known, ROW), ROW) for known in (entries(TRUTH), entries(TRUTH, outlier=10)))
    for text in TEXTS[1:]:
        plan = search.rank(parse(text), ROW).plans[0]
        assert plan.expected(spoilt) == pytest.approx(plan.expected(clean), rel=0.05)


def test_without_need_nothing_moves() -> None:
    known = entries(ROW)
    assert fit.quality(known, ROW).mean_regret == 1.0
    row = fit.fitted(fit.samples(known, ROW), ROW)
    for name in fit.constants(ROW):
        assert np.array(getattr(row, name)) == pytest.approx(np.array(getattr(ROW, name)), rel=0.02)


def test_regret_is_the_price_of_the_choice() -> None:
    (first, *_) = known = entries(ROW)
    others = [seconds for name, seconds in first.seconds.items() if name != first.default]
    slow = replace(first, seconds=dict(first.seconds) | {first.default: 3 * min(others)})
    assert fit.quality([slow], ROW).worst_regret == pytest.approx(3)
    assert fit.quality(known, ROW).regrets.keys() == set(TEXTS)


@pytest.mark.parametrize(
    "constants",
    [
        {"native_call": -1.0},
        {"native_call": float("nan")},
        {"native_call": True},
        {"memory_bytes": 1.0},
        {"native_shares": [[1, 1.0]]},
        {"fft_mixed": [1.0]},
        {"no such": 1.0},
    ],
)
def test_constants_that_mean_nothing_are_left_out(
    monkeypatch: pytest.MonkeyPatch, constants: dict[str, object]
) -> None:
    with pytest.raises(ValueError):
        refitted(ROW, constants)
    said: list[str] = []
    monkeypatch.setattr(limits.log, "fallback", said.append)
    monkeypatch.setattr(limits.wisdom, "constants", lambda arch, processor: constants)
    assert limits._fitted(ROW, "p") == ROW and len(said) == 1


def test_fitted_constants_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = {name: getattr(TRUTH, name) for name in fit.constants(ROW)}
    monkeypatch.setattr(limits.wisdom, "constants", lambda arch, processor: constants)
    assert limits._fitted(ROW, "p") == TRUTH
    assert "native_call=" in fit.printed(TRUTH, ROW)
    assert cpu.processor() and torch.get_num_threads() == 1

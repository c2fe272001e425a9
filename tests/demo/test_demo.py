"""The whole demo in seconds, on a small folder: every part is printed and the figures are sane."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import m2gen.demo
from m2gen.demo import Settings, training
from m2gen.demo.timing import time_long_convolution, torch_fft_conv
from m2gen.demo.training import bits_per_byte, schedule
from m2gen.errors import M2GenError
from m2gen.reference import fftconv as oracle

SMALL = Settings(d_model=32, n_layers=2, context=64, evaluated=2048, sampled=20)


def library(root: Path) -> Path:
    for i in range(60):
        (root / f"module_{i}.py").write_text(f"def function_{i}(x):\n    return x + {i * 7 % 60}\n\n\n" * 20)
    return root


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many steps 0.05 minutes are: by the clock that training sees, every step takes as long, on any machine."""
    count = 60
    readings = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(readings) * 3.0 / count)
    monkeypatch.setattr(training, "time", clock)
    return count


def test_report_has_every_part(tmp_path: Path, steps: int) -> None:
    out = io.StringIO()
    report = m2gen.demo.main(0.05, seed=1, root=library(tmp_path), settings=SMALL, console=Console(file=out, width=200))
    printed = out.getvalue()
    for part in (
        "held out",
        "plan     (plan",
        "kernel   ",
        "unigram",
        "bigram",
        "trigram",
        "before training",
        "bits per byte",
    ):
        assert part in printed
    for part in ("20 bytes after 'def '", "torch.fft", "m2gen", "no attention", "Dirichlet"):
        assert part in printed
    bits = report.bits
    assert 8 > bits["unigram"] > bits["bigram"] > bits["trigram"] > 0
    assert bits["before"] == pytest.approx(8, abs=0.5)
    assert bits["after"] < bits["before"] - 1
    assert f"{bits['after']:.3f}" in printed
    assert f"{bits['bigram']:.3f}" in printed
    assert report.steps == steps
    assert report.sample.startswith(b"def ")
    assert len(report.sample) == 24
    assert all(0 < t.fastest <= t.median <= t.slowest for t in report.timings)


def test_bits_per_byte_is_the_mean_over_all_bytes() -> None:
    torch.manual_seed(0)
    model = SMALL.model()
    windows = torch.randint(256, (5, 33))
    logits = model(windows[:, :-1])
    nats = -logits.log_softmax(-1).gather(-1, windows[:, 1:, None]).mean()
    assert bits_per_byte(model, windows, batch=2) == pytest.approx(nats.item() / math.log(2), rel=1e-5)


def test_schedule_rises_then_falls() -> None:
    factors = [schedule(share / 100, 0.05) for share in range(101)]
    assert 0 < factors[0] < 0.05
    assert max(factors) == pytest.approx(1, abs=0.02)
    assert factors[100] == pytest.approx(0.02)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_the_timed_calls_are_the_same_formula() -> None:
    u, pre, post = torch.randn(3, 2, 4, 30)
    k, skip = torch.randn(4, 30), torch.randn(4)
    want = oracle.fftconv(u, k, pre_gate=pre, post_gate=post, skip=skip)
    torch.testing.assert_close(torch_fft_conv(u, k, pre, post, skip).double(), want, rtol=1e-4, atol=1e-4)
    ours, theirs = time_long_convolution(2, 4, 30, rounds=7)
    assert (ours.name, theirs.name) == ("m2gen", "torch.fft")


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_no_minutes_are_refused_before_anything_is_read(minutes: float, tmp_path: Path) -> None:
    with pytest.raises(M2GenError, match="Give a number above 0"):
        m2gen.demo.main(minutes, root=tmp_path / "nowhere")

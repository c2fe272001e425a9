"""What is made of benchmark results: exponents, intervals, comparisons of two runs, the page with its pictures."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from bench import compare, pictures, report, trained
from bench.fit import median_interval, power
from bench.timing import ratios, summary
from m2gen.errors import M2GenError


def row(group: str, problem: str, times: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """As the benchmarks write it; the first contender is what the others are measured by."""
    first, *others = times
    ratio = {name: ratios(times[first], times[name]) for name in others}
    return {
        "group": group,
        "problem": problem,
        "ms": {k: summary(v) for k, v in times.items()},
        "ratio": ratio,
        "times": times,
    } | more


def noisy(ms: float, seed: int, rounds: int = 9) -> list[float]:
    chance = random.Random(seed)
    return [ms * (1 + 0.05 * chance.random()) for _ in range(rounds)]


def run(tmp_path: Path, name: str, rows: list[dict[str, Any]], **provenance: Any) -> str:
    facts = {"date": "2026-01-01", "processor": "a CPU", "threads": 1, "fma_peak_gflops": 200.0, "copy_gbs": 30.0}
    (tmp_path / name).write_text(json.dumps({"provenance": facts | provenance, "results": rows}))
    return str(tmp_path / name)


def causal(n: int, ours: float, theirs: float = 100.0, seed: int = 0) -> dict[str, Any]:
    times = {"torch.fft": noisy(theirs, seed), "m2gen": noisy(ours, seed + 1)}
    return row(
        "causal", f"fftconv n={n} h=768 b=1 fp32 causal", times, gflops=80.0, peak_mib={"torch.fft": 9, "m2gen": 1}
    )


@pytest.mark.parametrize("exponent", [1.0, 1.5, 4 / 3])
def test_a_power_law_is_found(exponent: float) -> None:
    sizes = [2**i for i in range(8, 23)]
    law = power(sizes, [3 * n**exponent for n in sizes])
    assert law.exponent == pytest.approx(exponent) and law.scale == pytest.approx(3) and law.error < 1e-9
    assert law(1000) == pytest.approx(3 * 1000**exponent)
    chance = random.Random(1)
    law = power(sizes, [n**exponent * math.exp(chance.gauss(0, 0.1)) for n in sizes])
    assert abs(law.exponent - exponent) < 4 * law.error and 0.001 < law.error < 0.05


def test_an_exponent_needs_three_points() -> None:
    with pytest.raises(ValueError, match="3 points, not 2"):
        power([1, 2], [1, 2])


def test_an_interval_of_the_median_narrows_with_more_rounds() -> None:
    few, many = (median_interval(noisy(10, 3, rounds)) for rounds in (5, 200))
    assert few[0] < 10.25 < few[1] and many[0] < 10.25 < many[1]
    assert many[1] - many[0] < few[1] - few[0]
    assert median_interval(noisy(10, 3)) == median_interval(noisy(10, 3))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (20, 100, "same"),
        (21.5, 100, "slower"),
        (18.5, 100, "faster"),
        (30, 150, "same"),  # a machine that was slower that day
        (22, 200, "faster"),  # slower in milliseconds, and yet
    ],
)
def test_changes_are_judged_by_what_was_measured_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ours: float, theirs: float, expected: str
) -> None:
    old = run(tmp_path, "old.json", [causal(1024, 20.0), causal(8192, 20.0, seed=5)])
    new = run(tmp_path, "new.json", [causal(1024, ours, theirs, seed=9), causal(8192, 20.0, seed=13)])
    assert compare.main(old, new) == (1 if expected == "slower" else 0)
    told = capsys.readouterr().out
    counts = {"same": 1} | {expected: 1 + (expected == "same")}
    for change in ("slower", "faster", "same"):
        assert f"{counts.get(change, 0)} {change}" in told
    if expected != "same":
        assert f"{expected}: causal fftconv n=1024" in told


def test_one_bad_round_is_no_regression(tmp_path: Path) -> None:
    old = run(tmp_path, "old.json", [causal(1024, 20.0)])
    bad = causal(1024, 20.0, seed=9)
    bad["times"]["m2gen"][3] *= 40
    assert compare.main(old, run(tmp_path, "new.json", [bad])) == 0


def test_files_without_rounds_are_compared_by_quartiles(tmp_path: Path) -> None:
    rows = [causal(1024, 20.0), causal(1024, 25.0)]
    for one in rows:
        del one["times"]
    old, new = (run(tmp_path, name, [one]) for name, one in zip(("old.json", "new.json"), rows, strict=True))
    assert compare.main(old, new) == 1 and compare.main(new, old) == 0 and compare.main(old, old) == 0


def test_what_is_gone_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = run(tmp_path, "old.json", [causal(1024, 20.0), causal(8192, 20.0)])
    assert compare.main(old, run(tmp_path, "new.json", [causal(1024, 20.0)], processor="another CPU")) == 0
    told = capsys.readouterr()
    assert "1 missing" in told.out and "n=8192" in told.out and "differ in processor" in told.err


def models_row(length: int, dtype: str) -> dict[str, Any]:
    times = {"BERT, fused attention": noisy(length, 1), "M2-BERT": noisy(length / 3, 2)}
    found = row("models", f"L={length} {dtype}", times, length=length, dtype=dtype)
    found["ratio"] = {"BERT, fused attention": found["ratio"]["M2-BERT"]}
    rates = {name: 1e3 * length / ms["median"] for name, ms in found["ms"].items()}
    return found | {
        "tokens_per_s": rates,
        "peak_mib": dict.fromkeys(times, 50.0),
        "left_out": {"BERT, plain": "no room"},
    }


def everything() -> list[dict[str, Any]]:
    rows = [causal(n, 5.0) for n in (1024, 4096, 8192)]
    for n in (2**i for i in range(8, 23, 2)):
        h = 2**22 // n
        times = {"torch.fft": [40 + n / 1e6] * 3, "m2gen": [5.0] * 3, "order 2": [h * (n / 1e3) ** 1.5] * 3}
        memory = {"torch.fft": 80.0, "m2gen": n / 2**16}
        rows.append(row("growth", f"fftconv n={n} h={h} b=1 fp32 causal", times, peak_mib=memory, gflops=9.0))
        rows.append({"group": "error", "problem": f"fftconv n={n}", "error": {"torch.fft": 1e-7, "m2gen": 2e-7}})
    rows.append(row("dispatch", "1000 calls", {"torch: x * x": [1.0] * 3, "m2gen: fftconv": [20.0] * 3}))
    return [*rows, *(models_row(n, dtype) for n in (512, 1024) for dtype in ("fp32", "bf16"))]


def test_the_page_has_every_group_and_every_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pictures.main([run(tmp_path, "all.json", everything())], str(tmp_path / "out"))
    page = (tmp_path / "out" / "report.md").read_text()
    for group in ("causal", "growth", "error", "dispatch", "models"):
        assert f"### {group}" in page
    for part in ("| order 2 | 1.500 ± 0.000 | $N^{3/2}$ | 1.500 |", "80 (40%)", "left out: no room", "a CPU, 1 thread"):
        assert part in page, part
    for name in ("speedup", "models", "growth", "roofline", "error", "dispatch"):
        assert f"({name}.png)" in page and (tmp_path / "out" / f"{name}.png").read_bytes()[1:4] == b"PNG"


def test_memory_of_a_few_pages_is_no_law() -> None:
    assert report.memory_law([2**i for i in range(8, 13)], [0.0, -0.1, 0.05, 0.2, 0.4]) is None
    law = report.memory_law([2**i for i in range(8, 13)], [0.0, -0.1, 1, 2, 4])
    assert law is not None and law.exponent == pytest.approx(1)


def test_models_that_were_trained_have_a_row_each(tmp_path: Path) -> None:
    runs = [{"parameters": 1234, "learning_rate": 1e-3, "steps": 5, "cpu_seconds": 10.0 + i} for i in range(3)]
    rows = [trained.row("digits", "accuracy", name, [0.5, 0.6, 0.7], runs) for name in ("ours", "theirs")]
    text = report.page([report.read(run(tmp_path, "trained.json", rows))], [])
    assert "| digits | ours | 1,234 | 0.600 (0.100) accuracy | 3 | 11 |" in text and "theirs" in text


def test_every_committed_result_is_read() -> None:
    files = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.json"))
    assert len(files) > 5
    runs = [report.read(file) for file in files]
    text = report.page(runs, [])
    assert all(f"## {file.name}" in text for file in files) and all(one.rows for one in runs)


@pytest.mark.parametrize("text", ["", "{}", '{"results": []}', "[]"])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(M2GenError, match="Give a file that a benchmark wrote"):
        report.read(tmp_path / "x.json")

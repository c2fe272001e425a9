"""`m2gen tune` and `m2gen wisdom`, as commands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from m2gen import tuning
from m2gen.cache import wisdom as store
from m2gen.cli import main
from m2gen.config import Config
from m2gen.errors import M2GenError
from m2gen.runtime.build import cpu, limits
from m2gen.runtime.measure import tune, wisdom
from m2gen.runtime.measure.timer import Samples

MEASURED = str(Path(__file__).parents[1] / "bench" / "results" / "2026-11-26-gpu-kernels-h100.json")
TINY = "fftconv n=40 h=3 b=1 fp32 causal"


def run(*words: str) -> Result:
    return CliRunner().invoke(main, words)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Wisdom of the test's own, and a stopwatch by which the second candidate is the best."""

    def interleaved(calls: dict[str, object], device: object, **_: object) -> dict[str, Samples]:
        return {name: Samples((0.5 if i == 1 else 1.0,) * 9) for i, name in enumerate(calls)}

    monkeypatch.setattr(tune, "interleaved", interleaved)
    for module in (store, wisdom):
        monkeypatch.setattr(module, "config", lambda: Config(wisdom=str(tmp_path / "wisdom")))
    monkeypatch.setattr(store, "shipped", lambda arch: [])
    monkeypatch.setattr(store, "_here", {})
    wisdom.refresh()
    yield tmp_path / "wisdom"
    monkeypatch.undo()
    wisdom.refresh()
    limits._live.cache_clear()


def test_problems_of_the_corpus() -> None:
    assert len(tuning.problems_of_corpus("gpu")) > len(tuning.problems_of_corpus("cpu")) > 10


def test_tune_then_everything_about_it(folder: Path, tmp_path: Path) -> None:
    done = run("tune", *TINY.split(), "fftconv", "n=8", "h=1")
    assert done.exit_code == 0, done.output
    assert "2 tuned, 2 of them away from the estimate's choice; 0 tuned before; 0 not tuned" in done.output
    assert "2.000 times as fast as the estimate's choice" in done.output
    assert "2 tuned before" in run("tune", TINY, "fftconv n=8").output
    assert "chosen by wisdom: measured" in run("plan", TINY).output
    shown = run("wisdom", "show").output
    assert "n=40" in shown and "n=8" in shown

    table, merged = str(tmp_path / "table.json"), str(tmp_path / "merged.json")
    assert "2 entries" in run("wisdom", "export", table).output
    assert len(json.loads(Path(table).read_text())["entries"]) == 2
    assert "1 entries forgotten" in run("wisdom", "forget", TINY).output
    assert len(store.load(folder)) == 1
    assert "2 entries" in run("wisdom", "merge", table, str(folder), "--out", merged).output
    assert "1 entries taken" in run("wisdom", "import", merged).output
    assert len(store.load(folder)) == 2
    assert "2 entries forgotten" in run("wisdom", "forget", "--all").output
    assert store.load(folder) == []


def test_fit_keeps_constants_for_this_processor(folder: Path) -> None:
    row = limits.target("avx512")
    none = run("tune", "--fit")
    assert none.exit_code == 2 and "m2gen tune --corpus --threads 1 first" in none.stderr
    done = run("tune", TINY, "fftconv n=500 h=2", "--fit", "--print")
    assert done.exit_code == 0 and "before: estimates off by" in done.output and "after:" in done.output
    assert "nothing is kept; m2gen tune --fit, without --print" in done.output
    assert not list(folder.glob("*.limits.json"))
    done = run("tune", "--fit")
    assert done.exit_code == 0 and f"kept for {cpu.processor()} in" in done.output
    (kept,) = folder.glob("*.limits.json")
    found = json.loads(kept.read_text())
    assert found["processor"] == cpu.processor()
    assert store.constants(found["arch"], cpu.processor()) == found["constants"]
    assert row == limits.target("avx512"), "the table itself is as it was"


def test_a_gpu_is_fitted_to_a_file_of_measured_kernels(folder: Path) -> None:
    """Of a named row only the constants are printed: the card is not here."""
    done = run("tune", "--fit", "--from", MEASURED, "--target", "sm90")
    assert done.exit_code == 0, done.output
    for part in (
        "81 measured kernels",
        "measured on NVIDIA H100 80GB HBM3; fitted for the row sm90, NVIDIA H100 SXM5 80 GB",
        "before (the row as it is): estimates off by",
        "after (what is printed): ",
        "by a fit to the others",
        "product_seconds=",
        "nothing is kept",
        "m2gen/device/gpus.py",
    ):
        assert part in done.output
    assert not list(folder.glob("*.limits.json"))


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("tune",), 2, "give a PROBLEM"),
        (("tune", "--from", "x.json"), 2, "--from with --fit"),
        (("tune", "--fit", "--target", "sm90"), 2, "--target goes with --from"),
        (("tune", "--fit", "--from", "nowhere.json", "--target", "sm90"), 2, "no such file"),
        (("tune", "--fit", "--from", MEASURED, "--target", "sm80"), 2, "measured on NVIDIA H100"),
        (("tune", "--fit", "--from", MEASURED, "--target", "avx2"), 2, "Name its row"),
        (("tune", "--fit", "--from", MEASURED), 2, "Name its row"),
        (("tune", "fftconv n=0"), 2, "from 1 to 2^40"),
        (("wisdom", "forget"), 2, "--all"),
        (("wisdom", "merge", "nowhere.json", "--out", "x.json"), 2, "no such file"),
    ],
)
def test_errors_are_one_clean_message(words: tuple[str, ...], code: int, part: str) -> None:
    done = run(*words)
    assert done.exit_code == code and part in done.stderr and "Traceback" not in done.output


def test_the_problems_of_models(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from m2gen.ahead.models import Sizes
    from m2gen.models import M2BertConfig

    M2BertConfig.preset("80M").save_pretrained(tmp_path / "model")
    here = limits.live(limits.default_device())
    found = tuning.problems_of_models([str(tmp_path / "model")], Sizes((64, 100), (3,)), here)
    assert {(problem.n, problem.h, problem.b, problem.mode) for problem in found if problem.op == "fftconv"} == {
        (64, 768, 3, "bidirectional"),
        (100, 768, 3, "bidirectional"),
    }
    assert {str(problem) for problem in found if problem.op == "blockdiag" and problem.glu} == {
        f"blockdiag in=768 out=6144 blocks=4 rows={3 * length} fp32 gelu glu" for length in (64, 100)
    }
    both = tuning.problems_of_models(["80M", "M2-ViT-b"], Sizes(), here)
    assert {problem.n for problem in both if problem.op == "fftconv"} == {128, 196}
    (tmp_path / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(M2GenError, match="is not understood"):
        tuning.problems_of_models([str(tmp_path)], Sizes(), here)


def test_an_order_is_not_chosen_by_time() -> None:
    """Different orders are different matrices; with its factors given, a Monarch product is tuned."""
    done = run("tune", *["monarch", "in=16", "out=16", "rows=3"])
    assert "0 tuned before; 1 not tuned" in done.output.replace("\n", " ")
    assert "Give the factors that m2gen plan shows" in done.output.replace("\n", " ")
    assert "1 tuned" in run("tune", *["monarch", "in=16", "out=16", "rows=3", "factors=4x4x4,4x4x4"]).output

"""The GPU's benchmarks take their whole way on a CPU with tiny sizes, and what they write is what a report reads."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu, gpu_kernels, gpu_models, pictures, report, workers
from bench.workers import Job
from m2gen.device.limits import target
from m2gen.errors import M2GenError
from m2gen.planner import search
from m2gen.planner.problems import parse
from m2gen.runtime import executor
from m2gen.runtime.build import triton_kernel
from m2gen.runtime.measure import first_use, kernel_samples

TINY = gpu.Options(device="cpu", tiny=True, rounds=2, workers=2, minutes=10, threads=1)
SOON = 3600.0


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_job_that_hangs_dies_or_raises_costs_itself_alone() -> None:
    jobs = [
        Job("hangs", time.sleep, (60,)),
        Job("dies", os._exit, (3,)),
        Job("raises", os.rmdir, ("/there/is/no/such/folder",)),
        Job("works", json.loads, ('[{"group": "fine"}]',)),
    ]
    found = {job.name: rows[0] for job, rows in workers.in_turn(jobs, 1.0, time.monotonic() + SOON)}
    assert found["hangs"] == {"group": "failed", "problem": "hangs", "why": "not done after 1 s"}
    assert found["dies"]["why"] == "its process ended with 3"
    assert found["raises"]["why"].startswith("FileNotFoundError: ")
    assert found["works"] == {"group": "fine"}


@pytest.mark.slow
def test_when_the_minutes_are_over_the_rest_is_left_out() -> None:
    jobs = [Job("long", time.sleep, (60,)), Job("next", time.sleep, (0,))]
    begun = time.monotonic()
    rows = [rows[0] for _, rows in workers.in_turn(jobs, 300.0, begun + 12)]
    assert [row["group"] for row in rows] == ["left out", "left out"] and time.monotonic() - begun < 20
    assert [row["problem"] for row in rows] == ["long", "next"]


@pytest.mark.slow
def test_what_does_not_fit_the_device_waits() -> None:
    room = workers._Room(10.0)
    room.take(8.0)
    room.give(8.0)
    room.take(50.0)  # fits nowhere, and is alone
    room.give(50.0)
    done = list(
        workers.together(
            [Job(str(i), json.loads, ("[]",), 8.0) for i in range(3)], 2, 10.0, 60.0, time.monotonic() + SOON
        )
    )
    assert [job.name for job, _ in done] == ["0", "1", "2"] and not any(one.why for _, one in done)


# -- rows --------------------------------------------------------------------------------------------------------------


def shaped(rows: list[dict[str, Any]]) -> None:
    """As the report and `compare` read them."""
    for row in rows:
        assert row["group"] and row["problem"]
        for name, ms in row.get("ms", {}).items():
            assert 0 < ms["min"] <= ms["median"], name
        assert set(row.get("ratio", {})) < set(row.get("ms", {"": 0}))


def test_a_contender_that_fails_is_left_out_of_its_row_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gpu.contenders

    def broken(**_: Any) -> Any:
        raise RuntimeError("CUDA out of memory")

    def with_broken(*args: Any) -> dict[str, Callable[..., Any]]:
        return real(*args) | {"broken": broken}

    monkeypatch.setattr(gpu, "contenders", with_broken)
    monkeypatch.setattr(gpu, "_errors", lambda *_: {})
    rows = gpu.measure("fftconv n=64 h=4 b=2 fp16 circular gated", "cpu", 2)
    shaped(rows)
    for row in rows[:4]:
        assert row["left_out"] == {"broken": "CUDA out of memory"} and {"torch.fft", "m2gen"} <= row["ms"].keys()


def test_every_contender_computes_the_same() -> None:
    for problem in gpu.problems(tiny=True):
        x = gpu.drawn(problem, "cpu")
        right, *others = (call(**x).double() for call in gpu.contenders(problem, "cpu").values())
        others.append(gpu.forward(problem, "cpu", x)["m2gen kept"]().double())
        for y in others:
            assert (y - right).norm() <= 0.01 * right.norm()


def test_what_is_compiled_first_is_what_is_called() -> None:
    """The problem posed is the public call's, batch and all, though few rows of it are computed."""
    problem = parse("fftconv n=128 h=4 b=32 fp16 causal gated")
    posed = gpu.posed_as(problem)
    assert (posed.b, posed.n, posed.h, posed.gates, posed.taps_given) == (32, 128, 4, 2, 128)
    assert gpu.compile_plan(str(problem), "cpu") == []


@pytest.mark.parametrize("words", ["fp16 circular gated", "bf16 causal gated", "fp16 circular"])
@pytest.mark.parametrize("n", [256, 1024, 16384])
def test_triton_compiles_the_same_first_as_in_the_call(n: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels, dtypes, and which sizes and strides are 1 or multiples of 16: all that Triton's key of a kernel has. The
    GPU's plans are followed on the CPU, and nothing is launched."""
    launched: set[tuple[Any, ...]] = set()

    def noted(spec: Any) -> Any:
        def launch(*arguments: Any, **_: Any) -> None:
            kinds = [x.dtype if isinstance(x, torch.Tensor) else (x == 1, x % 16 == 0) for x in arguments]
            launched.add((spec.name, *kinds))

        class Launches:
            def __getitem__(self, programs: Any) -> Any:
                return launch

        return Launches()

    monkeypatch.setattr(triton_kernel, "load", noted)
    for module in (gpu, gpu_kernels, executor):
        monkeypatch.setattr(module, "live", lambda _: target("sm90"))
    monkeypatch.setattr(first_use, "sound", lambda plan, _: plan)  # there is no device to check kernels on
    problem = parse(f"fftconv n={n} h=16 b=32 {words}")
    gpu.compile_plan(str(problem), "cpu")
    first = launched.copy()
    launched.clear()
    for call in gpu.both(problem, "cpu", gpu.drawn(problem, "cpu")).values():
        call()
    assert len(first) >= 3 and first == launched
    launched.clear()
    gpu_kernels.compile_all(str(problem), "cpu")  # and of the kernels beside
    first = launched.copy()
    launched.clear()
    monkeypatch.setattr(gpu_kernels, "relative", lambda *_: 0.0)  # nothing was computed
    rows = [row for place in gpu_kernels.some(problem) for row in gpu_kernels.measure(str(problem), "cpu", 2, place)]
    assert first == launched and len({row["kernel"] for row in rows}) == gpu_kernels.MOST
    assert {row["kernel"] for row in rows} <= {name for name, *_ in launched}


def test_what_matters_most_comes_first() -> None:
    first, timed = gpu.jobs(gpu.Options())
    calls = [job for job in timed if job.name.startswith("first call ")]
    plans, kernels = ([job for job in first if (job.call is gpu.compile_plan) == whole] for whole in (True, False))
    beside = [job for job in timed if job.call is gpu_kernels.measure]
    assert first == [*plans, *kernels] and timed[-len(calls) :] == calls
    assert [job.name for job in (*plans, *calls)] == [job.name for job in timed if job not in beside]
    assert (len(plans), len(calls)) == (3 * len(gpu.LENGTHS), len(gpu.FIRST_CALLS))
    assert len(beside) == gpu_kernels.MOST * len(kernels) and timed[1] == beside[0]
    assert "n=1024" in timed[0].name and timed[0].name.endswith("fp16 circular gated")
    _, timed = gpu_models.jobs(gpu.Options())
    assert [job.name for job in timed[:2]] == ["M2-BERT L=512 forward", "BERT, SDPA L=512 forward"]
    assert all(job.name.startswith(("M2-BERT L=", "BERT, SDPA L=")) for job in timed[:14])
    names = {job.name for job in timed}
    assert len(names) == len(timed)
    for length in gpu_models.FULL.lengths:
        for name in (
            "M2-BERT, CUDA graph L={} forward",
            "M2-BERT L={} error",
            "ModernBERT, flash-attention 2 L={} forward",
        ):
            assert name.format(length) in names


@pytest.mark.parametrize("arch", ["sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "gfx942"])
def test_a_run_has_kernels_for_a_fit_on_every_gpu(arch: str, tmp_path: Path) -> None:
    """Well more than the least, with choices to judge; the times are made up, 1.1 times the estimates."""
    limits, rows = target(arch), []
    for problem in gpu.problems():
        plan = search.plan(problem, limits)
        for one in (plan, *(gpu_kernels.others(problem, limits, plan) if gpu_kernels.some(problem) else ())):
            ms = {"m2gen": {"median": 1.1e3 * one.body.estimate.seconds}}
            rows.append({"group": "gpu kernels", "problem": str(problem), "ms": ms} | gpu_kernels.told(one))
    path, capability = tmp_path / "gpu.json", f"{arch[2:-1]}.{arch[-1]}"
    provenance = {"gpu": limits.description, "capability": capability, "processor": "EPYC"}
    path.write_text(json.dumps({"provenance": provenance, "results": rows}))
    found = kernel_samples.measured([str(path)], limits)
    assert len(found.samples) >= 3 * kernel_samples.LEAST
    assert len(found.samples) + found.others == len(rows)
    assert len({(sample.problem, sample.spec) for sample in found.samples}) == len(found.samples)
    quality = kernel_samples.quality(found.samples, limits)
    assert quality.median == pytest.approx(1 - 1 / 1.1, abs=0.01) and len(quality.regrets) >= kernel_samples.LEAST


def test_a_kernel_that_is_wrong_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = "fftconv n=64 h=4 b=2 fp16 circular gated"
    (row,) = gpu_kernels.measure(problem, "cpu", 2, 0)
    shaped([row])
    assert row["kernel"] != "native" and row["error"]["m2gen"] < 0.01 and row["floor_ms"] > 0
    assert gpu_kernels.measure(problem, "cpu", 2, 99) == []
    monkeypatch.setattr(gpu_kernels, "relative", lambda *_: float("nan"))
    with pytest.raises(M2GenError, match="it is wrong"):
        gpu_kernels.measure(problem, "cpu", 2, 0)


def test_there_is_no_such_device() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(M2GenError, match="--device cpu --tiny"):
        gpu.main(gpu.Options())


# -- whole runs --------------------------------------------------------------------------------------------------------


def whole(tmp_path: Path, models: bool) -> report.Run:
    out = tmp_path / "gpu.json"
    options = gpu.Options(**{**vars(TINY), "out": str(out), "note": "a try"})
    found = gpu.main(options, models)
    shaped(found["results"])
    assert json.loads(out.read_text()) == json.loads(json.dumps(found))
    run = report.read(out)
    assert {"date", "torch", "triton", "m2gen_commit", "how", "note", "seconds"} <= run.provenance.keys()
    assert not run.of("failed") and not run.of("not compiled before"), run.rows
    return run


def page(run: report.Run, folder: Path) -> str:
    pytest.importorskip("matplotlib")
    drawn = pictures.draw([run], folder)
    return report.page([run], drawn)


@pytest.mark.slow
def test_the_convolution_from_start_to_page(tmp_path: Path) -> None:
    run = whole(tmp_path, models=False)
    names = {"forward": {"torch.fft", "m2gen", "m2gen kept", "copy"}, "forward and backward": {"torch.fft", "m2gen"}}
    for what, wanted in names.items():
        for way in ("", ", graph"):
            rows = run.of(f"gpu {what}{way}")
            assert len(rows) == len(gpu.problems(tiny=True)) and all(row["ms"].keys() == wanted for row in rows)
            assert all(row["floor_ms"] > 0 and len(row["times"]["m2gen"]) == 2 for row in rows)
    assert all(max(row["error"].values()) < 0.02 for row in run.of("gpu forward"))
    kernels = run.of("gpu kernels")
    assert len(kernels) == (1 + gpu_kernels.MOST) * len(gpu.problems(tiny=True))
    assert all(row["floor_ms"] > 0 and row["estimate_ms"] > 0 for row in kernels)
    text = page(run, tmp_path)
    for row in run.of("gpu first call"):
        assert 0 < row["seconds"]["forward"] < row["seconds"]["forward and backward"]
    assert len(run.of("gpu first call")) == len(gpu.problems(tiny=True))
    for part in (
        "### gpu forward, graph",
        "### gpu kernels",
        "### gpu first call",
        "(gpu-speed.png)",
        "(gpu-kernels.png)",
    ):
        assert part in text


@pytest.mark.slow
def test_the_models_from_start_to_page(tmp_path: Path) -> None:
    run = whole(tmp_path, models=True)
    everyone = set(gpu_models.KINDS) - {"ModernBERT, flash-attention 2"}
    for step, more in (
        ("forward", {"M2-BERT, CUDA graph", "M2-BERT, filters kept", "M2-GPT, compiled"}),
        ("training", set()),
    ):
        rows = run.of(f"gpu models, {step}")
        names = {name for row in rows for name in row["tokens_per_ms"]}
        assert everyone | more | {"M2-BERT, compiled", "BERT, SDPA, compiled"} <= names
        assert all(set(row["peak_mib"]) == set(row["ms"]) for row in rows)
    (errors,) = run.of("gpu models, error")
    assert all(0 < value < 0.02 for value in errors["error"].values())
    assert {row["problem"].partition(" L=")[0] for row in run.of("left out")} <= {
        f"ModernBERT, flash-attention 2{way}" for way in ("", ", compiled")
    }
    text = page(run, tmp_path)
    for part in ("### gpu models, forward", "### gpu models, error", "(gpu-models.png)"):
        assert part in text

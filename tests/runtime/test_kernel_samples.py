"""A GPU's row against kernels that were measured on it, and the fit to them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from m2gen.cache.wisdom import Entry, Key
from m2gen.device.limits import target
from m2gen.device.row import LATENCIES, DeviceLimits, refitted
from m2gen.errors import WisdomError
from m2gen.kernels.named import named
from m2gen.planner import search
from m2gen.planner.choice import digest
from m2gen.planner.fftconv.cost import fused_seconds
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problems import parse
from m2gen.runtime.build import limits
from m2gen.runtime.measure import fit
from m2gen.runtime.measure import kernel_samples as kernels
from m2gen.runtime.measure.kernel_samples import KernelSample

RESULTS = Path(__file__).parents[2] / "bench" / "results"
MEASURED = str(RESULTS / "2026-11-26-gpu-kernels-h100.json")
PROFILE = str(RESULTS / "2026-11-26-gpu-profile-h100.json")
H100 = target("sm90")


@pytest.fixture(scope="module")
def data() -> list[KernelSample]:
    return kernels.read([MEASURED], H100)


def test_estimates_against_the_measured_kernels(data: list[KernelSample]) -> None:
    found = kernels.quality(data, H100)
    assert len(data) == 81
    assert found.median <= 0.12 and found.worst <= 0.40
    assert found.worst_regret <= 1.03


def test_the_filters_gradient_at_4096_points_is_the_fastest_measured(data: list[KernelSample]) -> None:
    """What took 1.73 ms was planned where 1.18 was to be had."""
    regrets = {
        name: regret
        for name, regret in kernels.quality(data, H100).regrets.items()
        if "n=4096" in name and ", dk" in name
    }
    assert len(regrets) == 3 and set(regrets.values()) == {1.0}


def test_problems_that_were_left_out_of_the_fit_are_estimated_as_well() -> None:
    """The constants are no table of the kernels."""
    found = kernels.quality_left_out(kernels.read([MEASURED, PROFILE], H100), H100)
    assert found.median <= 0.15 and found.worst <= 0.50 and found.worst_regret <= 1.03


def test_the_row_is_what_the_fit_gives() -> None:
    row = fit.fitted(kernels.read([MEASURED, PROFILE], H100), H100)
    for name in LATENCIES:
        assert getattr(row, name) == pytest.approx(getattr(H100, name), rel=0.02)


@pytest.mark.parametrize(
    ("text", "name", "count", "measured", "within"),
    [
        ("n=4096 b=64 fp16 circular", "fwd_n4096_r64x64_cyclic_fp16_fp16_w4_s2", 768, 0.480, 0.10),
        ("n=4096 b=64 fp16 circular", "fwd_n4096_r64x64_cyclic_fp16_fp16_full_w4_s2", 768, 0.460, 0.10),
        (
            "n=1024 b=64 bf16 causal gated skip",
            "fwd_n1024_r32x32_causal_bf16_fp16_stack2_pre_post_full_w4_s2",
            768,
            0.220,
            0.25,
        ),
        (
            "n=1024 b=64 fp16 circular gated",
            "fwd_n1024_r32x32_cyclic_fp16_fp16_stack2_pre_post_w4_s2",
            768,
            0.197,
            0.10,
        ),
        ("n=1024 b=512 fp16 circular", "fwd_n1024_r32x32_cyclic_fp16_fp16_stack2_w4_s2", 768, 1.24, 0.15),
        ("n=8192 b=64 bf16 causal gated", "fwd_n8192_r128x64_causal_bf16_fp16_pre_post_w8_s2", 768, 2.31, 0.15),
    ],
)
def test_what_no_constant_was_fitted_to(text: str, name: str, count: int, measured: float, within: float) -> None:
    """Milliseconds on the same device and day: without gates, without masks, inner convolutions of a longer ring (16
    rows of 32 K points as 32 x 1 K), and forward calls with a kept filter."""
    problem, spec = parse(f"fftconv h=768 {text}"), named(f"fftconv_{name}")
    assert spec is not None and isinstance(problem, FftConvProblem)
    assert 1e3 * fused_seconds(problem, spec, H100, count) == pytest.approx(measured, rel=within)


def test_kernels_of_a_profile(data: list[KernelSample]) -> None:
    """Alone, the filter's gradient too; the tail behind it is what the whole takes longer."""
    alone = kernels.read([MEASURED, PROFILE], H100)[len(data) :]
    assert {sample.spec.part for sample in alone} == {"fwd", "dk"} and not any(sample.whole for sample in alone)
    found = kernels.quality(alone, H100)
    assert found.median <= 0.15 and found.worst <= 0.40
    whole = {(sample.problem, sample.spec): sample for sample in data if sample.whole}
    compared = 0
    for one in alone:
        if one.spec.part == "dk" and (both := whole.get((one.problem, one.spec))):
            tail = both.expected(H100) - replace(both, whole=False).expected(H100)
            assert tail == pytest.approx(both.seconds - one.seconds, rel=0.25)
            compared += 1
    assert compared == 5


@pytest.mark.parametrize("arch", ["sm90", "sm80"])
def test_constants_are_found_again(data: list[KernelSample], arch: str) -> None:
    """Of times that another row's estimates are, with 3 % of noise, the fit finds a row that estimates them."""
    row = target(arch)
    truth = replace(row, fetch_seconds=2 * row.fetch_seconds, scratch_seconds=0.6 * row.scratch_seconds)
    random = np.random.default_rng(0)
    made = [
        replace(sample, seconds=sample.expected(truth) * math.exp(0.03 * random.standard_normal()), whole=False)
        for sample in (replace(sample, whole=False) for sample in data)
        if kernels.found(sample.spec, arch) is not None
    ]
    before, after = kernels.quality(made, row), kernels.quality(made, fit.fitted(made, row))
    assert len(made) > 40 and before.median > 0.1 and after.median < 0.05 and after.worst_regret < 1.1


def test_a_fit_to_what_was_tuned_on_a_gpu() -> None:
    """Entries of wisdom: whole calls, spectra in them, of several plans each."""
    truth = replace(H100, fetch_seconds=2 * H100.fetch_seconds, follow_seconds=1.5 * H100.follow_seconds)
    known = []
    for text in ("fftconv n=1024 h=768 b=64 fp16 circular gated", "fftconv n=4096 h=768 b=64 bf16 causal gated"):
        plans = search.rank(parse(text), H100).plans
        timed = [plan for plan in plans if plan.solver == "fused" and plan.body.reluctance is None][:8]
        seconds = {plan.choice: plan.expected(truth) for plan in timed}
        key = Key(problem=text, arch="sm90", processor="c", threads=132, candidates=digest(plans), compiler="t")
        best, first = min(timed, key=lambda plan: seconds[plan.choice]), plans[0].choice
        known.append(
            Entry(key=key, choice=best.choice, style=best.style, default=first, measured=text, seconds=seconds)
        )
    before, after = (fit.quality(known, row) for row in (H100, fit.fitted(fit.samples(known, H100), H100)))
    assert before.error > 1.1 and after.error < 1.03 and after.worst_regret < 1.02


def test_constants_of_the_card_at_hand_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that a fit kept under its name, and no other's."""
    card = SimpleNamespace(name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=8e10)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    kept = {("sm90", card.name): {"fetch_seconds": 3e-6}}
    monkeypatch.setattr(limits.wisdom, "constants", lambda arch, name: kept.get((arch, name), {}))
    assert limits._gpu(torch.device("cuda")).fetch_seconds == 3e-6
    monkeypatch.setattr(card, "name", "NVIDIA H200")
    assert limits._gpu(torch.device("cuda")).fetch_seconds == H100.fetch_seconds


# -- what is refused ---------------------------------------------------------------------------------------------------


FOURTH = json.loads(Path(MEASURED).read_text())["results"][3]["kernel"]


def written(tmp_path: Path, change: Any) -> str:
    """The measured kernels in another form."""
    found = json.loads(Path(MEASURED).read_text())
    path = tmp_path / "results.json"
    path.write_text(json.dumps(change(found)))
    return str(path)


def without(found: dict[str, Any], key: str) -> dict[str, Any]:
    del found["results"][3][key]
    return found


def time_of(found: dict[str, Any], ms: object) -> dict[str, Any]:
    found["results"][3]["ms"]["m2gen"]["median"] = ms
    return found


def with_(found: dict[str, Any], **changed: object) -> dict[str, Any]:
    found["results"][3] |= changed
    return found


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda found: found["results"], "no results of a benchmark"),
        (lambda found: {"results": 3}, "no results of a benchmark"),
        (
            lambda found: found | {"provenance": {"gpu": "NVIDIA GeForce RTX 4090"}},
            "measured on NVIDIA GeForce RTX 4090",
        ),
        (lambda found: found | {"provenance": {}}, "a card that is not named"),
        (lambda found: found | {"provenance": {"gpu": "NVIDIA H100", "capability": "8.0"}}, "measured on sm80"),
        (lambda found: found | {"results": found["results"][:5]}, "5 measured kernels"),
        (
            lambda found: found | {"results": [row | {"kernel": "gemm"} for row in found["results"]]},
            "0 measured kernels",
        ),
        (lambda found: found | {"provenance": {"processor": "EPYC", "capability": "AVX512"}}, "a CPU's results (EPYC)"),
        (lambda found: without(found, "kernel"), "row 4 of its results: it has no 'kernel'"),
        (lambda found: without(found, "group"), "row 4 of its results: it has no 'group'"),
        *(
            (lambda found, ms=ms: time_of(found, ms), f"row 4 of its results: it is malformed: {part}")
            for ms, part in (
                ("fast", "ms is 'fast', and no number"),
                (True, "ms is True, and no number"),
                (-1.0, f"{FOURTH} took -0.001 s a launch"),
                (math.inf, f"{FOURTH} took inf s"),
                (1e300, f"{FOURTH} took 1e+297 s"),
                (1e-300, f"{FOURTH} took 1e-303 s"),
            )
        ),
        *(
            (lambda found, count=count: with_(found, programs=count), f"malformed: programs is {count!r}")
            for count in (-5, True, 0, 1.5, "768", 10**9, 769)
        ),
        (lambda found: with_(found, problem="fftconv n=300000 h=768 b=64 bf16 causal"), "it takes 599999 or more"),
        (lambda found: with_(found, problem="fftconv n=1024 h=768 b=64 bf16 circular"), "not to be done on the ring"),
        (lambda found: with_(found, problem="fftconv n=1024 h=768 b=64 fp16 causal"), "reads bf16"),
        (lambda found: with_(found, problem="fftconv n=0"), "malformed: problem 'fftconv n=0'"),
        (lambda found: with_(found, kernel=3), "row 4 of its results: it is malformed"),
        (lambda found: found | {"results": [None]}, "row 1 of its results: it is malformed"),
    ],
)
def test_files_that_are_no_measured_kernels(tmp_path: Path, change: Any, part: str) -> None:
    with pytest.raises(WisdomError) as raised:
        kernels.read([written(tmp_path, change)], H100)
    assert part in str(raised.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    for name, part in (("nowhere.json", "there is no such file"), ("text.json", "it is no JSON"), ("", "directory")):
        with pytest.raises(WisdomError, match=part):
            kernels.read([str(tmp_path / name)], H100)


def test_a_cpus_results_are_told_first(tmp_path: Path) -> None:
    """Before anything is said of the row that is to be fitted."""
    path = written(tmp_path, lambda found: found | {"provenance": {"processor": "EPYC", "capability": "AVX512"}})
    told = set()
    for arch in ("sm90", "sm80", "avx2"):
        with pytest.raises(WisdomError, match="these are a CPU's results") as raised:
            kernels.read([path], target(arch))
        told.add(str(raised.value))
    assert len(told) == 1


def test_with_one_kernel_of_each_problem_there_is_no_choice_to_judge(data: list[KernelSample]) -> None:
    some = {sample.group: sample for sample in data}
    assert "no choice to judge" in str(kernels.quality(list(some.values()), H100))


def test_other_rows_are_passed_over(tmp_path: Path, data: list[KernelSample]) -> None:
    """A benchmark's file has rows of other groups, and kernels that are of no convolution or of none of today."""
    others = [{"group": "gpu forward", "problem": "x"}, {"group": "gpu models"}]
    odd = {
        "group": "gpu kernels",
        "problem": "fftconv n=1024",
        "kernel": "fftconv_fwd_n1024_r32x32_cyclic_fp16_fp16_odd_w4_s2",
    }
    odd |= {"ms": {"m2gen": {"median": 1.0}}}
    path = written(tmp_path, lambda found: found | {"results": [*others, odd, *found["results"]]})
    found = kernels.measured([path], H100)
    assert found.samples == data and found.others == 1 and found.cards == ("NVIDIA H100 80GB HBM3",)


def test_fitted_constants_of_a_card() -> None:
    found = {name: 2 * getattr(H100, name) for name in LATENCIES}
    row = refitted(H100, found)
    assert isinstance(row, DeviceLimits) and row.follow_seconds == 2 * H100.follow_seconds
    for wrong in ({"follow_seconds": -1.0}, {"l1_bytes": 1.0}, {"fetch_seconds": math.nan}):
        with pytest.raises(ValueError):
            refitted(H100, wrong)
    with pytest.raises(ValueError):
        refitted(target("avx2"), {"follow_seconds": 1e-9})

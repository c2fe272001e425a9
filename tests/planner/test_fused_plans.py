"""What the GPU tests run: each kernel that may be planned, and none that may not."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from m2gen.device.limits import target
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.survey import FAMILIES, KNOBS, found
from m2gen.kernels.surveyed import SURVEYED
from m2gen.kernels.unsound import ONE_STAGE, unsound
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.planner.stored import plan_from_json
from m2gen.testing.plans import covering, fused_plans


def key(spec: FftConvSpec) -> tuple[object, ...]:
    return COMPUTE_BYTES[spec.compute], spec.ring, spec.stack, spec.radices, spec.num_warps, spec.num_stages


def legal(arch: str, wanted: str = "fwd") -> dict[tuple[object, ...], FftConvSpec]:
    """Kernels of the survey that compile to something that runs and fit the device, straight from the table."""
    limits = target(arch)
    kernels = {}
    for (family, width, part, ring), rows in SURVEYED.items():
        if family != FAMILIES[arch] or part != wanted:
            continue
        for (stack, *radices), (warps, stages) in product(rows, KNOBS):
            n0, n1, n2 = radices if len(radices) == 3 else (1, *radices)
            dtype = "fp16" if width == 2 else "fp32"
            spec = FftConvSpec(
                part="dk" if part == "dk" else "fwd",
                ring="causal" if ring == "causal" else "cyclic",
                n0=n0,
                n1=n1,
                n2=n2,
                stack=stack,
                dtype=dtype,
                compute=dtype,
                pre_gate=True,
                post_gate=True,
                num_warps=warps,
                num_stages=stages,
            )
            if found(spec, arch) is not None and spec.resources(arch).shared_bytes <= limits.shared_bytes:
                kernels[key(spec)] = spec
    return kernels


@pytest.mark.parametrize("arch", ["sm90", "sm80", "sm100", "gfx942"])
def test_the_gpu_tests_reach_every_kernel_that_may_be_planned(arch: str) -> None:
    """A plan has the kernel of the filter's gradient, too: where a ring has none, it has no plan."""

    def ring(spec: FftConvSpec) -> tuple[object, ...]:
        return COMPUTE_BYTES[spec.compute], spec.ring, spec.size

    trained = {ring(spec) for spec in legal(arch, "dk").values() if unsound(spec, FAMILIES[arch]) is None}
    right = {k: spec for k, spec in legal(arch).items() if unsound(spec, FAMILIES[arch]) is None}
    wanted = {k for k, spec in right.items() if ring(spec) in trained}
    assert len(wanted) >= 0.98 * len(right)
    assert {key(spec) for spec in fused_plans(target(arch))} == wanted
    assert wanted


def test_staged_kernels_of_one_stage_are_not_planned_on_hopper() -> None:
    """Nor is one the kernel of the filter's gradient; the reason is shown with the plan and with the ranking."""
    illegal = {spec.name for spec in legal("sm90").values() if spec.staged and spec.num_stages == 1}
    assert illegal
    told = set()
    for problem in covering():
        ranking = rank(problem, target("sm90"))
        for plan in ranking.plans:
            if isinstance(plan.body, FusedConv):
                for spec in (plan.body.spec, plan.body.dk):
                    assert not (spec.staged and spec.num_stages == 1), plan
        told |= {name.replace("_full", "") for name, why in ranking.left_out if why == ONE_STAGE}
        if ranking.left_out:
            assert ONE_STAGE in ranking.plans[0].explain(target("sm90"))
    assert illegal <= told
    assert any("_dk_" in name for name in told)


@pytest.mark.parametrize("words", ["gated", "post_gated skip add", "skip", ""])
def test_channels_last_are_turned_where_there_are_many(words: str) -> None:
    """Both ways are candidates; on a CPU, and with times as neighbours, there is nothing to turn."""
    for n, b, turned in ((512, 64, True), (4096, 8, True), (128, 1, False)):
        problem = parse(f"fftconv n={n} h=768 b={b} bf16 bidirectional {words} blh")
        limits = target("sm90")
        plans = [plan for plan in rank(problem, limits).plans if isinstance(plan.body, FusedConv)]
        assert {type(plan.body) for plan in plans} == {FusedConv, TurnedConv}
        assert isinstance(plans[0].body, TurnedConv) == turned
        plan = next(plan for plan in plans if isinstance(plan.body, TurnedConv))
        assert plan_from_json(plan.to_json()) == plan
        body = plan.body
        assert body.expected(problem, limits) == pytest.approx(plan.seconds)
        assert all(not (one.pre_gate or one.post_gate or one.add) for one in (body.spec, body.dk))
        told = plan.explain(limits)
        assert "turned by turn_bf16" in told and "not yet run on a device" in told
        for other in (replace(problem, layout="BHL"), problem):
            limits = target("sm90" if other.layout == "BHL" else "avx512")
            assert not any(isinstance(plan.body, TurnedConv) for plan in rank(other, limits).plans)


@pytest.mark.parametrize(
    ("n", "b", "kernel", "measured"),
    [
        (512, 64, "n1024_r32x32_cyclic_bf16_fp16_stack2{}_w4_s2", 0.89),
        (1024, 32, "n2048_r64x32_cyclic_bf16_fp16{}_w4_s2", 0.92),
        (2048, 16, "n4096_r64x64_cyclic_bf16_fp16{}_w4_s2", 1.75),
        (4096, 8, "n8192_r128x64_cyclic_bf16_fp16{}_w8_s1", 1.69),
    ],
)
def test_reading_by_strides_costs_what_was_measured(n: int, b: int, kernel: str, measured: float) -> None:
    """Milliseconds of a layer's two convolutions on an H100, 2026-11-26, a half of them gated, on the cyclic ring, by
    the kernels that were planned then."""
    found = []
    for gate in ("post_gated", ""):
        problem = parse(f"fftconv n={n} h=768 b={b} bf16 bidirectional skip blh {gate}")
        name = f"fftconv_fwd_{kernel.format('_post' if gate else '')}"
        plans = [p for p in rank(problem, target("sm90")).plans if type(p.body) is FusedConv]
        plan = next(p for p in plans if p.body.spec.name == name)
        found.append(plan.body.estimates(problem, target("sm90"))[1].seconds)
    assert 0.75 < 500 * sum(found) / measured < 1.25


def test_other_architectures_keep_them() -> None:
    problem = parse("fftconv n=8192 h=64 b=4 fp16 causal gated")
    for arch in ("sm80", "sm100", "gfx942"):
        ranking = rank(problem, target(arch))
        assert ranking.left_out == ()
        specs = [plan.body.spec for plan in ranking.plans if isinstance(plan.body, FusedConv)]
        assert any(spec.staged and spec.num_stages == 1 for spec in specs)

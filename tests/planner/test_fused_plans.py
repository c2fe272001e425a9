"""What the GPU tests run: each kernel that may be planned, and none that may not."""

from __future__ import annotations

from itertools import product

import pytest

from m2gen.device.limits import target
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.survey import FAMILIES, KNOBS, found
from m2gen.kernels.surveyed import SURVEYED
from m2gen.kernels.unsound import ONE_STAGE, unsound
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
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
        told |= {name for name, why in ranking.left_out if why == ONE_STAGE}
        if ranking.left_out:
            assert ONE_STAGE in ranking.plans[0].explain(target("sm90"))
    assert illegal <= told
    assert any("_dk_" in name for name in told)


def test_other_architectures_keep_them() -> None:
    problem = parse("fftconv n=8192 h=64 b=4 fp16 causal gated")
    for arch in ("sm80", "sm100", "gfx942"):
        ranking = rank(problem, target(arch))
        assert ranking.left_out == ()
        specs = [plan.body.spec for plan in ranking.plans if isinstance(plan.body, FusedConv)]
        assert any(spec.staged and spec.num_stages == 1 for spec in specs)

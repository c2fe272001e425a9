"""Which kernels make a long filter's spectrum: for every device and ring, that they fit, and what plans say of them."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import pytest

from m2gen.device.limits import LIMITS, target
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.planner import search
from m2gen.planner.fftconv import filters
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FilterSpectrum, FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.problems import parse
from m2gen.planner.step import UNTRIED
from m2gen.planner.stored import plan_from_json

GPUS = [limits for limits in LIMITS.values() if limits.kind == "gpu"]
RADICES = (
    (16, 16), (16, 32), (32, 16), (32, 32), (64, 32), (32, 64), (64, 64), (128, 64), (64, 128),
    (32, 16, 16), (64, 16, 16), (32, 64, 16), (32, 32, 32), (64, 32, 32), (32, 32, 64),
)  # fmt: skip
PROBLEMS = ("n=1000 h=64 b=4 fp16 causal skip", "n=4096 h=768 b=8 fp16 circular", "n=20000 h=8 b=2 bf16 bidirectional")


@pytest.mark.parametrize("limits", GPUS, ids=lambda limits: limits.arch)
@pytest.mark.parametrize("mode", ["causal", "same", "circular"])
def test_there_are_kernels_that_fit_for_every_ring(mode: str, limits: Any) -> None:
    """One launch or two, on a ring of the same size, each with what concerns it and no more."""
    for radices in RADICES:
        n0, n1, n2 = radices if len(radices) == 3 else (1, *radices)
        ring: Any = "cyclic" if mode == "circular" else "causal"
        spec = FftConvSpec(part="fwd", ring=ring, n0=n0, n1=n1, n2=n2, dtype="fp16", compute="fp16")
        problem = FftConvProblem(n=prod(radices), k=201, h=4, mode=mode, skip=True)
        found = filters.kernels(problem, spec, replace(spec, part="dk"), limits)
        assert not found.why and 1 <= len(found.forward) == len(found.back) <= 2
        assert len(found.forward) == 1 or prod(radices) > 2048
        for one in (*found.forward, *found.back):
            assert one.size == prod(radices) and max(one.radices) <= 64
            assert one.resources(limits.arch).shared_bytes <= limits.shared_bytes
        assert (found.forward[-1].order, found.forward[-1].compute) == (radices, "fp16")
        assert found.back[0].order == radices
        for one in (found.forward[0], found.back[-1]):
            assert (one.ring, one.two_sided, one.skip) == (ring, mode == "same", True)


def test_without_shared_memory_enough_pytorch_does_it_and_the_plan_says_so() -> None:
    small = replace(target("sm90"), shared_bytes=60 * 1024)
    spec = FftConvSpec(part="fwd", ring="cyclic", n1=64, n2=64, dtype="fp16", compute="fp16")
    problem = FftConvProblem(n=4096, mode="circular", dtype="fp16")
    found = filters.kernels(problem, spec, replace(spec, part="dk"), small)
    assert not found.forward and not found.back
    assert "80 KiB of 60 KiB shared memory" in found.why and found.why in found.line


@pytest.mark.parametrize("text", PROBLEMS)
@pytest.mark.parametrize("layout", ["", " blh"])
def test_plans_name_their_filter_s_kernels_and_come_back_from_json(text: str, layout: str) -> None:
    problem: Any = parse(f"fftconv {text}{layout}")
    kinds = set()
    for plan in search.rank(problem, target("sm90")).plans:
        if not isinstance(plan.body, FusedConv):
            continue
        kinds.add(type(plan.body))
        forward = [one for one in plan.body.kernels(problem, gradients=False) if isinstance(one, SpectrumSpec)]
        every = [one for one in plan.body.kernels(problem) if isinstance(one, SpectrumSpec)]
        assert forward == list(plan.body.filters.forward) and every[: len(forward)] == forward
        passes = plan.body.back  # gradients in passes need others
        back = plan.body.filters.back if passes is None else (*passes.filters.forward, *passes.filters.backward)
        assert set(every) == {one for one in (*plan.body.filters.forward, *back) if isinstance(one, SpectrumSpec)}
        assert set(plan.body.filters.parts.items()) <= set(plan.body.parts(problem).items())
        assert plan.body.untried == UNTRIED and forward[0].name in "\n".join(plan.body.lines(problem))
        assert plan_from_json(plan.to_json()) == plan
    assert kinds == ({FusedConv, TurnedConv} if layout else {FusedConv})


@pytest.mark.parametrize("text", PROBLEMS)
def test_the_step_is_priced_by_what_is_launched(text: str) -> None:
    problem: Any = parse(f"fftconv {text}")
    limits = target("sm90")
    plan = next(plan for plan in search.rank(problem, limits).plans if isinstance(plan.body, FusedConv))
    step = plan.steps[0]
    assert isinstance(step, FilterSpectrum) and step.transform.kind == "monarch"
    assert step.estimate.launches == len(plan.body.filters.forward)
    assert step.estimate.bytes >= problem.h * step.transform.size * 8  # taps in float32 and bins in 16 bits
    assert "seconds" in plan.explain()


@pytest.mark.parametrize("n", [1000, 20000])
def test_gradients_of_bfloat16_are_newer_than_the_device_that_ran_others(n: int) -> None:
    """Kernels that bring them into range: a plainer plan has them, too, so it is checked before its first use."""
    for dtype, newer in (("fp16", False), ("bf16", True), ("bf16 wide", False)):
        plan = search.rank(parse(f"fftconv n={n} h=768 b=8 {dtype} causal gated"), target("sm90")).best("fused")
        plainer = plan.plainer(target("sm90"))
        assert plainer is not None and (plainer.body.untried is not None) == newer, dtype


def test_a_plainer_plan_has_pytorch_s_spectrum_and_the_same_choice() -> None:
    problem, limits = parse(f"fftconv {PROBLEMS[0]}"), target("sm90")
    plan = search.rank(problem, limits).plans[0]
    plainer = plan.plainer(limits)
    assert plainer is not None and plainer.choice == plan.choice and plainer.body.untried is None
    assert not [one for one in plainer.body.kernels(problem) if isinstance(one, SpectrumSpec)]
    assert isinstance(plainer.steps[0], FilterSpectrum) and plainer.steps[0].transform.kind == "fft"
    assert "by PyTorch" in plainer.explain() and plainer.plainer(limits) is None
    assert plainer.steps[0].estimate.launches > plan.steps[0].estimate.launches
    assert plan_from_json(plainer.to_json()) == plainer

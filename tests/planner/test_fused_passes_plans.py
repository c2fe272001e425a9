"""Fused plans whose gradients are made in passes over memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m2gen.device.limits import target
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.planner.step import UNTRIED
from m2gen.planner.stored import plan_from_json

SM90 = target("sm90")
TEXTS = ("fftconv n=8192 h=768 b=64 fp16 circular gated skip", "fftconv n=8000 h=768 b=16 bf16 causal gated")


@pytest.mark.parametrize("text", TEXTS)
def test_the_gradients_of_8k_points_are_made_in_passes(text: str) -> None:
    """By the estimate they are faster there; the plan says so, tells its kernels and launches, and is read back."""
    problem = parse(text)
    plan = rank(problem, SM90).best("fused")
    assert plan is not None and isinstance(plan.body, FusedConv) and isinstance(plan.body.back, PassesConv)
    body, back = plan.body, plan.body.back
    assert plan_from_json(plan.to_json()) == plan and body.untried == UNTRIED
    assert "in passes over memory" in plan.explain() and back.bwd.spec.name in plan.explain()
    assert set(body.kernels(problem)) == {body.spec, *body.filters.forward, *back.behind(problem)}
    assert {one.name for one in body.parts(problem).values()} >= {one.name for one in back.behind(problem)}
    launches = body.launches(problem, SM90, gradients=True)
    behind = [one for one in launches if one.back]
    assert {one.name for one in launches if not one.back} == {body.spec.name}
    of_filter = {*back.filters.forward, *back.filters.backward}  # the first launch and the last
    assert {one.name for one in behind[1:-1]} == {one.name for one in {*back.behind(problem)} - of_filter}
    own = [one for one in replace(body, back=None).launches(problem, SM90, gradients=True) if one.back]
    assert sum(one.seconds for one in behind) < sum(one.seconds for one in own)


@pytest.mark.parametrize("n", [256, 1024, 2048, 4096])
def test_those_of_fewer_points_stay_on_chip(n: int) -> None:
    plan = rank(parse(f"fftconv n={n} h=768 b=64 fp16 circular gated"), SM90).best("fused")
    assert plan is not None and plan.body.back is None


def test_a_plainer_plan_has_none() -> None:
    problem = parse(TEXTS[0])
    plan = rank(problem, SM90).best("fused")
    assert plan is not None
    plainer = plan.body.plainer(problem, SM90)
    assert plainer is not None and plainer[-1].back is None

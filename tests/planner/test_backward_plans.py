"""Which kernels of several gradients are planned, and what a backward pass then launches."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from m2gen.device.limits import target
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.survey import found
from m2gen.planner.fftconv.backward import Backward, assigned, usual
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.planner.stored import plan_from_json


def bodies(problem: Problem, arch: str = "sm90") -> Iterator[FusedConv]:
    return (plan.body for plan in rank(problem, target(arch)).plans if isinstance(plan.body, FusedConv))


def first(text: str, arch: str = "sm90") -> FusedConv:
    return next(bodies(parse(f"fftconv {text}"), arch))


def back(text: str) -> list[str]:
    """The kernels that a backward pass launches on an H100, the filter's spectrum and taps aside."""
    problem = parse(f"fftconv {text}")
    return [
        one.name for one in first(text).launches(problem, target("sm90"), True) if one.back and "fftconv" in one.name
    ]


@pytest.mark.parametrize("mode", ["circular fp16", "causal bf16"])
@pytest.mark.parametrize("gates", ["gated", "gated skip", "pre_gated", "post_gated"])
def test_one_kernel_up_to_2048_points_and_two_at_4096(mode: str, gates: str) -> None:
    for n in (256, 512, 1024, 2048, 4096):
        names = back(f"n={n} h=768 b=64 {mode} {gates}")
        assert len(names) == (1 if n <= 2048 else 2), names
        assert sum("_bwd_" in name for name in names) == 1


def test_without_gates_there_are_two_at_most() -> None:
    """Two kernels of one gradient each may be quicker than one of both."""
    for n in (256, 512, 1024, 2048, 4096):
        for mode in ("circular", "causal"):
            assert len(back(f"n={n} h=768 b=64 fp16 {mode}")) <= 2
    assert len(back("n=2048 h=768 b=64 fp16 circular")) == 1


def test_every_wanted_gradient_is_given_once() -> None:
    for text in ("n=1000 b=8 causal gated", "n=4000 b=8 causal gated", "n=700 k=600 b=4 circular gated", "n=100 b=2"):
        problem = parse(f"fftconv {text} h=64 fp16")
        for body in bodies(problem):
            given, left = assigned(body.bwd, usual(problem))
            results = [one for _, those in given for one in those] + sorted(left)
            assert sorted(results) == sorted(usual(problem))
            for kernel in body.bwd:
                assert kernel.spec.radices == body.spec.radices and kernel.spec.ring == body.spec.ring
                assert found(kernel.spec, "sm90") is not None
                assert kernel.spec.resources("sm90").shared_bytes <= target("sm90").shared_bytes
                assert kernel.programs % problem.h == 0


def test_a_wrapped_circle_keeps_the_second_gate_apart() -> None:
    """There the transpose reads places that the convolution does not."""
    for body in bodies(parse("fftconv n=700 k=600 h=64 b=4 fp16 circular gated")):
        assert all(one.spec.results in (("du", "dpre", "dk"), ("du", "dpre")) for one in body.bwd)


def test_kernels_are_those_that_training_launches() -> None:
    problem = parse("fftconv n=1000 h=768 b=8 bf16 causal gated skip")
    body = first("n=1000 h=768 b=8 bf16 causal gated skip")
    names = {one.name for one in body.launches(problem, target("sm90"), True)}
    convs = [spec for spec in body.kernels(problem) if isinstance(spec, FftConvSpec)]
    assert {spec.name for spec in convs} <= names
    assert [spec.part for spec in convs] == ["fwd", "bwd"]
    assert set(body.kernels(problem)) - set(convs) == {*body.filters.forward, *body.filters.back}
    assert body.parts(problem)["bwd"] == body.bwd[0].spec
    assert body.kernels(problem, gradients=False) == (body.spec, *body.filters.forward)
    taps = body.filters.back[0]
    assert (taps.order, taps.stack) == (body.bwd[0].spec.radices, body.bwd[0].spec.stack)


def test_turned_plans_have_the_forms_without_gates() -> None:
    problem = parse("fftconv n=1000 h=768 b=8 bf16 bidirectional gated skip blh")
    body = next(body for body in bodies(problem) if isinstance(body, TurnedConv))
    (kernel,) = body.bwd
    assert kernel.spec.results == ("du", "conv", "dk") and not kernel.spec.pre_gate and not kernel.spec.post_gate
    assert kernel.spec in body.kernels(problem)


def test_a_plan_is_read_back_with_them_and_says_so() -> None:
    plan = rank(parse("fftconv n=1000 h=768 b=8 bf16 causal gated"), target("sm90")).plans[0]
    assert isinstance(plan.body, FusedConv) and plan.body.bwd
    assert plan_from_json(plan.to_json()) == plan
    told = plan.explain(target("sm90"))
    assert plan.body.bwd[0].spec.name in told and "not yet run on a device" in told


def test_where_there_are_none_each_gradient_has_its_kernel() -> None:
    """Float32 products are three in TF32: no registers are left for more."""
    body = first("n=1000 h=64 b=8 fp32 causal gated")
    assert body.bwd == () and "a kernel for each gradient" in "\n".join(
        body.lines(parse("fftconv n=1000 h=64 b=8 fp32"))
    )


def test_kernels_take_only_what_is_left() -> None:
    spec = first("n=1000 h=64 b=8 fp16 causal gated").bwd[0].spec
    given, left = assigned((Backward(spec, 64), Backward(spec, 64)), {"du", "dk", "conv"})
    assert [those for _, those in given] == [("du", "dk")] and left == {"conv"}

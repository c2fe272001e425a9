"""Passes over memory of tensors whose channels are neighbours, turned before and after."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_passes import LIMITS, SMALLEST, drawn, gradients, stays_within
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.kernels.outer import OuterSpec
from m2gen.planner.fftconv.passes import plans, quickest
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps_turned import TurnedConv, TurnedPasses
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime import executor
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings import fused, large_filter_triton, largest, passes, spectrum_triton, turn_triton
from m2gen.runtime.bindings.passes import PassesKernel
from m2gen.runtime.bindings.spectral import Operands
from m2gen.runtime.bindings.turned import TurnedKernel, TurnedPassesKernel
from m2gen.runtime.measure.fftconv_case import FftConvCase
from m2gen.testing.exact import NAMES, exact, relative

pytestmark = pytest.mark.usefixtures("poison")


def plan_of(problem: FftConvProblem) -> Plan:
    """The plan on the least ring with the fewest stages."""
    found = plans(problem, LIMITS, SMALLEST)
    return min(found, key=lambda plan: (plan.body.transform.size, len(plan.body.outer), plan.body.choice))


def last(x: Operands) -> Operands:
    """Sequences as channels-last tensors hold them."""

    def laid(t: Tensor | None) -> Tensor | None:
        return t.mT.contiguous().mT if t is not None and t.dim() == 3 else t

    return Operands(**{n: laid(t) for n in (*NAMES, "add") if (t := getattr(x, n)) is not None})


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels launched, in their order."""
    specs: list[Any] = []
    for module in (fused, passes, turn_triton, large_filter_triton, largest, spectrum_triton):

        def noted(spec: Any, *rest: Any, launch: Any = module.launch) -> None:
            specs.append(spec)
            launch(spec, *rest)

        monkeypatch.setattr(module, "launch", noted)
    return specs


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=4001 h=2 b=1 fp16 causal gated skip add",
        "fftconv n=3001 h=2 b=3 fp16 circular gated skip",  # a circle on a longer ring
        "fftconv n=2500 k=999 h=2 b=1 fp32 same pre_gated",
    ],
)
def test_the_same_bits_as_without_turning(text: str) -> None:
    """Forward and every gradient: each product is rounded where the passes round it."""
    problem = parse(text)
    assert isinstance(problem, FftConvProblem)
    plan = plan_of(replace(problem, layout="BLH"))
    straight = next(
        one.body
        for one in plans(problem, LIMITS, SMALLEST)
        if (one.body.outer[0].n0, one.body.spec) == (plan.body.outer[0].n0, plan.body.spec)
    )
    _, x = drawn(problem)
    turned, own = kernel_of(plan), PassesKernel(problem, straight)
    assert isinstance(turned, TurnedPassesKernel)
    y = turned.forward(last(x))
    assert torch.equal(y, own.forward(x)) and y.stride(1) == 1
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    found, wanted = gradients(turned, dy.mT.contiguous().mT, last(x)), gradients(own, dy, x)
    for name, one in wanted.items():
        assert torch.equal(found[name], one), name
    some = (("u",), ("post_gate",), ("k",), ("pre_gate", "k"))
    for names in some if problem.add and problem.skip else ():  # of one problem
        for name, one in gradients(turned, dy, last(x), names).items():
            assert relative(one, wanted[name].double()) < 1e-6, (name, names)


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e30])
def test_gradients_of_bfloat16_that_half_precision_does_not_hold(size: float) -> None:
    problem = parse("fftconv n=4001 h=2 b=2 bf16 causal gated skip blh")
    assert isinstance(problem, FftConvProblem)
    args, x = drawn(replace(problem, layout="BHL"))
    expected, leaves = exact(args)
    dy = (torch.randn(x.u.shape, generator=torch.Generator().manual_seed(1)) * size).bfloat16()
    wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
    found = gradients(kernel_of(plan_of(problem)), dy.mT.contiguous().mT, last(x))
    for name, want in zip(leaves, wanted, strict=True):
        assert relative(found[name], want) < 3e-3, name


def test_the_public_call(monkeypatch: pytest.MonkeyPatch, launched: list[Any]) -> None:
    """Through operator and executor; what is launched is what the plan has, in training and out; without the filter's
    gradient, too."""
    problem = parse("fftconv n=4001 h=2 b=2 fp16 causal gated skip add blh")
    assert isinstance(problem, FftConvProblem)
    plan = plan_of(problem)

    def planned(posed: Problem, *_: Any) -> Plan:
        assert isinstance(posed, FftConvProblem) and replace(posed, add=True) == problem
        return plan_of(posed)  # backward nothing is added

    monkeypatch.setattr(executor, "planned", planned)
    executor.forget()
    args, _ = drawn(replace(problem, layout="BHL"))
    expected, exact_leaves = exact(args)
    args |= {n: args[n].mT.contiguous() for n in ("u", "pre_gate", "post_gate", "add")} | {"layout": "BLH"}
    leaves = {n: args[n].requires_grad_() for n in NAMES if n in args}
    y = m2gen.fftconv(**args)
    assert set(launched) == set(plan.body.kernels(problem, gradients=False))
    assert relative(y.detach().mT, expected) < 1.5e-3
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, list(leaves.values()), dy, retain_graph=True)
    wanted = torch.autograd.grad(expected, list(exact_leaves.values()), dy.mT.double(), retain_graph=True)
    for name, one, want in zip(leaves, found, wanted, strict=True):
        assert relative(one.mT if one.dim() == 3 else one, want) < 1.5e-3, name
    torch.autograd.grad(y, [leaves["u"]], dy)
    assert set(launched) <= set(plan.body.kernels(problem))
    executor.forget()


def test_forward_on_chip_and_gradients_in_passes(launched: list[Any]) -> None:
    """A fused plan between turns whose gradients are made in passes, those of its filter with them or not."""
    problem = parse("fftconv n=8192 h=2 b=2 fp16 circular gated skip blh")
    assert isinstance(problem, FftConvProblem)
    plan = next(one for one in rank(problem, target("sm90")).plans if isinstance(one.body, TurnedConv))
    assert isinstance(plan.body.back, TurnedPasses)
    back = quickest(problem, LIMITS)[1]
    assert isinstance(back, TurnedPasses)
    body = replace(plan.body, back=back)
    args, x = drawn(replace(problem, layout="BHL"))
    expected, leaves = exact(args)
    kernel = TurnedKernel(problem, body)
    y = kernel.forward(last(x))
    assert relative(y, expected) < 1e-3 and not any(isinstance(one, OuterSpec) for one in launched)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).half()
    wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
    launched.clear()
    for (name, one), want in zip(gradients(kernel, dy, last(x)).items(), wanted, strict=True):
        assert relative(one, want) < 1.5e-3, name
    assert set(launched) == set(back.behind(problem))
    launched.clear()
    gradients(kernel, dy, last(x), ("u", "pre_gate", "post_gate"))
    assert launched and not any(isinstance(one, OuterSpec) for one in launched)


def test_gradients_by_other_passes(launched: list[Any]) -> None:
    problem = parse("fftconv n=8192 h=2 b=1 fp16 causal gated blh")
    assert isinstance(problem, FftConvProblem)
    body, back = (next(p.body for p in plans(problem, LIMITS, SMALLEST) if p.body.outer[0].n0 == n) for n in (16, 32))
    args, x = drawn(replace(problem, layout="BHL"))
    expected, leaves = exact(args)
    dy = torch.randn(x.u.shape, generator=torch.Generator().manual_seed(1)).half()
    wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
    found = gradients(TurnedPassesKernel(problem, replace(body, back=back)), dy, last(x))
    for (name, one), want in zip(found.items(), wanted, strict=True):
        assert relative(one, want) < 1.5e-3, name
    assert set(launched) == set(back.behind(problem))


def test_a_first_use_meets_every_kernel(monkeypatch: pytest.MonkeyPatch, launched: list[Any]) -> None:
    problem = parse("fftconv n=4001 h=2 b=1 fp16 causal gated skip blh")
    assert isinstance(problem, FftConvProblem)
    plan = plan_of(problem)
    case = FftConvCase(problem, torch.device("cpu"))
    assert case.wrong_somewhere(plan) is None
    assert set(launched) == set(plan.body.kernels(problem))
    kernel = kernel_of(plan)
    monkeypatch.setattr(kernel.own, "transpose", kernel.own.spec)
    assert "gradient of u alone is off" in str(case.wrong_somewhere(plan))


@pytest.mark.parametrize("text", [
    "fftconv n=4001 h=4 b=4 bf16 causal gated skip add blh",
    "fftconv n=4096 h=4 b=3 fp16 circular pre_gated blh",
    "fftconv n=4001 h=4 b=2 fp32 causal post_gated blh",
])  # fmt: skip
def test_memory_stays_within_what_is_stated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of passes without turns: nothing is launched, and what is allocated is counted."""
    for module in (passes, turn_triton, large_filter_triton, largest):
        monkeypatch.setattr(module, "launch", lambda *_: None)
    problem = parse(text)
    assert isinstance(problem, FftConvProblem)
    body = replace(plan_of(problem).body, channels=2, rows=2)
    kernel = TurnedPassesKernel(problem, body)
    x = last(drawn(replace(problem, layout="BHL"))[1])
    stays_within(kernel, problem, body, x)

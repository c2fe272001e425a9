"""A fused convolution whose gradients are made in passes over memory, against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from m2gen.device.limits import target
from m2gen.kernels.outer import OuterSpec
from m2gen.planner.fftconv.passes import quickest
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.bindings import fused, large_filter_triton, largest, passes, spectrum_triton
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.measure.fftconv_case import FftConvCase
from m2gen.testing.exact import NAMES, exact, relative
from m2gen.testing.operands import operands

LIMITS = replace(target("sm90"), cores=4)
pytestmark = pytest.mark.usefixtures("poison")


def plan_of(problem: FftConvProblem) -> Plan:
    """The best fused plan on chip, with passes for its gradients."""
    found = next(plan for plan in rank(problem, target("sm90")).plans if plan.solver == "fused")
    assert isinstance(found.body, FusedConv) and not found.body.spec.staged
    few = replace(target("sm90"), cores=4)  # few programs, with loops
    back = quickest(problem, few)[1]
    assert back is not None and back.bwd is not None
    return replace(found, steps=(*found.steps[:-1], replace(found.body, back=back)))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The kernels launched, in their order."""
    specs: list[Any] = []
    for module in (fused, passes, spectrum_triton, large_filter_triton, largest):
        launch = module.launch

        def noted(spec: Any, *rest: Any, launch: Any = launch) -> None:
            specs.append(spec)
            launch(spec, *rest)

        monkeypatch.setattr(module, "launch", noted)
    yield specs


def gradients(kernel: FusedKernel, dy: torch.Tensor, x: Operands, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    given = {name: value for name in names if (value := getattr(x, name)) is not None}
    out = {n: torch.empty_like(t) if t.dim() == 3 else torch.zeros_like(t) for n, t in given.items()}
    kernel.backward(dy, x, Gradients(**out))
    return out


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=8192 h=1 b=2 fp16 circular gated skip",
        "fftconv n=8000 h=1 b=2 fp16 causal gated",
        "fftconv n=8192 h=1 b=1 fp16 bidirectional post_gated skip",
        "fftconv n=4097 k=3000 h=1 b=2 fp16 circular gated",  # a circle on a longer ring
    ],
)
def test_forward_on_chip_and_gradients_in_passes(text: str, launched: list[Any]) -> None:
    problem = parse(text)
    assert isinstance(problem, FftConvProblem)
    body = plan_of(problem).body
    args = operands(problem)
    x = Operands(**{name: args[name] for name in NAMES if name in args})
    kernel = FusedKernel(problem, body)
    y, (expected, leaves) = kernel.forward(x), exact(args)
    assert launched == [body.spec, *body.filters.forward][:1] or body.spec in launched
    assert not any(isinstance(one, OuterSpec) for one in launched)
    assert relative(y, expected) < 1e-3
    launched.clear()
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).half()
    wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
    for (name, found), want in zip(gradients(kernel, dy, x, NAMES).items(), wanted, strict=True):
        assert relative(found, want) < 1.5e-3, name
    assert set(launched) == set(body.back.behind(problem))


def test_without_the_filters_gradient_they_stay_on_chip(launched: list[Any]) -> None:
    problem = parse("fftconv n=8192 h=1 b=2 fp16 circular pre_gated")
    assert isinstance(problem, FftConvProblem)
    body = plan_of(problem).body
    args = operands(problem)
    x = Operands(**{name: args[name] for name in NAMES if name in args})
    gradients(FusedKernel(problem, body), torch.randn_like(x.u), x, ("u", "pre_gate"))
    assert launched and not any(isinstance(one, OuterSpec) for one in launched)


def test_a_first_use_meets_every_kernel(launched: list[Any]) -> None:
    """Those of the forward pass, and those in passes; and a wrong one is found."""
    problem = parse("fftconv n=8192 h=1 b=2 fp16 circular post_gated")
    assert isinstance(problem, FftConvProblem)
    plan = plan_of(problem)
    case = FftConvCase(problem, torch.device("cpu"))
    assert case.wrong_somewhere(plan) is None
    assert set(launched) >= set(plan.body.kernels(problem))

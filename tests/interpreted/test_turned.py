"""The fused convolution of tensors whose channels are neighbours, turned before and after: every mode, gates, what is
added, strides and gradients against float64, and how many bytes its launches move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import BOUND, NAMES, SEQUENCES, check, problems, relative, restride
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.reference import fftconv as oracle
from m2gen.runtime import executor
from m2gen.runtime.bindings import fused, turn_triton
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.turned import TurnedKernel
from m2gen.runtime.build.triton_kernel import launch
from m2gen.testing.operands import operands


def first(problem: Problem, kind: type[FusedConv]) -> Plan:
    return next(plan for plan in rank(problem, target("sm90")).plans if type(plan.body) is kind)


@pytest.fixture(autouse=True)
def turned_plans(monkeypatch: pytest.MonkeyPatch, poison: None) -> Iterator[None]:
    """Problems this small are quicker as they are: here they are turned."""

    def planned(problem: Problem, *_: Any) -> Plan:
        return first(problem, TurnedConv if problem.layout == "BLH" else FusedConv)

    monkeypatch.setattr(executor, "planned", planned)
    executor.forget()
    yield
    executor.forget()


@settings(max_examples=15)
@given(problems(), st.sampled_from(["as is", "step", "offset", "expanded"]), st.sampled_from(["u", "others", "all"]))
def test_the_same_bits_as_without_turning(problem: Problem, how: str, which: str) -> None:
    """Forward and every gradient, through the public function, of tensors that do not lie like u, too: every product is
    rounded where the kernel itself rounds it."""
    problem = replace(problem, layout="BLH", h=problem.h + 1)
    args = operands(problem)
    for name in SEQUENCES:
        if name in args and which in ("all", "u" if name == "u" else "others"):
            args[name] = restride(args[name], how)
    found = {}
    for kind in (FusedConv, TurnedConv):
        leaves = {n: x.detach().requires_grad_() for n, x in args.items() if isinstance(x, Tensor)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(executor, "planned", lambda posed, *_, kind=kind: same_kernel(posed, kind))
            executor.forget()
            y = m2gen.fftconv(**args | leaves)
            dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
            found[kind] = [y, *torch.autograd.grad(y, list(leaves.values()), dy)]
    for name, one, other in zip(["y", *leaves], *found.values(), strict=True):
        assert torch.equal(one, other), name


def same_kernel(problem: Problem, kind: type[FusedConv]) -> Plan:
    """Turned or not, the same radices; what is not laid out so is not turned."""
    plans = [plan for plan in rank(problem, target("sm90")).plans if isinstance(plan.body, FusedConv)]
    wanted = kind if problem.layout == "BLH" else FusedConv
    least = min((plan.body.spec.radices, plan.body.spec.stack) for plan in plans)
    fitting = (plan for plan in plans if (plan.body.spec.radices, plan.body.spec.stack) == least)
    return min((p for p in fitting if type(p.body) is wanted), key=lambda p: p.body.spec.num_warps)


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=100 h=3 b=2 bf16 causal gated skip add blh",
        "fftconv n=200 h=2 b=3 bf16 bidirectional gated add blh",
        "fftconv n=9999 h=2 b=1 fp16 causal gated skip add blh",  # with an outer stage
        "fftconv n=700 h=2 b=2 fp16 circular k=600 post_gated blh",
        "fftconv n=90 k=31 h=5 b=3 fp32 same pre_gated skip add blh",
        "fftconv n=130 h=2 b=1 fp16 causal blh",
    ],
)
def test_forms_that_are_not_drawn(text: str) -> None:
    problem = parse(text)
    bound = {"fp16": 1.5e-3, "bf16": 3e-3, "fp32": 1e-5}[problem.dtype]
    args = operands(problem)
    if problem.n < 1000:
        check(problem, args, m2gen.fftconv, bound)
    else:
        assert relative(m2gen.fftconv(**args), oracle.fftconv(**args)) < bound


def test_gates_that_lie_otherwise() -> None:
    """Times as neighbours in one of them, channels in another, and a result of other strides."""
    args = operands(parse("fftconv n=70 h=5 b=2 fp16 causal gated skip add blh"))
    for name in ("pre_gate", "add"):
        args[name] = args[name].mT.contiguous().mT
    check(parse("fftconv n=70 h=5 b=2 fp16"), args, m2gen.fftconv, BOUND["fp16"])


def test_vmap_and_second_derivatives() -> None:
    u, k, g, a = (torch.randn(s) for s in ((3, 2, 20, 4), (4, 9), (2, 20, 4), (2, 20, 4)))

    def conv(u: Tensor, k: Tensor = k) -> Tensor:
        return m2gen.fftconv(u, k, post_gate=g, add=a, layout="BLH")

    torch.testing.assert_close(torch.vmap(conv)(u), torch.stack([conv(one) for one in u]), rtol=1e-4, atol=1e-4)
    posed = parse("fftconv n=20 k=9 h=4 b=6 fp32 causal post_gated add blh")
    assert type(executor.bound(posed, *executor._here(u))) is TurnedKernel

    def squares(function: Any) -> Any:
        return torch.func.hessian(lambda k: function(u[0], k).square().sum())

    exact = squares(lambda u, k: oracle.fftconv(u.double(), k.double(), post_gate=g, add=a, layout="BLH"))
    assert relative(squares(conv)(k), exact(k).double()) < 1e-4


# -- bytes -------------------------------------------------------------------------------------------------------------


def moved(problem: Problem, kernel: FusedKernel, patch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Bytes of the sequences that the launches of a forward and of a backward pass read and write."""
    args = operands(problem)
    args |= {n: args[n].mT for n in SEQUENCES if n in args and problem.layout == "BLH"}
    x = Operands(**{n: args[n] for n in (*NAMES, "add") if n in args})
    total = [0]

    def counted(spec: Any, programs: int, *arguments: Any) -> None:
        given = {t.data_ptr(): t for t in arguments if isinstance(t, Tensor) and t.numel() == x.u.numel()}
        total[0] += sum(t.numel() * t.itemsize for t in given.values())
        launch(spec, programs, *arguments)

    patch.setattr(fused, "launch", counted)
    patch.setattr(turn_triton, "launch", counted)
    y = kernel.forward(x)
    forward, total[0] = total[0], 0
    wanted = {
        n: torch.empty_like(args[n]) if args[n].dim() == 3 else torch.zeros_like(args[n]) for n in NAMES if n in args
    }
    kernel.backward(torch.ones_like(y), x, Gradients(**wanted))
    return forward, total[0]


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(
    "words", ["", "gated", "pre_gated", "post_gated skip", "skip add", "gated skip add", "post_gated add"]
)
def test_turning_moves_little_more(words: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn reads and writes a tensor once. Forward it is at most three turns more than without: two of what is there
    anyway, and one that a result in float32 costs. Backward three; with gates two more, as their gradients are turned,
    and where the skip's gradient is wanted what their products cost in float32. So it is with a kernel for each
    gradient; kernels of several move less either way."""
    problem = parse(f"fftconv n=111 h=6 b=2 {dtype} bidirectional {words}")
    last = replace(problem, layout="BLH")
    turn = 2 * problem.b * problem.h * problem.n * (2 if dtype == "fp16" else 4)
    straight, turned = first(problem, FusedConv).body, first(last, TurnedConv).body
    least = moved(problem, FusedKernel(problem, replace(straight, bwd=())), monkeypatch)
    found = moved(last, TurnedKernel(last, replace(turned, bwd=())), monkeypatch)
    for body, of, kernel, alone in ((straight, problem, FusedKernel, least), (turned, last, TurnedKernel, found)):
        if body.bwd:
            assert moved(of, kernel(of, body), monkeypatch)[1] < alone[1]
    assert least[0] == problem.least_bytes
    assert found[0] - least[0] == turn * (3 if dtype == "fp16" and (problem.post_gate or problem.add) else 2)
    wide = (problem.pre_gate * (2 + problem.post_gate) + problem.post_gate * 3) * problem.skip * (dtype == "fp16")
    assert found[1] - least[1] <= turn * ((5 if problem.gates else 3) + wide / 2)


def test_each_tensor_is_turned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse("fftconv n=60 h=6 b=2 fp16 causal gated skip add blh")
    turns: list[str] = []

    def counted(spec: Any, programs: int, *arguments: Any) -> None:
        turns.append(spec.name)
        launch(spec, programs, *arguments)

    monkeypatch.setattr(turn_triton, "launch", counted)
    plan = first(problem, TurnedConv)
    moved_kernel = TurnedKernel(problem, plan.body)
    args = operands(problem)
    likes = {n: args[n].mT for n in SEQUENCES}
    x = Operands(**likes, **{n: args[n] for n in ("k", "skip")})
    y = moved_kernel.forward(x)
    assert len(turns) == 2
    out = {n: torch.empty_like(likes[n]) for n in ("u", "pre_gate", "post_gate")}
    moved_kernel.backward(y, x, Gradients(**out, k=torch.zeros_like(args["k"]), skip=torch.zeros_like(args["skip"])))
    assert len(turns) == 2 + 2 + 3  # u pre_gate and dy post_gate in, three gradients out
    assert set(turns) <= {spec.name for spec in plan.body.kernels(problem)}

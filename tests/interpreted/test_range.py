"""Gradients of bfloat16 tensors, whose operands are half precision inside: of any size, as exact as of size 1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_fused import NAMES, fused_plans, relative
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.turned import TurnedKernel
from m2gen.testing.exact import exact
from m2gen.testing.operands import operands

pytestmark = pytest.mark.usefixtures("poison")
SIZES = (1.0, 1e-4, 1e-8, 1e-20, 1e20)
INSIDE, ROUNDED = 1e-3, 3e-3  # of a result in float32, and of one rounded to bfloat16
STAGED = 1.5


def gradients(kernel: FusedKernel, args: dict[str, Any], dy: Tensor) -> dict[str, Tensor]:
    """In float32: the interpreter cuts bfloat16 off instead of rounding."""
    x = Operands(*(args.get(n) for n in (*NAMES, "add")))
    like = {n: args[n] for n in NAMES if args.get(n) is not None}
    out = {n: torch.full(t.shape, float("nan")) if t.dim() == 3 else torch.zeros(t.shape) for n, t in like.items()}
    kernel.backward(dy, x, Gradients(**out))
    return out


def wanted(args: dict[str, Any], dy: Tensor) -> dict[str, Tensor]:
    expected, leaves = exact(args)
    return dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values()), dy.double()), strict=True))


def gradient_of(problem: Problem, size: float) -> Tensor:
    shape = (problem.b, problem.h, problem.n)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * size).bfloat16()


def plan_of(problem: Problem, staged: bool = False) -> Plan:
    return next(plan for plan in fused_plans(problem) if plan.body.spec.staged == staged)


@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "words", ["n=200 b=3 causal gated skip", "n=256 b=2 circular", "n=100 b=3 bidirectional post_gated"]
)
def test_gradients_of_any_size(words: str, size: float, several: bool) -> None:
    """By one kernel for all, and by one each."""
    problem = parse(f"fftconv {words} h=2 bf16")
    args, dy = operands(problem), gradient_of(problem, size)
    body = plan_of(problem).body
    assert body.bwd
    found = gradients(FusedKernel(problem, body if several else replace(body, bwd=())), args, dy)
    for name, want in wanted(args, dy).items():
        assert relative(found[name], want) < INSIDE, name
        assert relative(found[name].bfloat16(), want) < ROUNDED, name


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e20])
@pytest.mark.parametrize("words", ["n=8192 b=2 circular", "n=9000 b=1 causal gated skip"])
def test_with_an_outer_stage(words: str, size: float) -> None:
    """There the largest gradient of all sets the power of two."""
    problem = parse(f"fftconv {words} h=1 bf16")
    args, dy = operands(problem), gradient_of(problem, size)
    found = gradients(FusedKernel(problem, plan_of(problem, staged=True).body), args, dy)
    for name, want in wanted(args, dy).items():
        assert relative(found[name], want) < STAGED * INSIDE, name


def test_one_gradient_tile_by_tile() -> None:
    """Each tile has a power of its own: rows of another tile may be of any other size."""
    problem = parse("fftconv n=256 h=1 b=3 bf16 causal gated")
    args, dy = operands(problem), gradient_of(problem, 1.0)
    dy = dy * torch.tensor([1e20, 1e-20, 0.0], dtype=torch.bfloat16).view(3, 1, 1)
    kernel = FusedKernel(problem, next(p.body for p in fused_plans(problem) if p.body.spec.batch_rows == 1))
    found, right = gradients(kernel, args, dy), wanted(args, dy)
    for name in ("u", "pre_gate", "post_gate"):
        for row in range(2):
            assert relative(found[name][row], right[name][row]) < INSIDE, (name, row)
        assert not found[name][2].any(), name


@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_is_not_hidden() -> None:
    """It stays in its row, and the others are as before."""
    problem = parse("fftconv n=256 h=1 b=2 bf16 causal")
    args, dy = operands(problem), gradient_of(problem, 1.0)
    kernel = FusedKernel(problem, next(p.body for p in fused_plans(problem) if p.body.spec.batch_rows == 1))
    before = gradients(kernel, args, dy)["u"]
    for bad in (float("nan"), float("inf")):
        dy[1, 0, 7] = bad
        found = gradients(kernel, args, dy)["u"]
        assert torch.equal(found[0], before[0]) and not found[1].isfinite().any()


def test_only_narrow_operands_of_bfloat16_are_scaled() -> None:
    """Float16 and float32 tensors, and bfloat16 that keeps its range, have the kernels that they had."""
    for words, scaled in (("bf16", True), ("bf16 wide", False), ("fp16", False), ("fp32", False)):
        problem = parse(f"fftconv n=256 h=1 b=2 {words} causal gated")
        for plan in fused_plans(problem):
            parts = plan.body.parts(problem)
            assert [parts[part].scales for part in ("fwd", "transpose", "dk")] == [False, scaled, scaled]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("words", ["gated skip", "gated", "pre_gated"])
def test_of_channels_that_are_neighbours(words: str, size: float) -> None:
    """Turned first, and in float32 where a gate comes in between: the same bits as without turning. Without a first
    gate the kernel stores bfloat16, which the interpreter cuts off."""
    problem = parse(f"fftconv n=200 h=3 b=3 bf16 causal {words} blh")
    args, dy = operands(problem), gradient_of(problem, size).mT.contiguous().mT
    args |= {n: args[n].mT for n in ("u", "pre_gate", "post_gate") if n in args}
    args.pop("layout", None)
    body = next(p.body for p in rank(problem, target("sm90")).plans if isinstance(p.body, TurnedConv))
    body = replace(body, bwd=())  # a kernel of several gradients is another one without gates
    found = gradients(TurnedKernel(problem, body), args, dy)
    gated = replace(body.spec, pre_gate=problem.pre_gate, post_gate=problem.post_gate)
    names = ("estimate", "transform", "channels", "fold", "dk", "programs", "filters")
    plain = FusedConv(**{n: getattr(body, n) for n in names}, spec=gated)
    straight = gradients(FusedKernel(problem, plain), args, dy)
    for name, want in wanted(args, dy).items():
        assert relative(found[name], want) < INSIDE, name
        assert torch.equal(found[name], straight[name]), name


@pytest.mark.parametrize("op", ["product", "gelu", "monarch", "short"])
def test_the_other_ops_keep_the_range(op: str) -> None:
    """They multiply bfloat16 as it is: gradients scale exactly with powers of two."""
    x, w = (torch.randn(s, generator=torch.Generator().manual_seed(2)).bfloat16() for s in ((3, 32, 32), (4, 16, 8)))
    short = torch.randn(32, 3, generator=torch.Generator().manual_seed(3)).bfloat16()
    calls = {
        "product": (lambda x, w: m2gen.blockdiag_linear(x, w), w),
        "gelu": (lambda x, w: m2gen.blockdiag_linear(x, w, activation="gelu"), w),
        "monarch": (lambda x, w: m2gen.monarch_matmul(x, [w, torch.ones(8, 4, 8).bfloat16()]), w),
        "short": (lambda x, w: m2gen.depthwise_conv1d(x, w, None), short),
    }
    call, weight = calls[op]
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    y = call(*leaves)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(4)).bfloat16()
    large, small = (torch.autograd.grad(call(*leaves), leaves, dy * size) for size in (1.0, 2.0**-60))
    for one, other in zip(large, small, strict=True):
        assert one.abs().max() > 0 and torch.equal(one * 2.0**-60, other)

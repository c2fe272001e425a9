"""Gradients of bfloat16 tensors, whose operands are half precision inside: of any size, as exact as of size 1."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from test_fused import NAMES, fused_plans, relative
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.kernels.largest import LargestSpec
from m2gen.planner.fftconv.filters import FilterKernels
from m2gen.planner.fftconv.passes import plans
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_turned import TurnedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.largest import largest_of
from m2gen.runtime.bindings.passes import PassesKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.turned import TurnedKernel
from m2gen.testing.exact import exact
from m2gen.testing.operands import operands

pytestmark = pytest.mark.usefixtures("poison")
SIZES = (1.0, 1e-4, 1e-8, 1e-20, 1e20)
INSIDE, ROUNDED = 1e-3, 3e-3  # of a result in float32, and of one rounded to bfloat16
STAGED = 1.5
FEW = replace(target("sm90"), cores=4)  # few programs, with loops


def gradients(kernel: FusedKernel | PassesKernel, args: dict[str, Any], dy: Tensor) -> dict[str, Tensor]:
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


KINDS = ("on chip", "stacked", "staged", "passes", "several", "several stacked")


def kernel_of(kind: str, problem: Problem) -> FusedKernel | PassesKernel:
    """Each way in which what comes backward is brought into range: by a tile of one row or of several, or by what a
    launch before found."""
    if kind == "passes":
        found = min(plans(problem, FEW, 4096), key=lambda plan: (plan.body.transform.size, plan.body.outer[0].ring))
        return PassesKernel(problem, found.body)
    bodies = [p.body for p in rank(problem, target("sm90")).plans if type(p.body) is FusedConv]
    bodies = [b for b in bodies if b.spec.ring == ("cyclic" if problem.mode == "circular" else "causal")]
    if kind == "staged":
        return FusedKernel(problem, replace(next(b for b in bodies if b.spec.staged and b.dk.staged), back=None))
    stacked = kind.endswith("stacked")
    body = next(b for b in bodies if not b.spec.staged and (b.spec.stack > 1) == stacked)
    if stacked:  # kernels of gradients, too
        stack, filters = body.spec.stack, FilterKernels(why="made for others")
        dk, *bwd = (replace(s, stack=stack, full=False) for s in (body.dk, *(one.spec for one in body.bwd)))
        several = tuple(replace(one, spec=s) for one, s in zip(body.bwd, bwd, strict=True))
        body = replace(body, dk=dk, bwd=several, filters=filters)
    return FusedKernel(problem, body if kind.startswith("several") else replace(body, bwd=()))


def of_kind(kind: str, words: str, b: int = 3) -> Problem:
    n = {"staged": 16384, "passes": 4096}.get(kind, 256)
    return parse(f"fftconv n={n} h=1 b={b} bf16 {words}")


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e20])
@pytest.mark.parametrize("words", ["n=8192 b=2 circular", "n=9000 b=1 causal gated skip"])
def test_with_an_outer_stage(words: str, size: float) -> None:
    """There a launch before finds the largest gradient of each tile."""
    problem = parse(f"fftconv {words} h=1 bf16")
    args, dy = operands(problem), gradient_of(problem, size)
    found = gradients(FusedKernel(problem, plan_of(problem, staged=True).body), args, dy)
    for name, want in wanted(args, dy).items():
        assert relative(found[name], want) < STAGED * INSIDE, name


@pytest.mark.parametrize(("mode", "gate"), [("circular", 1e-20), ("causal", 1e-8), ("causal", 1e8)])
@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_any_size(kind: str, mode: str, gate: float) -> None:
    """What is brought into range is the product with the second gate, whose zeros may hide what is large."""
    problem = of_kind(kind, f"{mode} gated skip", b=2)
    args, dy = operands(problem), gradient_of(problem, 1.0)
    args["post_gate"] = args["post_gate"] * gate
    args["post_gate"][..., :3] = 0.0
    dy[..., :3] *= 1e6
    found, right = gradients(kernel_of(kind, problem), args, dy), wanted(args, dy)
    for name, want in right.items():
        there = slice(3 if want.dim() == 3 else 0, None)  # the others are large, and of few terms
        assert relative(found[name][..., there], want[..., there]) < STAGED * INSIDE, name


@pytest.mark.parametrize("mode", ["circular", "causal"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_size(kind: str, mode: str) -> None:
    """Each transform has a power of its own, so other rows of a batch may be of any other size; on the cyclic ring two
    rows share a transform."""
    problem = of_kind(kind, f"{mode} gated", b=6)
    args, dy, kernel = operands(problem), gradient_of(problem, 1.0), kernel_of(kind, problem)
    stack = kernel.spec.stack if isinstance(kernel, FusedKernel) and not kernel.spec.staged else 1
    own = [row if mode == "causal" else row % stack if stack > 1 else row // 2 for row in range(6)]
    sizes = torch.tensor([1e15, 1e-15, 0.0, 1e-8, 1.0, 1e8], dtype=torch.bfloat16)[own]
    dy = dy * sizes.view(6, 1, 1)
    found, right = gradients(kernel, args, dy), wanted(args, dy)
    for name, row in product(("u", "pre_gate", "post_gate"), range(6)):
        if sizes[row] == 0:
            assert not found[name][row].any(), name
        else:
            assert relative(found[name][row], right[name][row]) < STAGED * INSIDE, (name, row)
    assert relative(found["k"], right["k"]) < STAGED * INSIDE


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith("stacked")])
def test_what_is_not_finite_is_not_hidden(kind: str) -> None:
    """It stays in its row, and small gradients of the others are as before. (What is stacked has one product, in which
    nothing times what is not finite is not nothing.)"""
    problem = of_kind(kind, "causal post_gated")
    args, dy = operands(problem), gradient_of(problem, 1e-8)
    kernel = kernel_of(kind, problem)
    before = gradients(kernel, args, dy)["u"]
    assert before[0].any()
    for bad in (float("nan"), float("inf")):
        dy[1, 0, 7] = bad
        found = gradients(kernel, args, dy)
        assert torch.equal(found["u"][::2], before[::2]) and not found["u"][1].isfinite().any()
        assert not found["k"].isfinite().all()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("splits", [1, 40])
def test_the_largest_of_a_tile(rows: int, splits: int) -> None:
    """Whatever the strides, with a gate and without; a NaN is found, and an odd last row stands alone."""
    d, gate = (torch.randn(5, 3, 9001, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (0, 1))
    spec = LargestSpec(dtype="bf16", rows=rows)
    for x in (d, d.mT.contiguous().mT, d.flip(1), d[..., ::2], d[:, :1].expand(5, 3, 9001)):
        for other in (None, gate[..., : x.shape[2]].mT.contiguous().mT):
            product = x.float() if other is None else x.float() * other.float()
            padded = torch.nn.functional.pad(product.abs().amax(2), (0, 0, 0, -5 % rows))
            expected = padded.view(-1, rows, 3).amax(1)
            assert torch.equal(largest_of(x, other, spec, splits * 9), expected)
    d[4, 2, 9000] = float("nan")
    found = largest_of(d, None, spec, splits * 9)
    assert found[-1, 2].isnan() and found.isnan().sum() == 1


@pytest.mark.parametrize("size", [1.0, 1e-10, 1e6])
def test_tangents_of_any_size(size: float) -> None:
    """Forward mode computes with them in float32, as they may be smaller than half precision holds."""
    problem = parse("fftconv n=256 h=2 b=2 bf16 causal gated")
    args, t = operands(problem), gradient_of(problem, size)
    args.pop("layout", None)
    found = torch.func.jvp(lambda u: m2gen.fftconv(**(args | {"u": u})), (args["u"],), (t,))[1]
    right = m2gen.fftconv(**{n: x.double() if isinstance(x, Tensor) else x for n, x in (args | {"u": t}).items()})
    assert found.dtype == torch.bfloat16 and relative(found, right) < ROUNDED


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

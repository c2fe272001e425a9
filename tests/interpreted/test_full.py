"""Kernels that mask nothing, where every place of every tile is a sample: the bits of those that do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_fused import BOUND, NAMES, check, fused_plans

import m2gen
from m2gen.errors import M2GenError
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.testing.operands import operands

pytestmark = pytest.mark.usefixtures("poison")
FULL = [
    "fftconv n=256 h=2 b=8 fp16 circular gated skip add",  # 8 rows fill a stacked tile
    "fftconv n=256 h=1 b=3 fp16 causal gated skip",
    "fftconv n=256 h=1 b=2 fp16 same k=31 post_gated",
    "fftconv n=512 h=1 b=2 fp32 bidirectional pre_gated skip",
    "fftconv n=1024 h=1 b=4 fp16 circular skip",
    "fftconv n=4096 h=1 b=1 fp16 causal gated",
    "fftconv n=8192 h=1 b=2 fp16 circular gated skip",  # with an outer stage, too
]


def full_plans(problem: Problem) -> list[Plan]:
    return [plan for plan in fused_plans(problem) if plan.body.spec.full]


@pytest.mark.parametrize("text", FULL)
def test_the_same_bits_without_masks(text: str) -> None:
    problem = parse(text)
    args = operands(problem)
    x = Operands(*(args.get(n) for n in (*NAMES, "add")))
    plans = full_plans(problem)
    assert plans
    for plan in plans:
        step = replace(plan.body, bwd=())
        masked = replace(step, spec=replace(step.spec, full=False), dk=replace(step.dk, full=False))
        found = []
        for one in (step, masked):
            kernel = FusedKernel(problem, one)
            y = kernel.forward(x)
            given = {n: args[n] for n in NAMES if n in args}
            out = {n: torch.empty_like(t) if t.dim() == 3 else torch.zeros_like(t) for n, t in given.items()}
            kernel.backward(y, x, Gradients(**out))
            found.append([y, *out.values()])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other), step


@pytest.mark.parametrize("text", FULL[:4])
def test_against_float64(text: str) -> None:
    """Through the public function; a slice of a longer tensor is read within its bounds."""
    problem = parse(text)
    assert "_full_" in m2gen.plan(text, "auto").choice
    args = operands(problem)
    args["u"] = torch.cat([args["u"], args["u"] * float("nan")], -1)[..., : problem.n]
    check(problem, args, m2gen.fftconv, BOUND[problem.dtype])


def test_other_sizes_are_refused() -> None:
    """Nothing would keep such a kernel within its tensors."""
    problem = parse("fftconv n=256 h=1 b=2 fp16 circular")
    plan = next(plan for plan in full_plans(problem) if plan.body.spec.batch_rows == 2)
    args = operands(problem)
    for other in ("fftconv n=256 h=1 b=3 fp16 circular", "fftconv n=250 h=1 b=2 fp16 circular"):
        u = operands(parse(other))["u"]
        with pytest.raises(M2GenError, match="masks nothing"):
            kernel_of(plan).forward(Operands(u, args["k"]))


def test_places_that_hold_no_sample_are_masked() -> None:
    for text in ("n=255 h=1 b=8 fp16 causal", "n=256 h=1 b=3 fp16 circular", "n=300 k=200 h=1 b=8 fp16 circular"):
        assert all(not plan.body.spec.full for plan in fused_plans(parse(f"fftconv {text}")))

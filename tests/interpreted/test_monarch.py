"""Monarch products against float64: both factors in one kernel and stage by stage, odd sizes and strides, every
gradient alone and together, the same bits every time."""

from __future__ import annotations

from itertools import product

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2gen.planner.monarch.fused import Fused
from m2gen.planner.monarch.problem import MonarchProblem, Shape
from m2gen.planner.monarch.steps import FusedMonarch
from m2gen.reference import monarch as oracle
from m2gen.runtime.bindings import blockdiag_triton
from m2gen.runtime.bindings.monarch_triton import FusedKernel

pytestmark = pytest.mark.usefixtures("poison")
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
Shapes = tuple[Shape, ...]


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockdiag_triton, "live", lambda device: comparison.SMALL)


def kernels(shapes: Shapes, rows: int, dtype: torch.dtype) -> list[FusedKernel]:
    """Of every plan: one kernel for both factors, where there is one, and stage by stage."""
    (first, _, depth), (last, width, _) = shapes[0], shapes[-1]
    problem = MonarchProblem(n_in=first * depth, n_out=last * width, rows=rows, dtype=NAMES[dtype], factors=shapes)
    steps = [plan.body for plan in Fused().candidates(problem, comparison.SMALL)]
    return [FusedKernel(problem, step) for step in steps if isinstance(step, FusedMonarch)]


def drawn(shapes: Shapes, rows: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Tensor]:
    """x, factors, dy."""
    x = comparison.draw(rows, shapes[0][0] * shapes[0][2], dtype=dtype)
    factors = [comparison.draw(*s, dtype=dtype, seed=i) / s[2] ** 0.5 for i, s in enumerate(shapes)]
    return x, factors, comparison.draw(rows, shapes[-1][0] * shapes[-1][1], dtype=dtype, seed=9)


def check(kernel: FusedKernel, x: Tensor, factors: list[Tensor], dy: Tensor) -> None:
    leaves = [t.double().requires_grad_() for t in (x, *factors)]
    expected = leaves[0] @ oracle.standard(leaves[1:]).T
    comparison.close(kernel.product(x, factors), expected.detach(), "y")
    grads = kernel.gradients(dy, x, factors, [True] * len(leaves))
    for i, (found, want) in enumerate(zip(grads, torch.autograd.grad(expected, leaves, dy.double()), strict=True)):
        assert found is not None
        comparison.close(found, want, f"gradient {i}")


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Shapes, int, torch.dtype, str]:
    """Two factors that meet in every block."""
    blocks, middle = draw(st.sampled_from([1, 2, 5, 16])), draw(st.sampled_from([1, 3, 16]))
    shapes = ((blocks, middle, draw(comparison.SIZES)), (middle, draw(comparison.SIZES), blocks))
    return shapes, draw(comparison.SIZES), draw(comparison.dtypes), draw(comparison.STRIDES)


@settings(max_examples=12)
@given(pairs())
def test_two_factors(problem: tuple[Shapes, int, torch.dtype, str]) -> None:
    shapes, rows, dtype, how = problem
    x, factors, dy = drawn(shapes, rows, dtype)
    at_once, by_stages = kernels(shapes, rows, dtype)
    assert at_once.step.whole is not None and at_once.step.whole_back is not None and by_stages.step.whole is None
    for kernel in (at_once, by_stages):
        check(kernel, comparison.strided(x, how), [comparison.strided(f, how) for f in factors], dy)


@pytest.mark.parametrize(
    "shapes", [((1, 7, 5),), ((4, 4, 5), (8, 3, 2), (12, 3, 2)), ((4, 24, 10), (4, 10, 24))], ids=str
)
def test_stage_by_stage(shapes: Shapes) -> None:
    """One factor, three, and two whose blocks do not meet one another."""
    x, factors, dy = drawn(shapes, 19, torch.float16)
    (kernel,) = kernels(shapes, 19, torch.float16)
    check(kernel, x, factors, dy)


@pytest.mark.parametrize("which", [0, 1])
def test_each_gradient_alone(which: int) -> None:
    shapes = ((6, 5, 4), (5, 7, 6))
    x, factors, dy = drawn(shapes, 33, torch.float32)
    kernel = kernels(shapes, 33, torch.float32)[which]
    every = kernel.gradients(dy, x, factors, [True] * 3)
    for needs in product((True, False), repeat=3):
        for one, whole, need in zip(kernel.gradients(dy, x, factors, needs), every, needs, strict=True):
            assert (one is not None) == need
            assert one is None or torch.equal(one, whole)  # type: ignore[arg-type]


def test_any_leading_shape() -> None:
    shapes = ((4, 4, 4), (4, 4, 4))
    x, factors, _ = drawn(shapes, 12, torch.float16)
    for kernel in kernels(shapes, 12, torch.float16):
        assert torch.equal(kernel.product(x.view(3, 4, 16), factors).view(12, 16), kernel.product(x, factors))

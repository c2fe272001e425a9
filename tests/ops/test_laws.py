"""What a convolution obeys, whatever computes it; hypothesis draws sizes, modes and gates."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.planner.fftconv.problem import MODES, FftConvProblem
from m2gen.planner.problem import Problem
from m2gen.testing.operands import operands

Case = tuple[Problem, dict[str, Any]]


@st.composite
def cases(draw: st.DrawFn, gated: bool = False) -> Case:
    n, k, mode = draw(st.integers(1, 200)), draw(st.integers(1, 220)), draw(st.sampled_from(MODES))
    k = k - 1 + k % 2 if mode == "same" else min(k, n) if mode == "circular" else k
    problem = FftConvProblem(
        n=n, k=k, mode=mode, h=draw(st.integers(1, 3)), b=draw(st.integers(1, 3)), dtype="fp64",
        pre_gate=gated and draw(st.booleans()), post_gate=gated and draw(st.booleans()), skip=draw(st.booleans()),
    )  # fmt: skip
    return problem, operands(problem, seed=draw(st.integers(0, 99)))


def assert_close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12 * max(1.0, b.abs().max().item() if b.numel() else 1.0))


def other(x: Tensor) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(7))


@given(cases(gated=True))
def test_linear_in_u(case: Case) -> None:
    _, args = case
    u, v = args["u"], other(args["u"])
    y = m2gen.fftconv(**args | {"u": 2 * u - 3 * v})
    assert_close(y, 2 * m2gen.fftconv(**args) - 3 * m2gen.fftconv(**args | {"u": v}))


@given(cases(gated=True))
def test_linear_in_the_filter(case: Case) -> None:
    _, args = case
    names = [name for name in ("k", "k_rev", "skip") if name in args]
    second = {name: other(args[name]) for name in names}
    mixed = {name: 2 * args[name] - 3 * second[name] for name in names}
    assert_close(m2gen.fftconv(**args | mixed), 2 * m2gen.fftconv(**args) - 3 * m2gen.fftconv(**args | second))


@given(cases(), st.integers(1, 50))
def test_shift(case: Case, by: int) -> None:
    """A delayed input delays the output, in full on a circle, and up to the edge elsewhere."""
    problem, args = case
    by %= problem.n
    u = args["u"].roll(by, -1)
    if problem.mode != "circular":
        u[..., :by] = 0
    late, y = m2gen.fftconv(**args | {"u": u}), m2gen.fftconv(**args)
    if problem.mode == "circular":
        return assert_close(late, y.roll(by, -1))
    if problem.mode == "causal":
        return assert_close(late[..., by:], y[..., : problem.n - by])
    cut = m2gen.fftconv(**args | {"u": args["u"].clone().index_fill_(-1, torch.arange(problem.n - by, problem.n), 0)})
    return assert_close(late[..., by:], cut[..., : problem.n - by])


@given(cases(), st.integers(0, 199))
def test_impulse(case: Case, at: int) -> None:
    """An impulse gives the filter back, lag by lag."""
    problem, args = case
    at %= problem.n
    u = torch.zeros_like(args["u"])
    u[..., at] = 1
    y = m2gen.fftconv(**args | {"u": u, "skip": None})
    i = torch.arange(problem.n)
    lag = (i - at) % problem.n if problem.mode == "circular" else i - at
    lag = lag + (problem.taps_given - 1) // 2 if problem.mode == "same" else lag
    expected = taps_at(args["k"], lag)
    if "k_rev" in args:
        expected = expected + taps_at(args["k_rev"], -lag - 1)
    assert_close(y, expected.expand_as(y))


def taps_at(k: Tensor, index: Tensor) -> Tensor:
    inside = (index >= 0) & (index < k.shape[1])
    return torch.where(inside, k[:, index.clamp(0, k.shape[1] - 1)], 0.0)


@given(cases(gated=True))
def test_adjoint(case: Case) -> None:
    """<A u, v> = <u, A' v>, A' by autograd."""
    _, args = case
    u = args["u"].requires_grad_()
    y = m2gen.fftconv(**args)
    v = other(y)
    (back,) = torch.autograd.grad(y, u, v)
    assert_close((y * v).sum(), (u * back).sum())


@given(cases(gated=True), st.integers(0, 199))
def test_causality(case: Case, at: int) -> None:
    """What comes later changes nothing earlier; beyond the wrap-free modes only the filter's reach matters."""
    problem, args = case
    assume(problem.mode != "circular")
    at %= problem.n
    u = args["u"].clone()
    u[..., at:] += 1
    reach = problem.taps[0]
    before = slice(0, max(0, at - reach))
    assert_close(m2gen.fftconv(**args | {"u": u})[..., before], m2gen.fftconv(**args)[..., before])


@given(cases(gated=True))
def test_gates_associate(case: Case) -> None:
    """A gate inside the call is a product outside it."""
    _, args = case
    pre, post = args.pop("pre_gate", None), args.pop("post_gate", None)
    inside = m2gen.fftconv(**args, pre_gate=pre, post_gate=post)
    outside = m2gen.fftconv(**args | {"u": args["u"] if pre is None else args["u"] * pre})
    assert_close(inside, outside if post is None else outside * post)


@given(cases())
def test_batch_rows_and_channels_are_independent(case: Case) -> None:
    problem, args = case
    y = m2gen.fftconv(**args)
    h = problem.h - 1
    alone = {name: args[name][h:] for name in ("k", "k_rev", "skip") if name in args}
    row = m2gen.fftconv(**args | alone | {"u": args["u"][-1:, h:]})
    assert_close(row, y[-1:, h:])

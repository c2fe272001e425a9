"""fftconv with a filter of its own for each sample, k (B, H, K): each sample as if alone, in every way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.errors import ProblemError
from m2gen.planner.fftconv.problem import MODES
from m2gen.reference import fftconv as oracle

SEQUENCES, FILTERS = ("u", "pre_gate", "post_gate", "add"), ("k", "k_rev", "skip")


def drawn(
    b: int, h: int, n: int, taps: int, mode: str, flags: Any, dtype: torch.dtype = torch.float32, layout: str = "BHL",
    seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    pre, post, skip, add, shared = flags

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    shape = (b, h, n) if layout == "BHL" else (b, n, h)
    args: dict[str, Any] = {"u": normal(*shape).to(dtype), "k": normal(b, h, taps), "mode": mode, "layout": layout}
    if mode == "bidirectional":
        args["k_rev"] = normal(b, h, taps)
    for name, there in (("pre_gate", pre), ("post_gate", post), ("add", add)):
        if there:
            args[name] = normal(*shape).to(dtype)
    if skip:
        args["skip"] = normal(h) if shared else normal(b, h)
    return args


def alone(args: dict[str, Any], call: Any) -> Tensor:
    """Sample by sample."""
    found = []
    for i in range(args["u"].shape[0]):
        own = {n: x[i : i + 1] if n in SEQUENCES else x for n, x in args.items()}
        own |= {n: x[i] if x.dim() == (2 if n == "skip" else 3) else x for n, x in args.items() if n in FILTERS}
        found.append(call(**own))
    return torch.cat(found)


def check(args: dict[str, Any], bound: float) -> None:
    """Result and every gradient against the direct sum in float64."""
    names = [n for n, x in args.items() if isinstance(x, Tensor)]
    leaves = {n: args[n].detach().requires_grad_() for n in names}
    exact = {n: args[n].detach().double().requires_grad_() for n in names}
    y, expected = m2gen.fftconv(**(args | leaves)), alone(args | exact, oracle.fftconv)
    assert y.shape == args["u"].shape and y.dtype == args["u"].dtype

    def relative(found: Tensor, want: Tensor) -> float:
        return ((found.double() - want).norm() / want.norm().clamp_min(1e-30)).item()

    assert relative(y, expected) < bound
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    wanted = torch.autograd.grad(expected, list(exact.values()), dy.double())
    for name, one, want in zip(names, found, wanted, strict=True):
        assert relative(one, want) < bound, name


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 3), st.integers(1, 60), st.integers(1, 70), st.sampled_from(MODES),
    st.tuples(*[st.booleans()] * 5), st.sampled_from(["BHL", "BLH"]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_each_sample_against_the_direct_sum(
    b: int, h: int, n: int, taps: int, mode: str, flags: Any, layout: str, dtype: torch.dtype
) -> None:
    taps = taps - 1 + taps % 2 if mode == "same" else min(taps, n) if mode == "circular" else taps
    bound = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 8e-3}[dtype]  # filters are float32
    check(drawn(b, h, n, taps, mode, flags, dtype, layout), bound)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize(("b", "h"), [(0, 2), (2, 0), (0, 0)])
def test_nothing_to_compute(b: int, h: int, layout: str) -> None:
    args = drawn(b, h, 9, 9, "causal", (True, True, True, True, False), layout=layout)
    leaves = {n: args[n].requires_grad_() for n, x in args.items() if isinstance(x, Tensor)}
    y = m2gen.fftconv(**args)
    assert y.shape == args["u"].shape
    for one, leaf in zip(torch.autograd.grad(y.sum(), list(leaves.values())), leaves.values(), strict=True):
        assert one.shape == leaf.shape and not one.any()


@pytest.mark.parametrize("n", [1000, 5000])
def test_longer_ones(n: int) -> None:
    check(drawn(2, 2, n, n, "causal", (True, True, True, True, False)), 1e-5)


def test_second_derivatives() -> None:
    args = drawn(2, 2, 7, 5, "bidirectional", (True, True, True, False, False))
    names = [n for n, x in args.items() if isinstance(x, Tensor)]
    tensors = [args[n].double().requires_grad_() for n in names]

    def call(*given: Tensor) -> Tensor:
        return m2gen.fftconv(**(args | dict(zip(names, given, strict=True))))

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_compiled_mapped_and_under_autocast(layout: str) -> None:
    args = drawn(3, 2, 40, 40, "causal", (True, False, True, False, True), layout=layout)
    y = m2gen.fftconv(**args)
    compiled = torch.compile(lambda **given: m2gen.fftconv(**given), fullgraph=True)
    torch.testing.assert_close(compiled(**args), y)

    def one(u: Tensor, k: Tensor, pre: Tensor) -> Tensor:
        given = {"u": u, "k": k, "pre_gate": pre, "skip": args["skip"], "layout": layout}
        return m2gen.fftconv(**given)

    twice = {n: 2 * args[n] for n in ("u", "k", "pre_gate")}
    more = (torch.stack([args[n], x]) for n, x in twice.items())
    torch.testing.assert_close(torch.vmap(one)(*more), torch.stack([y, m2gen.fftconv(**(args | twice))]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = m2gen.fftconv(**args)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), y, rtol=0.05, atol=0.2)
    tangent = torch.randn_like(args["k"])
    moved = torch.func.jvp(lambda k: m2gen.fftconv(**(args | {"k": k})), (args["k"],), (tangent,))[1]
    skipless = {n: x for n, x in args.items() if n != "skip"}
    torch.testing.assert_close(moved, m2gen.fftconv(**(skipless | {"k": tangent})), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"k": torch.zeros(2, 3, 5)}, r"k: its shape is \(2, 3, 5\)\. Give it the shape \(2, K\), or \(3, 2, K\)"),
        ({"k": torch.zeros(3, 2, 0)}, "no taps"),
        ({"skip": torch.zeros(3, 3)}, r"skip: its shape is \(3, 3\)"),
        ({"k_rev": torch.zeros(3, 2, 9)}, "k_rev"),
        ({"mode": "round"}, "mode"),
        ({"layout": "HBL"}, "layout"),
        ({"pre_gate": torch.zeros(3, 2, 8)}, "pre_gate"),
        ({"u": torch.zeros(2, 8)}, "u"),
        ({"skip": 1.0}, "skip"),
        ({"k_rev": 1.0, "mode": "bidirectional"}, "k_rev"),
        ({"pre_gate": torch.zeros(3, 2, 9).double()}, "pre_gate"),
    ],
)
def test_what_does_not_fit_is_told(changed: dict[str, Any], told: str) -> None:
    args = drawn(3, 2, 9, 9, "causal", (False,) * 5)
    with pytest.raises(ProblemError, match=told):
        m2gen.fftconv(**(args | changed))

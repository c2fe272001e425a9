"""The fused convolution against the direct sum in float64: every mode, odd lengths, gates, layouts, every gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.planner.fftconv.problem import MODES, FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.reference import fftconv as oracle
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.limits import live
from m2gen.testing.operands import operands

BOUND = {"fp16": 1e-3, "fp32": 1e-5}  # relative l2, forward and gradients
NAMES = ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")  # those with gradients of their own
SEQUENCES = ("u", "pre_gate", "post_gate", "add")
pytestmark = pytest.mark.usefixtures("poison")


def fused_plans(problem: Problem) -> list[Any]:
    """One plan for each ring and radices: warps and stages mean nothing to the interpreter."""
    plans = [plan for plan in rank(problem, target("sm90")).plans if plan.solver == "fused"]
    return list({(plan.body.spec.ring, plan.body.spec.radices): plan for plan in reversed(plans)}.values())[::-1]


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(problem: Problem, args: dict[str, Any], run: Any, bound: float) -> None:
    """y and every gradient of `run(**args)` against the float64 reference of the same values."""
    names = [name for name, x in args.items() if isinstance(x, Tensor)]
    low = args | {name: args[name].detach().requires_grad_() for name in names}
    exact = args | {name: args[name].detach().double().requires_grad_() for name in names}
    y, expected = run(**low), oracle.fftconv(**exact)
    assert relative(y, expected) < bound
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    found = torch.autograd.grad(y, [low[n] for n in names], dy)
    wanted = torch.autograd.grad(expected, [exact[n] for n in names], dy.double())
    for name, grad, want in zip(names, found, wanted, strict=True):
        scale = max(float(want.norm()), of_terms(name, problem, exact, dy.double()))
        assert float((grad.double() - want).norm()) < bound * max(scale, 1e-30), (name, relative(grad, want))


def of_terms(name: str, problem: Any, args: dict[str, Any], dy: Tensor) -> float:
    """The norm that a filter's gradient has where the products that each tap sums have signs by chance: a sum that
    cancels keeps the error of its terms. 0 for other gradients: the skip's is summed in float32."""
    if name not in ("k", "k_rev"):
        return 0.0
    z, d = (args["u"] * args.get("pre_gate", 1.0)).detach(), (dy * args.get("post_gate", 1.0)).detach()
    if problem.layout == "BLH":
        z, d = z.mT, d.mT
    of_tap = z.square().mean((0, 2)) * d.square().mean((0, 2)) * z.shape[0]  # times the samples that a lag leaves
    lo, hi = problem.taps
    lags = {"k": range(-lo if problem.mode == "same" else 0, hi + 1), "k_rev": range(1, lo + 1)}[name]
    terms = sum(problem.n if problem.mode == "circular" else problem.n - abs(lag) for lag in lags)
    return float((of_tap * terms).sum().sqrt())


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    mode = draw(st.sampled_from(MODES))
    n = draw(st.sampled_from([1, 2, 17, 101, 127, 128, 199, 255, 256]) | st.integers(1, 256))
    k = draw(st.sampled_from([1, n]) | st.integers(1, 300))
    k = k - 1 + k % 2 if mode == "same" else min(k, n) if mode == "circular" else k
    return FftConvProblem(
        n=n, k=k, mode=mode, h=draw(st.integers(1, 2)), b=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from(["fp16", "fp32"])), pre_gate=draw(st.booleans()), post_gate=draw(st.booleans()),
        skip=draw(st.booleans()), add=draw(st.booleans()), layout=draw(st.sampled_from(["BHL", "BLH"])),
    )  # fmt: skip


@settings(max_examples=60)
@given(problems(), st.sampled_from(["as is", "step", "offset", "expanded"]))
def test_fftconv_end_to_end(problem: Problem, how: str) -> None:
    """Through the public function: operator, executor, planner, kernel; any strides."""
    args = operands(problem)
    for name in SEQUENCES:
        if name in args:
            args[name] = restride(args[name], how)
    check(problem, args, m2gen.fftconv, BOUND[problem.dtype])


def restride(x: Tensor, how: str) -> Tensor:
    if how == "step":
        return torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2]
    if how == "offset":
        return torch.cat([x[..., :1], x], dim=-1)[..., 1:]
    return x[:1].expand(x.shape) if how == "expanded" else x


def test_the_public_call_runs_the_fused_kernel() -> None:
    plan = m2gen.plan("fftconv n=100 h=2 b=2 fp16 causal", "auto")
    assert plan.solver == "fused" and isinstance(kernel_of(plan), FusedKernel)
    assert live(torch.device("cpu")).arch == "sm90"


RADICES = [
    "fftconv n=256 h=1 b=3 fp16 circular gated",
    "fftconv n=500 h=1 b=2 fp16 causal gated skip add",
    "fftconv n=1024 h=1 b=2 fp16 circular skip",
    "fftconv n=1000 h=1 b=1 fp16 causal",
    "fftconv n=1000 h=1 b=2 fp16 bidirectional gated skip",
    "fftconv n=700 h=1 b=2 fp16 circular k=600 add",
    "fftconv n=1000 h=1 b=2 fp32 causal pre_gated skip",
    "fftconv n=4096 h=1 b=2 fp16 circular gated",
    "fftconv n=4000 h=1 b=1 fp16 causal gated skip",
    "fftconv n=8191 h=1 b=1 fp16 causal post_gated",
    "fftconv n=16384 h=1 b=2 fp16 circular add",
]


@pytest.mark.parametrize("text", RADICES)
def test_every_pair_of_radices(text: str) -> None:
    """All plans of a problem, not only the chosen one, and more programs a channel than one."""
    problem = parse(text)
    args = operands(problem)
    expected = oracle.fftconv(**args)
    x = Operands(*(args.get(n) for n in (*NAMES, "add")))
    plans = fused_plans(problem)
    assert plans
    for plan in plans:
        step = plan.body
        assert isinstance(step, FusedConv)
        for programs in {problem.h, problem.h * min(2, problem.b)}:
            y = FusedKernel(problem, replace(step, programs=programs)).forward(x)
            assert relative(y, expected) < BOUND[problem.dtype], plan.body


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=32768 h=1 b=2 fp16 circular gated",
        "fftconv n=30000 h=2 b=1 fp16 causal gated skip add",
        "fftconv n=16384 h=1 b=3 fp16 bidirectional skip",
        "fftconv n=20001 k=12000 h=1 b=2 fp16 circular add",
        "fftconv n=9999 h=1 b=1 fp32 causal post_gated",
    ],
)
def test_staged(text: str) -> None:
    """Rings past one block's registers, forward and every gradient; the reference is the library in float64."""
    problem = parse(text)
    args = operands(problem)
    plan = next(plan for plan in fused_plans(problem) if plan.body.spec.staged)

    kernel, x = FusedKernel(problem, plan.body), Operands(*(args.get(n) for n in (*NAMES, "add")))
    y = kernel.forward(x)
    exact = {n: args[n].detach().double().requires_grad_() for n in NAMES if n in args}
    add = args["add"].double() if problem.add else None
    expected = m2gen.fftconv(**exact, add=add, mode=problem.mode)
    bound = 1.5e-3 if problem.dtype == "fp16" else 1e-5
    assert relative(y, expected) < bound
    dy = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    wanted = torch.autograd.grad(expected, list(exact.values()), dy.double())
    out = Gradients(
        **{n: torch.empty_like(args[n]) if args[n].dim() == 3 else torch.zeros_like(args[n]) for n in exact}
    )
    kernel.backward(dy, x, out)
    for name, want in zip(exact, wanted, strict=True):
        assert relative(getattr(out, name), want) < bound, name


def test_bfloat16_tensors_round_once() -> None:
    """The interpreter truncates on conversion to bfloat16, so the kernel writes float32 here and torch rounds."""
    problem = parse("fftconv n=400 h=2 b=3 bf16 causal gated skip add")
    args = operands(problem)
    kernel = FusedKernel(problem, fused_plans(problem)[0].body)
    x = Operands(*(args.get(n) for n in (*NAMES, "add")))
    y = torch.full(x.u.shape, float("nan"))
    kernel._convolve(kernel.spec, x.u, x.pre_gate, x.post_gate, y, kernel._spectrum(x), x.add)
    expected = oracle.fftconv(**args)
    assert relative(y, expected) < 1e-3
    assert relative(y.bfloat16(), expected) < 2e-3


def test_filters_beyond_half_precision() -> None:
    """Filters whose spectrum half precision cannot hold are scaled, channel by channel; zero filters stay zero."""
    problem = parse("fftconv n=200 h=4 b=2 fp16 causal")
    args = operands(problem)
    args["k"] = args["k"] * torch.tensor([1e5, 1e-9, 0.0, 1.0]).unsqueeze(1)
    args["u"] = args["u"] * 0.02
    y, expected = m2gen.fftconv(**args), oracle.fftconv(**args)
    assert relative(y[:, 0], expected[:, 0]) < 1e-3
    assert relative(y[:, 3], expected[:, 3]) < 1e-3
    assert (y[:, 2] == 0).all()


def test_rows_do_not_mix() -> None:
    """Two batch rows share a transform: an impulse in one leaves the other at rounding level."""
    problem = parse("fftconv n=256 h=1 b=2 fp16 circular")
    args = operands(problem)
    args["u"][0] = 0
    args["u"][0, 0, 3] = 1
    both, alone = m2gen.fftconv(**args), m2gen.fftconv(**args | {"u": args["u"][:1]})
    assert (both[0] - alone[0]).abs().max() < 2e-3 * both[1].abs().max()


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "same"])
def test_what_is_not_finite_stays_in_its_row_but_on_a_cyclic_ring(mode: str) -> None:
    """There two batch rows share a transform."""
    problem = parse(f"fftconv n=127 h=2 b=4 fp32 {mode}")
    rings = {plan.body.spec.ring: FusedKernel(problem, plan.body) for plan in reversed(fused_plans(problem))}
    assert set(rings) == {"cyclic", "causal"}
    for ring, kernel in rings.items():
        x = Operands(*(operands(problem).get(n) for n in (*NAMES, "add")))
        finite = kernel.forward(x)
        x.u[1, 0, 63] = float("nan")
        touched = (kernel.forward(x) != finite).any(-1).nonzero().tolist()
        assert touched == ([[0, 0], [1, 0]] if ring == "cyclic" else [[1, 0]])


def test_gradients_are_the_same_bits_every_time() -> None:
    problem = parse("fftconv n=200 h=2 b=5 fp16 causal gated skip")
    args = operands(problem)
    k = args["k"].requires_grad_()
    first, second = (torch.autograd.grad(m2gen.fftconv(**args).float().sum(), k)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_spectra_of_prepared_filters_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And those of other filters in every call: nothing tells that a tensor has not been written to."""
    calls = []
    transformed = FusedKernel._transformed
    monkeypatch.setattr(FusedKernel, "_transformed", lambda self, x: calls.append(1) or transformed(self, x))
    args = operands(parse("fftconv n=60 h=2 b=1 fp16 causal skip"))
    with torch.no_grad():
        y = m2gen.fftconv(**args)
        m2gen.fftconv(**args)
        assert len(calls) == 2
        prepared = m2gen.prepare_filter(args["k"], skip=args["skip"])
        for _ in range(3):
            assert torch.equal(m2gen.fftconv(args["u"], prepared), y) and len(calls) == 3
    u = args["u"].requires_grad_()
    m2gen.fftconv(u, prepared).float().sum().backward()
    assert len(calls) == 3 and u.grad is not None
    m2gen.fftconv(u[..., :40].contiguous(), prepared)
    assert len(calls) == 4
    args["k"].data.mul_(2)
    assert not torch.equal(m2gen.fftconv(**args), y)


def test_one_prepared_filter_on_several_rings_and_in_several_dtypes() -> None:
    """Its spectra are of the same size, and are not taken for one another."""
    k = torch.randn(2, 9)
    prepared = m2gen.prepare_filter(k, mode="same")
    names = set()
    with torch.no_grad():
        for n in (100, 256):
            for dtype, precision in ((torch.float16, "auto"), (torch.float32, "auto"), (torch.float16, "wide")):
                u = torch.randn(2, 2, n).to(dtype)
                y = m2gen.fftconv(u, prepared, precision=precision)
                assert torch.equal(y, m2gen.fftconv(u, k, mode="same", precision=precision))
            names.add(m2gen.plan(f"fftconv n={n} k=9 h=2 b=2 fp16 same", "auto").choice.split("_w")[0])
    assert {name.split("_")[2] for name in names} == {"n256"} and len(names) == 2


def test_wide_keeps_the_range_of_bfloat16() -> None:
    """Operands in bfloat16, emulated here: values that float16 cannot hold, at bfloat16's error."""
    problem = parse("fftconv n=200 h=2 b=3 bf16 causal gated skip wide")
    plan = fused_plans(problem)[0]
    assert plan.body.spec.compute == "bf16"
    args = operands(problem)
    args["u"] = args["u"] * 1e6
    x = Operands(*(args.get(n) for n in (*NAMES, "add")))
    kernel = FusedKernel(problem, plan.body)
    y = torch.full(x.u.shape, float("nan"))
    kernel._convolve(kernel.spec, x.u, x.pre_gate, x.post_gate, y, kernel._spectrum(x))
    error = relative(y, oracle.fftconv(**args))
    assert 1e-3 < error < 8e-3
    narrow = m2gen.fftconv(**args)
    assert not torch.isfinite(narrow).all()
    assert torch.isfinite(m2gen.fftconv(**args, precision="wide")).all()


def test_offsets_pass_two_to_the_31() -> None:
    """Rows further apart than 32 bits count; the memory between them is never touched."""
    far = 2**31 + 24
    store = torch.empty(far + 64, dtype=torch.float16)
    u, near = store.as_strided((2, 1, 64), (far, 64, 1)), torch.randn(2, 1, 64).half()
    u.copy_(near)
    k = torch.randn(1, 64)
    assert torch.equal(m2gen.fftconv(u, k), m2gen.fftconv(near, k))

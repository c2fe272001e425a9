"""fftconv against the direct sum in float64: modes, layouts, gates, dtypes, lengths, strides, solvers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.planner.fftconv.problem import MODES, FftConvProblem
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.reference import fftconv as oracle
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.native import NativeKernel
from m2gen.runtime.bindings.spectral import Operands, SpectralKernel
from m2gen.runtime.build.limits import live
from m2gen.testing.operands import operands
from m2gen.testing.tolerances import check

pytestmark = pytest.mark.usefixtures("poison")
GATES = [(False, False), (True, False), (False, True), (True, True)]


def magnitude(args: dict[str, Any]) -> Tensor:
    """The size of the terms each row sums: the same convolution of absolute values, its largest entry per row; the
    post gate stays elementwise, since it multiplies the finished sum, and so does what is added."""
    absolute = {name: x.abs() if isinstance(x, Tensor) else x for name, x in args.items()}
    gate, add = absolute.pop("post_gate", None), absolute.pop("add", None)
    sequence = 2 if args["layout"] == "BHL" else 1
    size = oracle.fftconv(**absolute).amax(sequence, keepdim=True)
    size = size if gate is None else size * gate.double()
    return size if add is None else size + add.double()


def check_op(problem: Problem, y: Tensor, args: dict[str, Any]) -> None:
    check(y, oracle.fftconv(**args), magnitude(args), problem.linear_size)


def problem_of(n: int, k: int, mode: str, **fields: Any) -> Problem:
    k = k - 1 + k % 2 if mode == "same" else min(k, n) if mode == "circular" else k
    return FftConvProblem(n=n, k=k, mode=mode, **{"h": 2, "b": 3} | fields)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "fp16", "bf16"])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("gates", GATES)
@pytest.mark.parametrize(("skip", "add"), [(False, False), (True, False), (False, True), (True, True)])
def test_every_form(mode: str, dtype: str, layout: str, gates: tuple[bool, bool], skip: bool, add: bool) -> None:
    for n, k in ((1, 1), (7, 3), (30, 30), (13, 29)):
        problem = problem_of(
            n, k, mode, dtype=dtype, layout=layout, pre_gate=gates[0], post_gate=gates[1], skip=skip, add=add, h=5
        )
        args = operands(problem)
        y = m2gen.fftconv(**args)
        assert y.dtype == args["u"].dtype and y.stride() == args["u"].stride()
        check_op(problem, y, args)


LENGTHS = [1, 2, 3, 5, 17, 64, 97, 100, 127, 128, 255, 784, 1000, 1021, 2047, 2048, 4093, 4096, 4097]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", LENGTHS)
def test_lengths_and_filter_lengths(mode: str, n: int) -> None:
    for k in {1, max(1, n // 3), max(1, n - 1), n, n + 1, 4097}:
        problem = problem_of(n, k, mode, h=1, b=1 if n > 1000 else 2)
        args = operands(problem, seed=k)
        check_op(problem, m2gen.fftconv(**args), args)


def kernels(problem: Problem) -> dict[str, Any]:
    """For each solver, and folded or not, its cheapest plan of each order, in chunks of one channel and of all."""
    found = {}
    for plan in rank(problem, live(torch.device("cpu"))).plans:
        step = plan.body
        for channels in (1, 2, problem.h):
            key = f"{plan.solver}-order{step.transform.order}-fold{step.fold}-{channels}"
            if max(step.transform.radices, default=1) <= 4200:
                found.setdefault(key, kernel_of(replace(plan, steps=(plan.steps[0], replace(step, channels=channels)))))
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", [1, 2, 17, 60, 97, 128, 196, 1000])
def test_solvers_agree(mode: str, n: int) -> None:
    problem = problem_of(n, n, mode, pre_gate=True, post_gate=True, skip=True, add=True, h=3, b=2)
    args = operands(problem)
    expected, scale = oracle.fftconv(**args), magnitude(args)
    x = Operands(*(args.get(name) for name in ("u", "k", "k_rev", "pre_gate", "post_gate", "skip", "add")))
    tried = kernels(problem)
    assert {name.split("-")[0] for name in tried} == {"library", "composed"} | (
        {"native"} if problem.linear_size >= 16 else set()
    )
    for name, kernel in tried.items():
        try:
            check(kernel.forward(x), expected, scale, problem.linear_size)
        except AssertionError as error:  # noqa: PERF203
            raise AssertionError(f"{name}: {error}") from None


def test_composed_uses_no_fft(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the composed solver called torch.fft")

    for name in ("fft", "ifft", "rfft", "irfft"):
        monkeypatch.setattr(torch.fft, name, forbidden)
    problem = problem_of(60, 60, "causal")
    args = operands(problem)
    step = next(p.body for p in rank(problem, target("avx2")).plans if p.solver == "composed")
    check_op(problem, SpectralKernel(problem, step).forward(Operands(args["u"], args["k"])), args)


@st.composite
def strided(draw: st.DrawFn) -> tuple[Problem, dict[str, Any]]:
    n, k = draw(st.integers(1, 80)), draw(st.integers(1, 90))
    mode = draw(st.sampled_from(MODES))
    gates = draw(st.sampled_from(GATES))
    problem = problem_of(
        n, k, mode, h=draw(st.integers(1, 4)), b=draw(st.integers(1, 3)), pre_gate=gates[0], post_gate=gates[1],
        skip=draw(st.booleans()), layout=draw(st.sampled_from(["BHL", "BLH"])),
        dtype=draw(st.sampled_from(["fp32", "fp64", "bf16", "fp16"])),
    )  # fmt: skip
    args = operands(problem, seed=draw(st.integers(0, 9)))
    for name in ("u", "pre_gate", "post_gate", "k", "k_rev"):
        if isinstance(args.get(name), Tensor):
            args[name] = restride(
                args[name], draw(st.sampled_from(["as is", "step", "permuted", "offset", "expanded"]))
            )
    return problem, args


def restride(x: Tensor, how: str) -> Tensor:
    """The same values (one repeated row for "expanded") behind other strides."""
    if how == "step":
        return torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2]
    if how == "permuted":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if how == "offset":
        return torch.cat([x[..., :1], x], dim=-1)[..., 1:]
    if how == "expanded":
        return x[:1].expand(x.shape)
    return x


@given(strided())
def test_any_strides(case: tuple[Problem, dict[str, Any]]) -> None:
    problem, args = case
    check_op(problem, m2gen.fftconv(**args), args)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("how", ["step", "permuted", "offset", "expanded"])
def test_any_strides_of_what_is_added(layout: str, how: str) -> None:
    for n, h, mode, dtype in ((9, 3, "same", "fp32"), (80, 5, "bidirectional", "bf16"), (64, 33, "circular", "fp32")):
        args = operands(problem_of(n, 7, mode, h=h, layout=layout, dtype=dtype, post_gate=True, add=True))
        args["add"] = restride(args["add"], how)
        check_op(problem_of(n, 7, mode), m2gen.fftconv(**args), args)


def test_inputs_are_left_alone() -> None:
    problem = parse("fftconv n=33 h=3 b=2 fp32 bidirectional gated skip add")
    args = operands(problem)
    before = {name: x.clone() for name, x in args.items() if isinstance(x, Tensor)}
    for x in before:
        args[x].requires_grad_()
    m2gen.fftconv(**args).square().sum().backward()
    assert all(torch.equal(args[name], x) for name, x in before.items())


@pytest.mark.parametrize("layout", ["", "blh"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_sum_is_rounded_once(dtype: str, layout: str) -> None:
    """A convolution that its addend all but cancels: rounded before, it would be lost."""
    args = operands(parse(f"fftconv n=200 h=32 b=2 {dtype} causal {layout}"))
    y = oracle.fftconv(**args)
    args["add"] = -y.to(args["u"].dtype)
    left = y + args["add"].double()
    assert (m2gen.fftconv(**args).double() - left).norm() < 0.01 * left.norm()


def test_what_is_added_has_the_result_s_gradient() -> None:
    """Itself, and no convolution is run for it."""
    args = operands(parse("fftconv n=40 h=3 b=2 fp32 causal add"))
    add = args["add"].requires_grad_()
    y = m2gen.fftconv(**args)
    dy = torch.randn_like(y)
    assert torch.autograd.grad(y, add, dy)[0] is dy


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_what_is_added_in_compiled_and_exported_graphs(layout: str) -> None:
    args = operands(problem_of(24, 24, "causal", h=5, layout=layout, post_gate=True, add=True))
    names = ("u", "k", "post_gate", "add")
    tensors = [args[name].requires_grad_() for name in names]

    class Conv(torch.nn.Module):
        def forward(self, u: Tensor, k: Tensor, gate: Tensor, add: Tensor) -> Tensor:
            return m2gen.fftconv(u, k, post_gate=gate, add=add, layout=layout).square()

    y = Conv()(*tensors)
    compiled = torch.compile(Conv(), fullgraph=True, backend="aot_eager")(*tensors)
    assert torch.equal(compiled, y)
    grads = (torch.autograd.grad(one.sum(), tensors) for one in (compiled, y))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
    exported = torch.export.export(Conv(), tuple(x.detach() for x in tensors)).module()
    assert torch.equal(exported(*(x.detach() for x in tensors)), y)


def test_filters_may_have_another_dtype() -> None:
    problem = parse("fftconv n=40 h=3 b=2 bf16 causal skip")
    args = operands(problem)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        other = args | {"k": args["k"].to(dtype), "skip": args["skip"].to(dtype)}
        check_op(problem, m2gen.fftconv(**other), other)


def test_the_step_executed_is_the_step_planned() -> None:
    problem = parse("fftconv n=100 h=4 b=2 causal")
    for plan in rank(problem, live(torch.device("cpu"))).plans:
        native = isinstance(plan.body, NativeConv)
        assert native == (plan.solver == "native")
        assert isinstance(kernel_of(plan), NativeKernel if native else SpectralKernel) and plan.body.channels >= 1


def test_reference_is_the_definition() -> None:
    """The oracle itself, against the sums written as loops."""
    k, k_rev, z = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[8.0, 16.0, 32.0]]), torch.randn(1, 1, 5)
    y = oracle.fftconv(z, k, mode="bidirectional", k_rev=k_rev)[0, 0]
    for i in range(5):
        behind = sum(k[0, i - j].double() * z[0, 0, j].double() for j in range(5) if 0 <= i - j < 3)
        ahead = sum(k_rev[0, j - i - 1].double() * z[0, 0, j].double() for j in range(5) if 0 <= j - i - 1 < 3)
        torch.testing.assert_close(y[i], torch.as_tensor(behind + ahead, dtype=torch.float64))

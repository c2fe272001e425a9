"""Generated C++ convolutions against the direct sum in float64: forward, every gradient, every vector width."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from m2gen.device.limits import target
from m2gen.errors import CompileError
from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.planner.fftconv.native import Native
from m2gen.planner.fftconv.problem import MODES, FftConvProblem
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.reference import fftconv as oracle
from m2gen.runtime import executor
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings import native
from m2gen.runtime.bindings.kept_spectra import KeptFilter
from m2gen.runtime.bindings.native import NativeKernel
from m2gen.runtime.bindings.native_table import table
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.compiler import arch_flags
from m2gen.runtime.build.cpp_kernel import available
from m2gen.runtime.build.limits import live
from m2gen.testing.operands import operands
from m2gen.testing.tolerances import check

pytestmark = pytest.mark.skipif(available() is not None, reason="no C++ compiler")
TENSORS = ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")  # those with gradients of their own
OPERANDS = (*TENSORS, "add")
HERE = live(torch.device("cpu")).arch


def native_plan(problem: Problem, arch: str = HERE) -> Plan:
    found = rank(problem, target(arch)).best("native")
    assert found is not None
    return found


def rows_plan(problem: Problem) -> Plan:
    """The best native plan whose vectors lie along time."""
    plans = [plan for plan in Native().candidates(problem, target(HERE)) if not plan.body.spec.wide]
    return min(plans, key=lambda plan: plan.estimate.seconds)


def kernel_with(plan: Plan, **fields: Any) -> NativeKernel:
    """The plan's kernel with other fields of its spec, the backward's too."""
    step = plan.body
    assert isinstance(step, NativeConv)
    spec = replace(step.spec, **fields)
    return NativeKernel(plan.problem, replace(step, spec=spec, bwd=replace(spec, part="bwd", add=False)))


def as_bhl(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments with sequences as (B, H, L) views."""
    turned = {name: args[name].mT for name in ("u", "pre_gate", "post_gate", "add") if name in args}
    return args | turned if args["layout"] == "BLH" else args


def gradients_of(args: dict[str, Any], dy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The reference's result and gradients, in float64."""
    leaves = {n: args[n].detach().double().requires_grad_() for n in TENSORS if n in args}
    y = oracle.fftconv(**leaves, add=args.get("add"), mode=args["mode"])
    return y.detach(), dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy.double()), strict=True))


def outputs(x: Operands) -> Gradients:
    """NaN wherever a gradient must be written; zeros where taps may never reach an output."""
    nan = {
        n: torch.full_like(t, torch.nan)
        for n in ("u", "pre_gate", "post_gate", "skip")
        if (t := getattr(x, n)) is not None
    }
    zero = {n: torch.zeros_like(t) for n in ("k", "k_rev") if (t := getattr(x, n)) is not None}
    return Gradients(**nan, **zero)


def check_everything(problem: Problem, kernel: NativeKernel) -> None:
    """Forward and gradients, each error measured against the size of the terms that were summed."""
    args = as_bhl(operands(problem))
    dy = operands(problem, seed=1)["u"]
    dy = dy.mT if problem.layout == "BLH" else dy
    y, grads = gradients_of(args, dy)
    sizes, grad_sizes = gradients_of({n: a.abs() if isinstance(a, Tensor) else a for n, a in args.items()}, dy.abs())
    x = Operands(*(args.get(name) for name in OPERANDS))
    out = outputs(x)
    kernel.backward(dy, x, out)
    found = {"y": kernel.forward(x)} | {name: getattr(out, name) for name in grads}
    # the gradients of all taps come off one ring: the largest of them sets the size of its rounding
    taps = [name for name in ("k", "k_rev", "skip") if name in grads]
    largest = torch.stack([grad_sizes[name].view(problem.h, -1).amax(1) for name in taps]).amax(0)
    grad_sizes |= {name: largest.view(-1, *[1] * (grads[name].dim() - 1)) for name in taps}
    for name, value in found.items():
        reference, size = (y, sizes) if name == "y" else (grads[name], grad_sizes[name])
        terms = problem.linear_size * (1 if name in ("y", "u", "pre_gate", "post_gate") else problem.b)
        try:
            check(value, reference, size.amax(-1, keepdim=True) if size.dim() > 2 else size, terms)
        except AssertionError as error:
            raise AssertionError(f"{name} of {problem}: {error}") from None


def problem_of(n: int, k: int, mode: str, **fields: Any) -> Problem:
    k = k - 1 + k % 2 if mode == "same" else min(k, n) if mode == "circular" else k
    return FftConvProblem(n=n, k=k, mode=mode, **{"h": 3, "b": 2, "skip": True} | fields)


# every mode, and every dtype in those modes that need most of a kernel
FORMS = [
    *(("fp32", mode) for mode in MODES),
    *((dtype, mode) for dtype in ("fp64", "bf16", "fp16") for mode in ("bidirectional", "circular")),
]


# n, k, gated: the last two add nothing that depends on a dtype
LENGTHS = ((17, 5, True), (130, 130, True), (257, 40, False), (33, 7, False), (100, 300, True))


@pytest.mark.parametrize(("dtype", "mode"), FORMS)
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_every_form(mode: str, dtype: str, layout: str) -> None:
    for n, k, gated in LENGTHS if dtype == "fp32" else LENGTHS[:3]:
        h = 3 if layout == "BHL" else 21  # a whole vector of channels, and some that are left
        problem = problem_of(n, k, mode, dtype=dtype, layout=layout, h=h, pre_gate=gated, post_gate=gated)
        for posed in (problem, replace(problem, add=True)):
            plan = native_plan(posed) if layout == "BHL" else rows_plan(posed)
            check_everything(posed, kernel_with(plan))


@pytest.mark.parametrize(("dtype", "mode"), FORMS[:6])  # fp32 and fp64
@pytest.mark.parametrize("arch", ["avx512", "avx2", "neon"])
def test_every_vector_width(mode: str, arch: str, dtype: str) -> None:
    """Of other CPUs, compiled for this one: the algorithm's lanes, not the instruction set."""
    for layout in ("BHL", "BLH"):
        problem = problem_of(150, 90, mode, dtype=dtype, layout=layout, h=9, pre_gate=True)
        check_everything(problem, kernel_with(native_plan(problem, arch)))


@pytest.mark.parametrize(
    "radices", [(2, 3), (3, 5), (5, 2), (7, 3), (4, 11), (13, 2), (8, 8, 2), (8, 4, 4, 3), (3, 3, 3), (16 // 2, 7, 2)]
)
def test_every_radix(radices: tuple[int, ...]) -> None:
    """Rings from 96 to 24576 points of narrow vectors, blocks near and far, and short problems."""
    problem = problem_of(300, 90, "bidirectional", h=2)
    plan = native_plan(problem, "neon")
    size = 16 * torch.tensor(radices).prod().item()
    fits = {"half": problem.n <= size, "half_filter": False}
    if 2 * size < problem.linear_size:
        problem = problem_of(60, 20, "bidirectional", h=2)
        plan, fits = native_plan(problem, "neon"), {"half": size >= 60, "half_filter": False}
    check_everything(problem, kernel_with(plan, radices=radices, **fits))


@pytest.mark.generated
@pytest.mark.parametrize("arch", ["avx2", "generic"])
def test_code_of_another_cpu(arch: str) -> None:
    """The older instruction sets that this CPU has as well."""
    try:
        arch_flags(arch)
    except CompileError as error:
        pytest.skip(str(error))
    for dtype in ("fp32", "fp64", "fp16", "bf16"):
        problem = problem_of(150, 90, "bidirectional", dtype=dtype, h=2, post_gate=True)
        check_everything(problem, kernel_with(native_plan(problem, arch), arch=arch))


def test_packed_sequences() -> None:
    """A short filter: the sequence fills both parts of the ring, which has little more than half its length."""
    problem = parse("fftconv n=500 k=9 h=2 b=2 causal gated")
    plan = native_plan(problem)
    step = plan.body
    assert isinstance(step, NativeConv) and not step.spec.half and step.spec.size < 300
    check_everything(problem, kernel_with(plan))


@pytest.mark.parametrize("n", [2048, 6000, 8191, 10007])
def test_longer_sequences(n: int) -> None:
    """Against float64 torch.fft, whose error is nothing at this scale."""
    problem = FftConvProblem(n=n, h=2, b=1)
    args = operands(problem)
    y = kernel_with(native_plan(problem)).forward(Operands(args["u"], args["k"]))
    check(y, by_fft(args["u"].double(), args["k"].double()), by_fft(*absolute(args)).amax(-1, keepdim=True), n)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2**17 + 3, 2**20])
def test_very_long_sequences(n: int) -> None:
    test_longer_sequences(n)


def absolute(args: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return args["u"].double().abs(), args["k"].double().abs()


def by_fft(u: Tensor, k: Tensor) -> Tensor:
    size = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., : u.shape[-1]]


def test_no_less_accurate_than_twice_the_library() -> None:
    """Relative error in float32 against float64, for every length to 300: the library's own, at most doubled."""
    generator = torch.Generator().manual_seed(0)
    for n in range(16, 301):
        problem = FftConvProblem(n=n, h=16, b=4)
        u, k = (torch.randn(*shape, generator=generator) for shape in ((4, 16, n), (16, n)))
        expected = oracle.fftconv(u, k)
        error = (kernel_of(native_plan(problem)).forward(Operands(u, k)) - expected).norm()
        assert error <= 2 * (by_fft(u, k) - expected).norm(), n


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_threads_do_not_change_bits(layout: str) -> None:
    problem = parse(f"fftconv n=1500 h=100 b=3 fp32 bidirectional gated skip add {'blh' * (layout == 'BLH')}")
    args = as_bhl(operands(problem))
    x = Operands(*(args.get(name) for name in OPERANDS))
    kernel, dy = kernel_with(native_plan(problem)), torch.randn_like(args["u"])
    assert kernel.parallel and problem.h > kernel.step.channels, "there is work for a second thread"
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            out = outputs(x)
            kernel.backward(dy, x, out)
            results.append([kernel.forward(x), *(getattr(out, name) for name in TENSORS)])
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("wanted", [("u",), ("k",), ("skip",), ("post_gate",), ("pre_gate", "k"), ("u", "post_gate")])
def test_gradients_do_not_depend_on_which_are_wanted(wanted: tuple[str, ...]) -> None:
    problem = parse("fftconv n=90 h=3 b=2 fp64 causal gated skip")
    args = operands(problem)
    x = Operands(*(args.get(name) for name in TENSORS))
    kernel, dy = kernel_with(native_plan(problem)), torch.randn_like(args["u"])
    every, some = outputs(x), outputs(x)
    kernel.backward(dy, x, every)
    kernel.backward(dy, x, Gradients(**{name: getattr(some, name) for name in wanted}))
    for name in wanted:
        torch.testing.assert_close(getattr(some, name), getattr(every, name), rtol=1e-12, atol=1e-12)


def test_any_strides() -> None:
    """Slices, steps, reversed axes, expanded and negated views, rows that are not aligned."""
    problem = FftConvProblem(n=70, h=5, b=3, pre_gate=True, add=True)
    base = torch.randn(3, 5, 141)
    negative = torch.complex(base, base).conj().imag
    gate, add = negative[..., :70], negative[..., ::2][..., 1:]
    assert gate.is_neg() and add.is_neg()
    kernel = kernel_with(native_plan(problem))
    k = torch.randn(70, 5).t()
    for u in (
        base[..., 1:71],
        base[..., ::2][..., 1:],
        base[:1, :, 3:73].expand(3, 5, 70),
        base[:, :1, :70].expand(3, 5, 70),
    ):
        y = kernel.forward(Operands(u, k, pre_gate=gate, add=add))
        plain = {"pre_gate": gate.resolve_neg(), "add": add.contiguous()}
        assert torch.equal(y, kernel.forward(Operands(u.contiguous(), k.contiguous(), **plain)))
        check(
            y,
            oracle.fftconv(u, k, pre_gate=gate, add=add),
            oracle.fftconv(u.abs(), k.abs(), pre_gate=gate.abs(), add=add.abs()).amax(-1, True),
            140,
        )


def test_scratch_is_small() -> None:
    """Bytes a thread: at most 4 MiB to 16384, 64 MiB at a million, beyond inputs and outputs, forward."""
    for n, most in ((1024, 4), (8192, 4), (16384, 4), (2**20, 64)):
        for layout in ("BHL", "BLH"):
            problem = FftConvProblem(n=n, h=768, b=4, layout=layout)
            plan = native_plan(problem)
            assert plan.body.estimate.working_set <= most * 2**20
            group = plan.body.channels
            spec = plan.body.spec
            assert isinstance(spec, FftConvCppSpec)
            assert spec.scratch_bytes(group) <= most * 2**20, (n, layout)


def test_wide_groups_of_channels() -> None:
    """More than a vector of neighbouring channels together, and a last group that is none: the same bits."""
    for h, batch in ((64, 1), (150, 2)):
        problem = parse(f"fftconv n=100 h={h} b={batch} fp32 causal gated skip add blh")
        plan = rows_plan(problem)
        assert plan.body.channels == 4 * plan.body.spec.vector
        check_everything(problem, kernel_with(plan))
        args = as_bhl(operands(problem))
        x = Operands(*(args.get(name) for name in OPERANDS))
        narrow = NativeKernel(problem, replace(plan.body, channels=plan.body.spec.vector))
        assert torch.equal(kernel_with(plan).forward(x), narrow.forward(x))


@pytest.mark.parametrize("vector", [4, 8, 16])
def test_the_table_is_as_long_as_the_offsets_say(vector: int) -> None:
    spec = FftConvCppSpec(
        part="fwd", radices=(4, 3), vector=vector, dtype="fp32", compute="fp32", half=True, half_filter=True
    )
    assert table(spec).numel() == spec.offsets.end


def test_a_kernel_that_does_not_compile_is_replaced_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: FftConvCppSpec) -> None:
        raise CompileError(spec.name, "the compiler gave up", "use another")

    said: list[str] = []
    monkeypatch.setattr(native, "load", refuse)
    monkeypatch.setattr(executor.log, "fallback", said.append)
    executor.kernel_of.cache_clear()
    executor.forget()
    try:
        args = operands(parse("fftconv n=77 h=2 b=2 causal"))
        y = executor.fftconv(Operands(args["u"], args["k"]), "causal", "auto")
        check(y, oracle.fftconv(args["u"], args["k"]), by_fft(*absolute(args)).amax(-1, keepdim=True), 77)
    finally:
        executor.kernel_of.cache_clear()
        executor.forget()
    assert len(said) == 1 and "the compiler gave up" in said[0]


def test_spectra_of_kept_filters_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without; for a filter that its user keeps, and no other; not beyond the bound."""
    made: list[str] = []
    run = NativeKernel._run
    monkeypatch.setattr(NativeKernel, "_run", lambda self, spec, *a: made.append(spec.part) or run(self, spec, *a))
    problem = parse("fftconv n=200 h=3 b=2 fp32 bidirectional gated skip add")
    kernel, args = kernel_of(native_plan(problem)), operands(problem)
    x = Operands(*(args.get(name) for name in OPERANDS))
    expected = kernel.forward(x)
    assert torch.equal(kernel.forward(x), expected) and made == ["fwd", "fwd"]
    kept = KeptFilter(x.k.clone(), x.k_rev.clone(), x.skip.clone())
    k, k_rev, skip = kept.tensors
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            own = replace(x, k=k, k_rev=k_rev, skip=skip)
            assert torch.equal(kernel.forward(own), expected) and made.count("spectrum") == 1
            kernel.forward(replace(own, skip=x.skip))  # another filter
            kernel.forward(replace(own, k=k.clone()))
            assert made.count("spectrum") == 1
    args["k"].mul_(2)
    assert not torch.equal(kernel.forward(x), expected) and torch.equal(kernel.forward(own), expected)
    assert not native_plan(parse("fftconv n=8192 h=768 fp32 causal")).body.keep

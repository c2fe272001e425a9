"""Convolutions on rings that need passes over memory, against float64: forward and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.kernels.outer import OuterSpec
from m2gen.kernels.rows import RowsSpec
from m2gen.planner.fftconv.passes import plans
from m2gen.planner.fftconv.problem import MODES, FftConvProblem
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.problems import parse
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings import large_filter_triton, largest, passes
from m2gen.runtime.bindings.passes import PassesKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.measure.fftconv_case import FftConvCase
from m2gen.testing.exact import NAMES, exact, relative
from m2gen.testing.operands import operands

BOUND = {"fp16": 1e-3, "bf16": 3e-3, "fp32": 1e-5}  # relative l2, forward and gradients
SMALLEST = 4096  # points of a ring: 16 rows of 16 x 16
LIMITS = replace(target("sm90"), cores=4)  # few programs, with loops
LAUNCHING = (passes, large_filter_triton, largest)
pytestmark = pytest.mark.usefixtures("poison")


def bodies(problem: FftConvProblem) -> list[PassesConv]:
    found = [plan.body for plan in plans(problem, LIMITS, SMALLEST)]
    assert found and all(isinstance(body, PassesConv) for body in found)
    return found  # type: ignore[return-value]


def body_of(problem: FftConvProblem, outer: tuple[int, ...], ring: str) -> PassesConv:
    """The step with these outer stages."""
    wanted = [b for b in bodies(problem) if tuple(one.n0 for one in b.outer) == outer and b.outer[0].ring == ring]
    return min(wanted, key=lambda body: body.transform.size)


def drawn(problem: FftConvProblem, like: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[dict[str, Any], Operands]:
    args = operands(problem)
    args |= {n: like(args[n]) for n in ("u", "pre_gate", "post_gate", "add") if n in args}
    return args, Operands(**{name: args[name] for name in (*NAMES, "add") if name in args})


def gradients(kernel: PassesKernel, dy: Tensor, x: Operands, names: Any = NAMES) -> dict[str, Tensor]:
    given = {name: getattr(x, name) for name in names if getattr(x, name) is not None}
    out = {n: torch.empty_like(t) if t.dim() == 3 else torch.zeros_like(t) for n, t in given.items()}
    kernel.backward(dy, x, Gradients(**out))
    return out


def held(problem: FftConvProblem, body: PassesConv, like: Callable[[Tensor], Tensor] = lambda x: x) -> None:
    """y and every gradient of the step against float64."""
    bound = BOUND[problem.dtype]
    if problem.dtype == "fp16":
        bound *= 1.5 if len(body.outer) == 1 else 2.0
    args, x = drawn(problem, like)
    kernel = PassesKernel(problem, body)
    y, (expected, leaves) = kernel.forward(x), exact(args)
    assert relative(y, expected) < bound, body
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
    found = gradients(kernel, dy, x)
    for name, want in zip(leaves, wanted, strict=True):
        assert relative(found[name], want) < bound, (name, body)


@st.composite
def problems(draw: st.DrawFn) -> FftConvProblem:
    mode = draw(st.sampled_from(MODES))
    n = draw(st.sampled_from([2049, 3001, 4095, 4096]) | st.integers(2049, 4096))
    k = draw(st.sampled_from([1, n]) | st.integers(1, 4096))
    k = k - 1 + k % 2 if mode == "same" else min(k, n) if mode == "circular" else k
    return FftConvProblem(
        n=n, k=k, mode=mode, h=1, b=draw(st.integers(1, 3)), dtype=draw(st.sampled_from(["fp16", "fp32"])),
        pre_gate=draw(st.booleans()), post_gate=draw(st.booleans()), skip=draw(st.booleans()), add=draw(st.booleans()),
    )  # fmt: skip


def restride(x: Tensor, how: str) -> Tensor:
    if how == "step":
        return torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2]
    if how == "offset":
        return torch.cat([x[..., :1], x], dim=-1)[..., 1:]
    return x[:1].expand(x.shape) if how == "expanded" else x


@settings(max_examples=10, deadline=None)
@given(problems(), st.sampled_from(["as is", "step", "offset", "expanded"]), st.randoms(use_true_random=False))
def test_any_problem(problem: FftConvProblem, how: str, random: Any) -> None:
    body = random.choice([body for body in bodies(problem) if body.transform.size <= 8192])
    body = replace(body, rows=random.choice([1, 2, 3]), channels=1)
    held(problem, body, lambda x: restride(x, how))


@pytest.mark.parametrize(
    ("text", "outer", "ring"),
    [
        ("fftconv n=4096 h=2 b=2 fp16 circular gated skip add", (16,), "cyclic"),
        ("fftconv n=8192 h=1 b=1 fp16 causal", (32,), "causal"),
        ("fftconv n=16000 h=1 b=2 fp16 same k=8001 gated", (64,), "causal"),
        ("fftconv n=16384 h=1 b=2 fp16 circular post_gated", (64,), "cyclic"),
        ("fftconv n=32768 h=1 b=2 fp16 circular pre_gated", (128,), "cyclic"),
        ("fftconv n=100001 k=30000 h=1 b=1 fp16 causal gated skip", (32,), "causal"),
        ("fftconv n=100001 k=20000 h=1 b=2 fp16 circular gated", (32,), "cyclic"),
        ("fftconv n=65536 h=1 b=1 fp16 circular gated skip", (16, 16), "cyclic"),
        ("fftconv n=50001 k=999 h=1 b=1 fp32 bidirectional post_gated", (16, 16), "causal"),
    ],
)  # fmt: skip
def test_orders_and_sizes(text: str, outer: tuple[int, ...], ring: str) -> None:
    """Every radix, every mode, one stage and two."""
    problem = parse(text)
    assert isinstance(problem, FftConvProblem)
    held(problem, body_of(problem, outer, ring))


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=4096 h=2 b=5 fp16 circular gated skip",
        "fftconv n=4001 h=1 b=3 fp16 causal post_gated",
        "fftconv n=3001 h=1 b=2 fp16 circular gated skip",  # a circle on a longer ring
        "fftconv n=4096 h=2 b=2 fp16 circular pre_gated",
    ],
)
def test_gradients_at_once_or_one_each(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch between the passes where every gradient is wanted, the transpose of the second gate's on a longer
    ring aside; the same numbers as of a kernel each."""
    problem = parse(text)
    _, x = drawn(problem)
    dy = torch.randn_like(x.u)
    launched = []
    launch = passes.launch
    monkeypatch.setattr(passes, "launch", lambda spec, *rest: launched.append(spec) or launch(spec, *rest))
    several = [body for body in bodies(problem) if body.bwd is not None]
    assert {one.spec.size for one in several} >= {256}
    for body in several:
        launched.clear()
        together = gradients(PassesKernel(problem, body), dy, x)
        aside = body.outer[0].wrap and problem.post_gate
        assert [one.part for one in launched if isinstance(one, RowsSpec)] == ["bwd", "fwd"][: 1 + aside]
        launched.clear()
        singly = gradients(PassesKernel(problem, replace(body, bwd=None)), dy, x)
        parts = [one.part for one in launched if isinstance(one, RowsSpec)]
        assert parts == ["dk", "fwd", "fwd"][: 2 + problem.post_gate]
        for name, found in together.items():
            assert relative(found, singly[name].double()) < 1e-6, (name, body)


def test_gradients_by_other_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward with one radix and backward with another; without the filter's gradient as forward."""
    problem = parse("fftconv n=8192 h=1 b=2 fp16 circular gated skip")
    assert isinstance(problem, FftConvProblem)
    body, back = (body_of(problem, (n0,), "cyclic") for n0 in (16, 32))
    body = replace(body, back=back)
    held(problem, body)
    launched = watched(monkeypatch)
    _, x = drawn(problem)
    kernel = PassesKernel(problem, body)
    kernel.forward(x)
    assert set(launched) == set(body.kernels(problem, gradients=False))
    launched.clear()
    gradients(kernel, torch.randn_like(x.u), x)
    assert set(launched) == set(back.behind(problem))
    launched.clear()
    gradients(kernel, torch.randn_like(x.u), x, ("u", "post_gate"))
    assert {one.n0 for one in launched if isinstance(one, OuterSpec)} == {16}


def test_only_what_is_wanted_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the filter's gradient kernels of one result each, as nothing is shared between the others."""
    problem = parse("fftconv n=4096 h=1 b=2 fp16 circular gated skip")
    kernel = PassesKernel(problem, body_of(problem, (16,), "cyclic"))
    _, x = drawn(problem)
    dy = torch.randn_like(x.u)
    launched = []
    monkeypatch.setattr(passes, "launch", lambda spec, *_: launched.append(spec))
    for names, parts in {
        ("u", "k"): ["bwd du dk"],
        ("pre_gate", "post_gate", "skip", "k"): ["bwd du conv dk"],
        ("post_gate", "k"): ["bwd conv dk"],
        ("k", "skip"): ["dk "],
        ("u", "post_gate", "skip"): ["fwd ", "fwd "],
        ("u", "pre_gate"): ["fwd "],
    }.items():
        launched.clear()
        gradients(kernel, dy, x, names)
        found = [f"{one.part} {' '.join(one.results)}" for one in launched if isinstance(one, RowsSpec)]
        assert found == parts, names


def test_chunks_change_nothing() -> None:
    """Channels and batch rows in chunks: the same bits of everything but the sums over the batch."""
    problem = parse("fftconv n=4001 h=2 b=3 fp16 circular gated skip")
    whole = body_of(problem, (16,), "cyclic")
    _, x = drawn(problem)
    dy = torch.randn_like(x.u)
    kernels = [PassesKernel(problem, body) for body in (whole, replace(whole, channels=1, rows=2))]
    assert torch.equal(*(kernel.forward(x) for kernel in kernels))
    one, other = (gradients(kernel, dy, x) for kernel in kernels)
    for name in ("u", "pre_gate", "post_gate"):
        assert torch.equal(one[name], other[name]), name
    for name in ("k", "skip"):
        assert relative(other[name], one[name].double()) < 1e-5, name


def test_gradients_are_the_same_bits_every_time_and_alone() -> None:
    """Whichever are wanted: a gradient does not depend on the others."""
    problem = parse("fftconv n=3001 h=1 b=3 fp16 circular gated skip")
    kernel = PassesKernel(problem, body_of(problem, (16,), "cyclic"))
    _, x = drawn(problem)
    dy = torch.randn_like(x.u)
    every = gradients(kernel, dy, x)
    for names in (("u",), ("pre_gate",), ("post_gate",), ("k",), ("skip",), ("k", "post_gate"), NAMES):
        for name, found in gradients(kernel, dy, x, names).items():
            assert torch.equal(found, every[name]), (name, names)


@pytest.mark.parametrize("size", [1.0, 1e-8, 1e30, 0.0])
def test_gradients_of_bfloat16_that_half_precision_does_not_hold(size: float) -> None:
    """They are brought into its range first, and out again."""
    problem = parse("fftconv n=4001 h=1 b=2 bf16 causal gated skip")
    kernel = PassesKernel(problem, body_of(problem, (16,), "causal"))
    args, x = drawn(problem)
    _, leaves = exact(args)
    expected = exact(args)[0]
    dy = (torch.randn(x.u.shape, generator=torch.Generator().manual_seed(1)) * size).bfloat16()
    expected, leaves = exact(args)
    wanted = torch.autograd.grad(expected, list(leaves.values()), dy.double())
    for (name, found), want in zip(gradients(kernel, dy, x).items(), wanted, strict=True):
        assert relative(found, want) < BOUND["bf16"] if size else not found.any(), name


def test_what_is_not_finite_backward_is_not_hidden() -> None:
    problem = parse("fftconv n=4001 h=1 b=1 bf16 causal")
    kernel = PassesKernel(problem, body_of(problem, (16,), "causal"))
    _, x = drawn(problem)
    dy = torch.full_like(x.u, float("inf"))
    assert not any(found.isfinite().all() for found in gradients(kernel, dy, x).values())


def test_wide_keeps_the_range_of_bfloat16() -> None:
    """Operands and scratch in bfloat16, emulated here: values that float16 cannot hold, at bfloat16's error."""
    problem = parse("fftconv n=4001 h=1 b=2 bf16 causal gated wide")
    args, x = drawn(problem, lambda x: x * 1e6)
    y = PassesKernel(problem, body_of(problem, (16,), "causal")).forward(x)
    assert 1e-3 < relative(y, exact(args)[0]) < 8e-3


def test_a_prepared_filters_spectrum_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = parse("fftconv n=4001 h=3 b=1 fp16 causal skip")
    kernel = PassesKernel(problem, replace(body_of(problem, (16,), "causal"), channels=2))
    made = []
    transformed = PassesKernel._transformed
    monkeypatch.setattr(PassesKernel, "_transformed", lambda *given: made.append(1) or transformed(*given))
    args, x = drawn(problem)
    y = kernel.forward(x)
    assert len(made) == 2
    prepared = m2gen.prepare_filter(args["k"], skip=args["skip"])
    k, k_rev, skip = prepared._kept.tensors
    own = replace(x, k=k, k_rev=k_rev, skip=skip)
    for _ in range(2):
        assert torch.equal(kernel.forward(own), y)
    assert len(made) == 4


def test_the_public_call_takes_passes_and_a_plan_names_every_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through operator, executor and planner; the kernels launched are those that the plan has, in training and out."""
    text = "fftconv n=70000 h=1 b=1 fp16 causal gated skip"
    plan = m2gen.plan(text, "auto")
    assert plan.solver == "passes" and isinstance(kernel_of(plan), PassesKernel)
    launched = watched(monkeypatch)
    args, _ = drawn(parse(text))
    args.pop("layout")
    leaves = {n: args[n].requires_grad_() for n in NAMES if n in args}
    y = m2gen.fftconv(**args)
    assert set(launched) == set(plan.body.kernels(plan.problem, gradients=False))
    expected, exact_leaves = exact(args)
    assert relative(y.detach(), expected) < 1.5e-3
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, list(leaves.values()), dy)
    wanted = torch.autograd.grad(expected, list(exact_leaves.values()), dy.double())
    assert max(relative(*pair) for pair in zip(found, wanted, strict=True)) < 1.5e-3
    assert set(launched) <= set(plan.body.kernels(plan.problem))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The specs of the kernels that are launched from now on."""
    launched: list[Any] = []
    launch = passes.launch
    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", lambda spec, *rest: launched.append(spec) or launch(spec, *rest))
    return launched


def test_a_first_use_meets_every_kernel_of_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of kernels that no device has run calls each of them, and a wrong one is found."""
    problem = parse("fftconv n=4001 h=1 b=1 bf16 causal gated skip")
    body = body_of(problem, (16,), "causal")
    plan = next(plan for plan in plans(problem, LIMITS, SMALLEST) if plan.body == body)
    case = FftConvCase(problem, torch.device("cpu"))
    launched = watched(monkeypatch)
    assert case.wrong_somewhere(plan) is None
    assert {replace(spec, emulated=False) if isinstance(spec, OuterSpec) else spec for spec in launched} == set(
        body.kernels(problem)
    )
    assert body.bwd is not None and body.bwd.spec in launched and body.dk not in launched
    kernel = kernel_of(plan)
    monkeypatch.setattr(kernel, "transpose", kernel.spec)
    assert "gradient of u alone is off" in str(case.wrong_somewhere(plan))


@pytest.mark.parametrize("text", [
    "fftconv n=8192 h=6 b=3 fp16 circular gated skip",
    "fftconv n=4001 k=999 h=5 b=4 fp16 bidirectional",
    "fftconv n=4001 h=2 b=9 fp32 causal post_gated",
    "fftconv n=5001 h=3 b=4 bf16 circular gated skip",
])  # fmt: skip
def test_memory_stays_within_what_is_stated(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call has allocated at any time, beside its results, is the scratch that the plan states at most. Kernels
    allocate nothing; the interpreter would keep their arguments for a while, so none is run."""
    for module in LAUNCHING:
        monkeypatch.setattr(module, "launch", lambda *_: None)
    problem = parse(text)
    body = replace(body_of(problem, (16,), "cyclic"), channels=2, rows=4)
    kernel = PassesKernel(problem, body)
    _, x = drawn(problem)
    stays_within(kernel, problem, body, x)


def stays_within(kernel: Any, problem: FftConvProblem, body: PassesConv, x: Operands) -> None:
    """What calls allocate beside their results, nothing being launched, is at most what the plan states."""
    dy = torch.randn_like(x.u)
    kernel.forward(x)  # tables are made at the first call, and kept
    gradients(kernel, dy, x)
    out = {n: torch.empty_like(t) for n in NAMES if (t := getattr(x, n)) is not None}
    result = x.u.numel() * x.u.element_size()
    assert peak(lambda: kernel.forward(x)) - result <= body.scratch(problem, gradients=False)
    assert peak(lambda: kernel.backward(dy, x, Gradients(**out))) <= body.scratch(problem, gradients=True)


def peak(call: Callable[[], Any]) -> int:
    """Bytes of PyTorch's allocator in use at once during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as found:
        kept = call()
    del kept
    now = most = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_a_pass_names_what_it_reads_and_writes() -> None:
    spec = OuterSpec(part="analysis", ring="cyclic", n0=16, columns=64, dtype="fp16", compute="fp16")
    assert spec.operands == ("u",)
    assert replace(spec, gate=True, pair=True, pair_gate=True).operands == ("u", "gate", "v", "vgate")
    assert replace(spec, part="synthesis", gate=True, second=True).operands == ("gate", "second", "y", "z")

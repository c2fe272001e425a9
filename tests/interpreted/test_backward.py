"""Several gradients of a fused convolution by one kernel: every subset of them, mode and ring against float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from test_fused import BOUND, NAMES, fused_plans, relative, restride
from torch import Tensor

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.backward import Backward, of_call, usual
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.runtime.bindings import fused
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.triton_kernel import launch
from m2gen.testing.exact import exact
from m2gen.testing.operands import operands

pytestmark = pytest.mark.usefixtures("poison")
BOUNDS = BOUND | {"bf16": 1e-3}  # results are float32 here: the interpreter cuts off what is stored as bfloat16
RESULT_OF = {"u": "du", "pre_gate": "dpre", "post_gate": "dpost", "k": "dk", "k_rev": "dk", "skip": "dk"}


def several(problem: Problem, body: FusedConv, stack: int = 1, splits: int = 1) -> FusedConv:
    """The step with one kernel for all gradients that the ring allows."""
    results = tuple(one for one in usual(problem) if not (body.spec.wrap and one == "dpost"))
    like = replace(body.spec, part="bwd", stack=stack, add=False, full=False)
    spec = of_call(like, results, problem.pre_gate, problem.post_gate, problem.skip)
    spec = replace(spec, full=spec.fills(problem.n, problem.b))
    return replace(body, bwd=(Backward(spec, problem.h * splits),))


def gradients(kernel: FusedKernel, args: dict[str, Any], dy: Tensor, names: Any = NAMES) -> dict[str, Tensor]:
    x = Operands(*(args.get(n) for n in (*NAMES, "add")))
    like = {n: args[n] for n in names if args.get(n) is not None}
    made = {n: torch.float32 if t.dtype == torch.bfloat16 else t.dtype for n, t in like.items()}
    out = {
        n: torch.full_like(t, float("nan"), dtype=made[n]) if t.dim() == 3 else torch.zeros_like(t, dtype=made[n])
        for n, t in like.items()
    }
    kernel.backward(dy, x, Gradients(**out))
    return out


def drawn(problem: Problem) -> tuple[dict[str, Any], Tensor]:
    args = operands(problem)
    dy = torch.randn(args["u"].shape, generator=torch.Generator().manual_seed(1)).to(args["u"].dtype)
    return args, dy


def wanted(args: dict[str, Any], dy: Tensor) -> dict[str, Tensor]:
    expected, leaves = exact(args)
    return dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values()), dy.double()), strict=True))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FftConvSpec]]:
    """The kernels launched, in their order."""
    specs: list[FftConvSpec] = []

    def noted(spec: FftConvSpec, programs: int, *arguments: Any) -> None:
        specs.append(spec)
        launch(spec, programs, *arguments)

    monkeypatch.setattr(fused, "launch", noted)
    yield specs


@pytest.mark.parametrize(
    "text",
    [
        "n=200 b=5 h=2 fp16 causal gated skip add",
        "n=256 b=8 h=2 fp16 circular gated skip",
        "n=100 b=3 h=1 fp16 bidirectional post_gated",
        "n=130 k=31 b=2 h=2 bf16 same pre_gated skip",
        "n=200 k=100 b=3 h=1 fp16 circular gated skip",
        "n=250 k=250 b=2 h=1 fp16 circular pre_gated",
        "n=256 b=3 h=1 fp32 causal gated skip",
        "n=500 b=2 h=1 fp16 causal",
        "n=1000 b=3 h=1 fp16 causal gated skip",
        "n=1024 b=4 h=1 fp16 circular gated",
        "n=2048 b=2 h=1 fp16 circular gated skip",
        "n=2000 b=1 h=1 bf16 causal post_gated skip",
        "n=4096 b=2 h=1 fp16 circular gated",
        "n=100 b=3 h=1 bf16 causal gated wide",
    ],
)
def test_all_gradients_at_once(text: str, launched: list[FftConvSpec]) -> None:
    """All radices, stacked or not, and more programs a channel than one."""
    problem = parse(f"fftconv {text}")
    args, dy = drawn(problem)
    right = wanted(args, dy)
    bound = BOUNDS[problem.dtype] * (8 if problem.wide else 1)  # operands with bfloat16's eight bits
    for plan in fused_plans(problem):
        spec = plan.body.spec
        for stack, splits in {(1, 1), (max(1, 64 // spec.n1), 2)} if problem.n < 512 else {(1, min(2, problem.b))}:
            launched.clear()
            found = gradients(FusedKernel(problem, several(problem, plan.body, stack, splits)), args, dy)
            kernels = 1 + (spec.wrap and problem.post_gate)
            assert [one.part for one in launched] == ["bwd", "fwd"][:kernels]
            for name, want in right.items():
                assert relative(found[name], want) < bound, (spec.name, stack, name)


SUBSETS = [those for n in range(1, 6) for those in combinations(("u", "pre_gate", "post_gate", "k", "skip"), n)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_every_subset_of_wanted_gradients(names: tuple[str, ...], launched: list[FftConvSpec]) -> None:
    """One launch, of a kernel that computes nothing else; of one result it is the kernel of that one."""
    problem = parse("fftconv n=200 h=2 b=3 fp16 causal gated skip")
    args, dy = drawn(problem)
    body = several(problem, fused_plans(problem)[0].body, splits=2)
    found = gradients(FusedKernel(problem, body), args, dy, names)
    right = wanted(args, dy)
    for name in names:
        assert relative(found[name], right[name]) < BOUND["fp16"], name
    results = {RESULT_OF[name] for name in names}
    assert len(launched) == 1
    if len(results) > 1:
        assert set(launched[0].results) == results and launched[0].skip == ("skip" in names)
    else:
        assert launched[0].part == ("dk" if results == {"dk"} else "fwd")


@pytest.mark.parametrize("how", ["step", "offset", "expanded", "across"])
def test_strides(how: str) -> None:
    problem = parse("fftconv n=200 h=2 b=3 fp16 causal gated skip")
    args, dy = drawn(problem)
    moved = (lambda x: x.mT.contiguous().mT) if how == "across" else lambda x: restride(x, how)
    args |= {n: moved(args[n]) for n in ("u", "pre_gate", "post_gate")}
    dy = moved(dy)
    found = gradients(FusedKernel(problem, several(problem, fused_plans(problem)[0].body)), args, dy)
    for name, want in wanted(args, dy).items():
        assert relative(found[name], want) < BOUND["fp16"], name


@pytest.mark.parametrize("text", ["n=256 b=4 h=2 fp16 circular", "n=1024 b=3 h=1 fp16 circular"])
def test_results_in_place_of_operands(text: str) -> None:
    """Without gates: the convolution written over u, its transpose over dy, and the filter's sums: the same bits."""
    problem = parse(f"fftconv {text}")
    args, dy = drawn(problem)
    body = fused_plans(problem)[0].body
    spec = replace(body.spec, part="bwd", results=("du", "conv", "dk"), full=False)
    kernel = FusedKernel(problem, body)
    spectrum = kernel._spectrum(Operands(args["u"], args["k"]))
    found = []
    for place in ("apart", "over"):
        z, d = args["u"].clone(), dy.clone()
        du, conv = (d, z) if place == "over" else (torch.full_like(d, float("nan")) for _ in range(2))
        dkf, _ = kernel._sums(spec, z, 1)
        kernel._launch(spec, problem.h, (z, d, du, conv), (dkf, *spectrum))
        found.append((du, conv, dkf))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    expected, leaves = exact(args)
    assert relative(found[0][1], expected) < BOUND["fp16"]
    assert relative(found[0][0], torch.autograd.grad(expected, leaves["u"], dy.double())[0]) < BOUND["fp16"]


def test_the_same_bits_every_time_and_as_with_one_each() -> None:
    """A result's bits are those of its own kernel; the filter's are of sums in the same order."""
    problem = parse("fftconv n=200 h=2 b=5 fp16 causal gated skip")
    args, dy = drawn(problem)
    plan = next(p for p in fused_plans(problem) if p.body.spec.radices == p.body.dk.radices)
    body = replace(plan.body, programs=2 * problem.h, dk=replace(plan.body.dk, stack=1), bwd=())
    body = replace(body, spec=replace(body.spec, stack=1))
    runs = [gradients(FusedKernel(problem, one), args, dy) for one in (several(problem, body, 1, 2),) * 2 + (body,)]
    for name in runs[0]:
        assert torch.equal(runs[0][name], runs[1][name]) and torch.equal(runs[0][name], runs[2][name]), name

"""On a GPU: every solver and kernel family against float64, forward and gradients; `python -m pytest -m gpu`.

The reference is the float64 FFT of the device, which tests/ops holds against the direct sum on the CPU. The cases named
"small" are fit for compute-sanitizer: `compute-sanitizer python -m pytest -m gpu -k small -n 0`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import m2gen
from m2gen.planner.plan import FusedConv
from m2gen.planner.problem import Problem
from m2gen.planner.search import rank
from m2gen.runtime.executor import kernel_of
from m2gen.runtime.limits import live
from m2gen.runtime.spectral import Gradients, Operands
from m2gen.testing.corpus import corpus
from m2gen.testing.operands import operands

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("poison"),
]

NAMES = ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")
# relative l2 of the whole result; a bfloat16 tensor rounds at 1.65e-3 by itself
BOUND = {"fp16": 1e-3, "bf16": 3e-3, "fp32": 1e-5, "fp64": 1e-12}


def exact(args: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The float64 result and the float64 leaves it was computed from."""
    leaves = {n: args[n].detach().double().requires_grad_() for n in NAMES if n in args}
    k, n = leaves["k"], args["u"].shape[-1]
    z = leaves["u"] * leaves.get("pre_gate", 1.0)
    mode = args["mode"]
    if mode == "circular":
        size, ring = n, k
    else:
        size = 2 * n + 2 * k.shape[1]
        first = (k.shape[1] - 1) // 2 if mode == "same" else 0
        ring = torch.nn.functional.pad(k, (0, size - k.shape[1])).roll(-first, -1)
        if mode == "bidirectional":
            rev = leaves["k_rev"]
            ring = ring + torch.nn.functional.pad(rev.flip(-1), (size - rev.shape[1], 0))
    y = torch.fft.irfft(torch.fft.rfft(z, n=size) * torch.fft.rfft(ring, n=size), n=size)[..., :n]
    if "skip" in leaves:
        y = y + leaves["skip"].unsqueeze(-1) * z
    return y * leaves.get("post_gate", 1.0), leaves


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def on_gpu(problem: Problem) -> dict[str, Any]:
    args = operands(replace(problem, layout="BHL"), device="cuda")
    return {name: x for name, x in args.items() if name != "layout"}


def check(problem: Problem, plan: Any) -> None:
    args = on_gpu(problem)
    expected, leaves = exact(args)
    x = Operands(*(args.get(n) for n in NAMES))
    kernel = kernel_of(plan)
    y = kernel.forward(x)
    staged = isinstance(plan.conv, FusedConv) and plan.conv.spec.staged
    bound = BOUND[problem.dtype] * (1.5 if staged else 1)
    assert relative(y, expected) < bound, plan
    dy = torch.randn_like(y)
    wanted = dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values()), dy.double()), strict=True))
    out = Gradients(**{n: torch.empty_like(t) if t.dim() == 3 else torch.zeros_like(t) for n, t in args_of(args)})
    kernel.backward(dy, x, out)
    for name, want in wanted.items():
        assert relative(getattr(out, name), want) < bound, (name, plan)


def args_of(args: dict[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, args[name]) for name in NAMES if name in args]


def fitting() -> list[tuple[str, Problem]]:
    """The corpus, with batch and channels cut so that float64 fits and a run takes seconds."""
    found = []
    for entry in corpus():
        p = entry.problem
        points = max(1, 2**22 // p.n)
        b = min(p.b, 5 if p.n < 2**20 else 2)
        found.append((entry.name, replace(p, b=b, h=max(1, min(p.h, points // b)))))
    return found


@pytest.mark.parametrize(("name", "problem"), fitting(), ids=lambda x: x if isinstance(x, str) else "")
def test_corpus(name: str, problem: Problem) -> None:
    """The best plan of every solver."""
    ranking = rank(problem, live(torch.device("cuda")))
    for solver in {plan.solver for plan in ranking.plans}:
        best = ranking.best(solver)
        if best is not None and not (solver == "composed" and best.conv.transform.radices[0] > 4096):
            check(problem, best)


SMALL = [
    "fftconv n=100 h=3 b=3 fp16 causal gated skip",
    "fftconv n=256 h=2 b=5 bf16 circular gated skip",
    "fftconv n=100 k=33 h=3 b=2 fp16 circular pre_gated",
    "fftconv n=200 h=2 b=3 fp32 causal post_gated skip",
    "fftconv n=250 h=3 b=1 bf16 bidirectional gated skip",
    "fftconv n=101 k=77 h=2 b=4 fp16 same skip",
]


@pytest.mark.parametrize("text", SMALL)
def test_every_fused_plan_small(text: str) -> None:
    problem = Problem.parse(text)
    for plan in rank(problem, live(torch.device("cuda"))).plans:
        if isinstance(plan.conv, FusedConv):
            check(problem, plan)


@pytest.mark.parametrize("n", [512, 1024, 2048, 4096, 8192, 16384])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_every_fused_plan(n: int, mode: str, dtype: str) -> None:
    for gates in (False, True):
        problem = Problem(n=n, h=4, b=5, mode=mode, dtype=dtype, pre_gate=gates, post_gate=gates, skip=gates)
        plans = [p for p in rank(problem, live(torch.device("cuda"))).plans if isinstance(p.conv, FusedConv)]
        for plan in {p.conv.transform: p for p in reversed(plans)}.values():  # of each ring and radices the best
            check(problem, plan)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_public_call_and_compile(layout: str) -> None:
    problem = Problem.parse("fftconv n=1000 h=64 b=4 bf16 causal gated skip" + (" blh" if layout == "BLH" else ""))
    args = operands(problem, device="cuda")
    y = m2gen.fftconv(**args)
    assert torch.equal(torch.compile(lambda **kw: m2gen.fftconv(**kw), fullgraph=True)(**args), y)
    bhl = {n: x.mT if layout == "BLH" and n in ("u", "pre_gate", "post_gate") else x for n, x in args.items()}
    assert relative(y.mT if layout == "BLH" else y, exact(bhl)[0]) < BOUND["bf16"]


def test_cuda_graph() -> None:
    args = on_gpu(Problem.parse("fftconv n=1024 h=64 b=4 fp16 causal gated skip"))
    m2gen.fftconv(**args)  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = m2gen.fftconv(**args)
    args["u"].copy_(torch.randn_like(args["u"]))
    graph.replay()
    torch.cuda.synchronize()
    assert relative(y, exact(args)[0]) < BOUND["fp16"]

"""On a GPU: every solver and every plan that ranking can return against float64, forward and gradients;
`python -m pytest -m gpu -n 14`.

The reference is the float64 FFT of the device, which tests/ops holds against the direct sum on the CPU. Kernels run in
processes of their own (tests/gpu/on_device.py). The cases named "small" are fit for compute-sanitizer:
`compute-sanitizer --target-processes all python -m pytest -m gpu -k small -n 0`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from on_device import DEVICE, HERE, NEEDS_DEVICE, check

import m2gen
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.testing.corpus import corpus
from m2gen.testing.exact import BOUND, exact, relative
from m2gen.testing.operands import operands
from m2gen.testing.plans import fused_plans

pytestmark = [*NEEDS_DEVICE, pytest.mark.usefixtures("poison")]

EVERY = fused_plans(HERE)


def fused(problem: Problem) -> list[Plan]:
    return [plan for plan in rank(problem, HERE).plans if isinstance(plan.body, FusedConv)]


def fitting() -> list[tuple[str, Problem]]:
    """The corpus, with batch and channels cut so that float64 fits and a run takes seconds."""
    found = []
    for entry in corpus():
        p = entry.problem
        if p.op != "fftconv":
            continue
        points = max(1, 2**22 // p.n)
        b = min(p.b, 5 if p.n < 2**20 else 2)
        found.append((entry.name, replace(p, b=b, h=max(1, min(p.h, points // b)))))
    return found


@pytest.mark.parametrize(("name", "problem"), fitting(), ids=lambda x: x if isinstance(x, str) else "")
def test_corpus(name: str, problem: Problem) -> None:
    """The best plan of every solver."""
    ranking = rank(problem, HERE)
    for solver in {plan.solver for plan in ranking.plans}:
        best = ranking.best(solver)
        if best is not None and not (solver == "composed" and best.body.transform.radices[0] > 4096):
            check(problem, best)


SMALL = [
    "fftconv n=100 h=3 b=3 fp16 causal gated skip",
    "fftconv n=256 h=2 b=5 bf16 circular gated skip",
    "fftconv n=100 k=33 h=3 b=2 fp16 circular pre_gated",
    "fftconv n=200 h=2 b=3 fp32 causal post_gated skip",
    "fftconv n=250 h=3 b=1 bf16 bidirectional gated skip",
    "fftconv n=101 k=77 h=2 b=4 fp16 same skip",
]


@pytest.mark.parametrize(
    ("text", "plan"),
    [(text, plan) for text in SMALL for plan in rank(parse(text), HERE).plans if isinstance(plan.body, FusedConv)],
    ids=lambda x: x.body.spec.name if isinstance(x, Plan) else "",
)
def test_every_fused_plan_small(text: str, plan: Plan) -> None:
    check(parse(text), plan)


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.name)
def test_every_fused_plan(spec: FftConvSpec) -> None:
    """Each kernel that ranking can return, its transpose with other gates, and the kernel of the filter's gradient."""
    check(EVERY[spec].problem, EVERY[spec])


@pytest.mark.parametrize("n", [512, 1024, 2048, 4096, 8192, 16384])
@pytest.mark.parametrize("mode", ["causal", "circular"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("gates", [False, True])
def test_best_of_each_transform(n: int, mode: str, dtype: str, gates: bool) -> None:
    problem = FftConvProblem(n=n, h=4, b=5, mode=mode, dtype=dtype, pre_gate=gates, post_gate=gates, skip=gates)
    for plan in {plan.body.transform: plan for plan in reversed(fused(problem))}.values():
        check(problem, plan)


@pytest.mark.parametrize("layout", ["BHL", "BLH"])
def test_public_call_and_compile(layout: str) -> None:
    problem = parse("fftconv n=1000 h=64 b=4 bf16 causal gated skip" + (" blh" if layout == "BLH" else ""))
    args = operands(problem, device=DEVICE)
    y = m2gen.fftconv(**args)
    assert torch.equal(torch.compile(lambda **kw: m2gen.fftconv(**kw), fullgraph=True)(**args), y)
    bhl = {n: x.mT if layout == "BLH" and n in ("u", "pre_gate", "post_gate") else x for n, x in args.items()}
    assert relative(y.mT if layout == "BLH" else y, exact(bhl)[0]) < BOUND["bf16"]

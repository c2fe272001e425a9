"""Generated C++ convolutions whose lanes are channels, against the direct sum in float64, forward and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_native import FORMS, HERE, OPERANDS, TENSORS, as_bhl, check_everything, kernel_with, outputs, problem_of

from m2gen.device.limits import target
from m2gen.planner.fftconv.native import Native
from m2gen.planner.fftconv.problem import MODES
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.kept_spectra import KeptFilter
from m2gen.runtime.bindings.spectral import Operands
from m2gen.runtime.build.cpp_kernel import available
from m2gen.testing.operands import operands

pytestmark = pytest.mark.skipif(available() is not None, reason="no C++ compiler")


def lanes_plan(problem: Problem, arch: str = HERE) -> Plan:
    return next(plan for plan in Native().candidates(problem, target(arch)) if plan.body.spec.wide)


@pytest.mark.parametrize(("dtype", "mode"), FORMS)
def test_every_form(mode: str, dtype: str) -> None:
    """Whole groups and a last one that is not, gates, a filter shorter and longer than the sequence."""
    cases = (33, 7, True, 21), (100, 130, False, 64)
    for n, k, gated, h in cases if dtype == "fp32" else cases[mode == "circular" :][:1]:
        problem = problem_of(n, k, mode, dtype=dtype, layout="BLH", h=h, pre_gate=gated, post_gate=gated)
        for posed in (problem, replace(problem, add=True)):
            check_everything(posed, kernel_with(lanes_plan(posed)))


@pytest.mark.generated
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("arch", "dtype"), [("avx2", "fp32"), ("neon", "fp64")])
def test_every_vector_width(mode: str, arch: str, dtype: str) -> None:
    problem = problem_of(75, 60, mode, dtype=dtype, layout="BLH", h=9, pre_gate=True)
    check_everything(problem, kernel_with(lanes_plan(problem, arch)))


@pytest.mark.parametrize("h", [1, 15, 16, 17, 33])
def test_any_number_of_channels(h: int) -> None:
    """One kernel for all of them: lanes without a channel take part in nothing."""
    plan = lanes_plan(parse("fftconv n=70 h=16 b=2 fp32 causal blh"))
    problem = replace(plan.problem, h=h)
    check_everything(problem, kernel_with(replace(plan, problem=problem)))


def test_blocks_near_and_far() -> None:
    """Rings beyond the nearest cache, done depth first."""
    problem = parse("fftconv n=1500 h=32 b=2 fp32 bidirectional skip blh")
    lanes = lanes_plan(problem)
    assert any(not at.near for at in lanes.body.spec.passes[1:])
    check_everything(problem, kernel_with(lanes))


def test_the_planner_chooses_lanes_where_they_are_full() -> None:
    for text, wide in (("n=1024 h=768", 2), ("n=1024 h=21", 0), ("n=16384 h=768", 0), ("n=1024 h=768 bf16", 4)):
        found = rank(parse(f"fftconv {text} causal blh"), target("avx512")).best("native")
        assert found is not None and found.body.spec.wide == wide, text
        assert found.body.estimate.working_set >= found.body.spec.scratch_bytes(found.body.channels) or not wide


def test_other_strides_and_threads_do_not_change_bits() -> None:
    """Gates and gradients that are not channels-last are copied; threads share no sum."""
    problem = parse("fftconv n=300 h=256 b=3 fp32 causal gated skip add blh")
    args = as_bhl(operands(problem))
    x = Operands(*(args.get(name) for name in OPERANDS))
    turned = replace(x, **{name: getattr(x, name).contiguous() for name in ("pre_gate", "post_gate", "add")})
    kernel, dy = kernel_with(lanes_plan(problem)), torch.randn_like(x.u)
    assert kernel.parallel and kernel.step.spec.wide > 1
    results = []
    for threads, given, gradient in ((1, x, dy), (1, turned, dy.contiguous()), (3, x, dy)):
        torch.set_num_threads(threads)
        try:
            out = outputs(x)
            kernel.backward(gradient, given, out)
            results.append([kernel.forward(given), *(getattr(out, name) for name in TENSORS if name in args)])
        finally:
            torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_spectra_are_kept() -> None:
    problem = parse("fftconv n=200 h=40 b=2 fp32 bidirectional gated skip add blh")
    kernel, args = kernel_of(lanes_plan(problem)), as_bhl(operands(problem))
    x = Operands(*(args.get(name) for name in OPERANDS))
    expected = kernel.forward(x)
    kept = KeptFilter(x.k.clone(), x.k_rev.clone(), x.skip.clone())
    k, k_rev, skip = kept.tensors
    assert all(torch.equal(kernel.forward(replace(x, k=k, k_rev=k_rev, skip=skip)), expected) for _ in range(3))
    assert kept.nbytes > 3 * k.numel() * 4, "and so they are there"

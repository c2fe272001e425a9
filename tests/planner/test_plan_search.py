from __future__ import annotations

import dataclasses
from math import log2, prod

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from m2gen.device.limits import LIMITS, target
from m2gen.errors import PlanError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner import explain, search
from m2gen.planner.fftconv import cost, formulas
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FilterSpectrum, FusedConv, SpectralConv
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.step import Cost, Estimate, Step, duration
from m2gen.planner.stored import plan_from_json
from m2gen.testing.corpus import corpus

CORPUS = {entry.name: entry.problem for entry in corpus() if entry.problem.op == "fftconv"}


@st.composite
def small_problems(draw: st.DrawFn) -> Problem:
    n = draw(st.integers(1, 5000) | st.integers(5001, 2**21))
    mode = draw(st.sampled_from(("causal", "bidirectional", "same", "circular")))
    k = draw(st.integers(1, n))
    return FftConvProblem(
        n=n,
        h=draw(st.integers(1, 300)),
        b=draw(st.integers(1, 40)),
        dtype=draw(st.sampled_from(("fp16", "bf16", "fp32", "fp64"))),
        mode=mode,
        k=k - (k % 2 == 0) if mode == "same" else k,
        post_gate=draw(st.booleans()),
        add=draw(st.booleans()),
    )


@settings(max_examples=100, deadline=None)
@given(small_problems(), st.sampled_from(sorted(LIMITS)))
def test_every_candidate_is_sound(problem, arch):
    ranking = search.rank(problem, target(arch))
    assert {solver for solver, _ in ranking.rejections} <= {"fused", "passes", "native"}
    assert 2 <= len(ranking.plans) <= 300
    for plan in ranking.plans:
        filter_step, conv = plan.steps
        assert isinstance(filter_step, FilterSpectrum)
        assert conv is plan.body
        for figure in dataclasses.astuple(plan.estimate):
            assert figure > 0
        if isinstance(conv, NativeConv):
            check_native(problem, conv, target(arch))
            continue
        if isinstance(conv, FusedConv):
            check_fused(problem, conv, target(arch))
            continue
        if isinstance(conv, PassesConv):
            check_passes(problem, conv, target(arch))
            continue
        assert isinstance(conv, SpectralConv)
        assert filter_step.transform == conv.transform
        assert 1 <= conv.channels <= problem.h
        if conv.channels > 4:
            # a last quarter is not cut off; the library on a CPU has a candidate of twice the chunk
            twice = 2 if plan.solver == "library" and target(arch).kind == "cpu" else 1
            assert conv.estimate.working_set <= twice * 1.3 * target(arch).chunk_bytes
        if conv.transform.size < problem.linear_size:
            assert problem.mode == "circular"
            assert conv.transform.size == problem.n
            assert not conv.fold
        if conv.transform.kind == "monarch":
            assert prod(conv.transform.radices) == conv.transform.size
            assert conv.transform.blocks == tuple((conv.transform.size // r, r, r) for r in conv.transform.radices)


def check_fused(problem, conv, limits):
    spec = conv.spec
    assert limits.kind == "gpu" and problem.dtype != "fp64"
    for kernel in (spec, conv.dk):
        assert kernel.resources(limits.arch).shared_bytes <= limits.shared_bytes
    assert (conv.dk.part, conv.dk.size, conv.dk.ring, conv.dk.wrap) == ("dk", spec.size, spec.ring, spec.wrap)
    assert spec.size == conv.transform.size == spec.n0 * spec.n1 * spec.n2
    assert (spec.pre_gate, spec.post_gate, spec.dtype) == (problem.pre_gate, problem.post_gate, problem.dtype)
    convs = [one for one in conv.kernels(problem) if isinstance(one, FftConvSpec)]
    assert [one.add for one in convs] == [problem.add, *[False] * (len(convs) - 1)]
    if spec.ring == "causal":
        assert problem.mode != "circular" and spec.size >= problem.n
    elif problem.mode == "circular" and not spec.wrap:
        assert spec.size == problem.n
    else:
        assert spec.size >= problem.linear_size
    assert 1 <= conv.programs <= problem.b * problem.h
    assert spec.staged or conv.programs % problem.h == 0


def check_passes(problem, conv, limits):
    assert limits.kind == "gpu" and problem.dtype != "fp64" and problem.layout == "BHL"
    for kernel in conv.kernels(problem):
        assert kernel.resources(limits.arch).shared_bytes <= limits.shared_bytes
    first, *nested = conv.outer
    assert conv.transform.radices == (*(one.n0 for one in conv.outer), conv.spec.n1, conv.spec.n2)
    assert conv.transform.size == prod(conv.transform.radices)
    assert (first.gate, first.dtype, first.nested) == (problem.pre_gate, problem.dtype, False)
    assert all(one.nested and one.ring == "cyclic" and one.dtype == conv.spec.compute for one in nested)
    points = conv.transform.size
    for one in conv.outer:  # a pass does whole blocks of columns
        points //= one.n0
        assert points % one.columns == 0
    for kernel in (conv.spec, conv.dk):
        assert (kernel.size, kernel.ring, kernel.stack, kernel.staged) == (points, "cyclic", 1, False)
    if first.ring == "causal":
        assert problem.mode != "circular" and conv.transform.size >= problem.n
    else:
        assert conv.transform.size >= (problem.linear_size if first.wrap or problem.mode != "circular" else problem.n)
    assert 1 <= conv.channels <= problem.h and 1 <= conv.rows <= problem.b
    few = 16 * (conv.channels * conv.rows + conv.programs)
    assert conv.scratch(problem, gradients=False) <= conv.scratch(problem, gradients=True)
    assert conv.scratch(problem, gradients=True) <= limits.chunk_bytes + few


def check_native(problem, conv, limits):
    spec = conv.spec
    assert limits.kind == "cpu" and problem.linear_size >= 16
    assert spec.size == conv.transform.size == prod(conv.transform.radices)
    assert 2 * spec.size >= problem.linear_size
    assert (spec.part, conv.bwd) == ("fwd", dataclasses.replace(spec, part="bwd", add=False))
    assert (spec.dtype, spec.add, conv.fold) == (problem.dtype, problem.add, problem.mode == "circular")
    places = problem.n + (problem.taps[1] if conv.fold else 0)
    assert spec.half == (places <= spec.size)
    assert spec.half_filter == (problem.taps[0] == 0 and problem.taps[1] < spec.size)
    assert 1 <= conv.channels <= spec.vector


@settings(max_examples=50, deadline=None)
@given(small_problems(), st.sampled_from(("sm90", "avx512")))
def test_json_round_trip(problem, arch):
    for plan in search.rank(problem, target(arch)).plans:
        again = plan_from_json(plan.to_json())
        assert again == plan
        assert hash(again) == hash(plan)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"problem": "fftconv n=8", "arch": "a", "solver": "s", "steps": [{}]}']
)
def test_json_that_is_no_plan(text):
    with pytest.raises(PlanError, match="to_json"):
        plan_from_json(text)


def test_plans_are_deterministic_and_remembered():
    problem, limits = parse("fftconv n=6000 h=768 b=8 bf16 causal gated"), target("sm90")
    first = search.plan(problem, limits)
    assert search.plan(problem, limits) is first
    search.plan.cache_clear()
    search.rank.cache_clear()
    assert search.plan(problem, limits) == first
    plans = search.rank(problem, limits).plans
    costs = [plan.seconds * (held.factor if (held := plan.body.reluctance) else 1.0) for plan in plans]
    assert costs == sorted(costs)


def test_no_plan_gives_every_reason():
    problem = parse(f"fftconv n={2**36} b=64")
    with pytest.raises(PlanError) as caught:
        search.plan(problem, target("avx2"))
    for part in (
        str(problem),
        "avx2",
        "library: one channel needs",
        "composed: one channel and the DFT",
        "GiB",
        "memory",
    ):
        assert part in str(caught.value)
    ranking = search.rank(problem, target("avx2"))
    assert [solver for solver, _ in ranking.rejections] == ["library", "composed", "fused", "passes", "native"]
    assert ranking.plans == ()
    assert ranking.best("library") is None


def test_a_dft_matrix_beyond_memory_is_no_candidate():
    plans = search.rank(parse("fftconv n=1048576 circular"), target("avx2")).plans
    monarch = [plan.body.transform for plan in plans if plan.solver == "composed"]
    assert monarch
    assert all(transform.order > 1 for transform in monarch)
    assert any(transform.order == 20 for transform in monarch)


def test_s_expression():
    plan = search.rank(CORPUS["ffc-4k"], target("sm90")).best("composed")
    assert plan is not None
    assert str(plan).startswith(f'(plan "{CORPUS["ffc-4k"]}" sm90 composed (filter-spectrum (monarch ')
    assert "(spectral-conv (monarch " in str(plan)
    assert "(channels " in str(plan)
    assert str(Transform("fft", 8, ())) == "(fft 8)"
    assert str(SpectralConv(Estimate(), Transform("monarch", 8, (4, 2)), 3, True)) == (
        "(spectral-conv (monarch 8 (radices 4 2)) (channels 3) (fold))"
    )


def test_estimates_add():
    left, right = Estimate(1, 2, 3, 4, 5), Estimate(10, 20, 30, 40, 50)
    assert left + right == Estimate(11, 22, 33, 40, 55)
    plan = search.plan(CORPUS["ffc-4k"], target("sm90"))
    assert plan.estimate == plan.steps[0].estimate + plan.steps[1].estimate


def test_a_plan_must_end_in_a_result():
    with pytest.raises(PlanError, match="one that gives the result"):
        _ = Plan(FftConvProblem(n=8), "avx2", "none", (Step(Estimate()),)).body


def both(problem, transform, channels, limits):
    return tuple(cost.estimate(problem, transform, channels, limits, step) for step in ("filter", "conv"))


def test_monarch_flop_is_the_formula():
    """8 N sum(radices) + 6 N (order - 1) per complex transform: one for the filter, two a row, 6 N for the product."""
    problem = FftConvProblem(n=4096, h=3, b=2, mode="circular")
    transform = Transform("monarch", 4096, (16, 16, 16))
    of_filter, of_conv = both(problem, transform, 1, target("sm90"))
    once = 8 * 4096 * 48 + 6 * 4096 * 2
    assert of_filter.flop == 3 * once
    assert of_conv.flop == 3 * 2 * (2 * once + 6 * 4096)


def test_library_flop_is_the_formula():
    problem = FftConvProblem(n=4096, h=3, mode="circular")
    of_filter, _ = both(problem, Transform("fft", 4096, ()), 1, target("sm90"))
    assert of_filter.flop == pytest.approx(3 * 2.5 * 4096 * 12)
    for size, work in ((4095, 5 * 4095 * log2(4095)), (8191, 15 * 2**14 * 14), (2 * 8191, 15 * 2**14 * 14)):
        of_filter, _ = both(FftConvProblem(n=size, h=3, mode="circular"), Transform("fft", size, ()), 1, target("sm90"))
        assert of_filter.flop == pytest.approx(3 * work)


def test_printed_formulas_are_the_ones_that_plan():
    """The expressions that explain prints, by exact substitution, against the estimates."""
    problem, limits = parse("fftconv n=1000 h=7 b=3 bf16 gated skip"), target("avx2")
    symbols = explain.symbols(formulas.Values)
    for transform in (Transform("fft", 2000, ()), Transform("monarch", 2000, (20, 10, 10))):
        for step, got in zip(("filter", "conv"), both(problem, transform, 2, limits), strict=True):
            numbers = cost.values(problem, transform, 2, limits, step)
            at = {symbol: sp.Float(x, 30) for symbol, x in zip(symbols, numbers, strict=True)}
            whole = formulas.FORMULAS[transform.kind, step](symbols, explain.SYMBOLIC)
            stage = formulas.monarch_stage(symbols, explain.SYMBOLIC, explain.RADIX, step)
            for quantity in Cost._fields:
                printed = sp.sympify(getattr(whole, quantity)).subs(at)
                for radix in transform.radices:
                    printed += sp.sympify(getattr(stage, quantity)).subs({**at, explain.RADIX: radix})
                assert float(printed) == pytest.approx(getattr(got, quantity), rel=1e-9)


def test_working_set_is_linear_in_channels():
    problem, transform = FftConvProblem(n=1000, h=64, b=3), Transform("monarch", 2000, (50, 40))
    for channels in (1, 2, 17):
        _, conv = both(problem, transform, channels, target("avx2"))
        assert cost.working_set(problem, transform, channels) == pytest.approx(conv.working_set)


@pytest.mark.parametrize("name", sorted(CORPUS))
def test_every_corpus_problem_is_planned_and_explained(name):
    for arch in ("sm90", "avx2"):
        for solver in ("library", "composed"):
            plan = search.rank(CORPUS[name], target(arch)).best(solver)
            assert plan is not None
            text = plan.explain()
            for part in (str(CORPUS[name]), target(arch).description, solver, "flop = ", "seconds = ", "estimate"):
                assert part in text
            if solver == "composed":
                assert f"order     {plan.body.transform.order}" in text
                assert "nblocks x out x in" in text


def test_the_choice_and_its_reason_are_logged_once(monkeypatch):
    said = []
    monkeypatch.setattr(search.log, "once", said.append)
    problem = parse("fftconv n=4321 h=5")
    for _ in range(2):
        search.plan(problem, target("sm86"))
    assert len(said) == 1
    assert str(problem) in said[0]
    assert "estimated" in said[0]
    assert "against composed" in said[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2026.4, "2026 s"), (1.234, "1.23 s"), (0.0123, "12.3 ms"), (5e-6, "5 us"), (1e-9, "0.001 us")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize("arch", ["avx512", "avx2"])
def test_lengths_share_rings(arch):
    """A data loader of random lengths needs few kernels, and loses little; rings off the ladder stay candidates."""
    rings, logs = set(), []
    for n in range(1900, 15, -41):
        ranking = search.rank(FftConvProblem(n=n, h=768, b=4), target(arch))
        natives = [plan for plan in ranking.plans if plan.solver == "native"]
        rings.add(natives[0].body.spec.size)
        logs.append(log2(natives[0].estimate.seconds / min(plan.estimate.seconds for plan in natives)))
        seconds = [plan.estimate.seconds * (plan.body.reluctance or (1.0,))[0] for plan in natives]
        assert seconds == sorted(seconds)
    assert len(rings) <= 10
    first = search.rank(FftConvProblem(n=784, h=256, b=50), target("avx2")).plans[0]
    assert first.body.spec.size == 1024 and "few other lengths share its kernels" in first.explain()
    assert 2 ** (sum(logs) / len(logs)) < 1.1
    sizes = {
        plan.body.spec.size
        for plan in search.rank(FftConvProblem(n=1100), target(arch)).plans[:40]
        if plan.solver == "native"
    }
    assert len(sizes) > 2, "which tuning may choose"

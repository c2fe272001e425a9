from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2gen.errors import ProblemError
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problem import LARGEST, Problem
from m2gen.planner.problems import parse, parse_all

sizes = st.integers(1, 10**6)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    n, mode = draw(sizes), draw(st.sampled_from(("causal", "bidirectional", "same", "circular")))
    k = draw(st.none() | sizes)
    if mode == "same":
        k = 2 * draw(st.integers(0, 10**5)) + 1
    if mode == "circular" and k is not None:
        k = min(k, n)
    return FftConvProblem(
        n=n,
        h=draw(sizes),
        b=draw(sizes),
        dtype=draw(st.sampled_from(("fp16", "bf16", "fp32", "fp64"))),
        mode=mode,
        k=k,
        pre_gate=draw(st.booleans()),
        post_gate=draw(st.booleans()),
        skip=draw(st.booleans()),
        add=draw(st.booleans()),
        layout=draw(st.sampled_from(("BHL", "BLH"))),
        wide=draw(st.booleans()),
    )


@st.composite
def products(draw: st.DrawFn) -> Problem:
    glu, blocks = draw(st.booleans()), draw(st.integers(1, 64))
    blocks *= 2 if glu else 1
    return BlockDiagProblem(
        n_in=blocks * draw(st.integers(1, 10**4)),
        n_out=blocks * draw(st.integers(1, 10**4)),
        blocks=blocks,
        rows=draw(sizes),
        dtype=draw(st.sampled_from(("fp16", "bf16", "fp32", "fp64"))),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from((None, "gelu", "relu", "silu"))),
        glu=glu,
        residual=draw(st.booleans()),
    )


@settings(max_examples=300)
@given(problems() | products(), st.randoms())
def test_round_trip_in_any_order(problem, random):
    words = str(problem).split()
    assert parse(str(problem)) == problem
    random.shuffle(words)
    assert parse(" ".join(words)) == problem


def test_several_in_a_row():
    assert parse_all("fftconv n=8 causal fftconv n=9 h=2") == [FftConvProblem(n=8), FftConvProblem(n=9, h=2)]
    with pytest.raises(ProblemError, match="op is missing"):
        parse_all("n=8 fftconv n=9")
    assert parse_all(" ") == []


def test_canonical_text():
    text = "fftconv n=8192 h=768 b=4 bf16 causal gated skip"
    assert str(parse("skip gated b=4 causal bf16 h=768 n=8192 fftconv")) == text
    assert str(parse("fftconv n=8 k=8")) == "fftconv n=8 h=1 b=1 fp32 causal"
    assert str(parse("fftconv n=8 k=17 blh")) == "fftconv n=8 k=17 h=1 b=1 fp32 causal blh"
    assert str(parse("fftconv n=8 post_gated bhl")) == "fftconv n=8 h=1 b=1 fp32 causal post_gated"
    assert FftConvProblem(n=8, k=8) == FftConvProblem(n=8)
    assert parse(text) is parse(text)
    text = "blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 bias gelu glu residual"
    assert str(parse("residual glu gelu bias bf16 rows=32768 blocks=4 out=6144 in=768 blockdiag")) == text
    assert str(parse("blockdiag in=8 out=6")) == "blockdiag in=8 out=6 blocks=1 rows=1 fp32"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("fftconv n=8 wavy", ("'wavy' is unknown", "causal", "fftconv", "n=")),
        ("monarch in=64 out=64 order=0", ("order=0", "leave order= out")),
        ("monarch in=64 out=64 params<=0", ("is not understood", "params<=2M")),
        ("monarch in=64 out=64 blocks=0x0", ("is not understood", "blocks=64x64")),
        ("shortconv n=8 h=4 out=0", ("out=0",)),
        ("fftconf n=8", ("'fftconf' is unknown", "known ops: fftconv")),
        ("n=8", ("op is missing", "fftconv")),
        ("fftconv h=8", ("n is missing",)),
        ("", ("op is missing",)),
        ("fftconv n=8 n=8", ("says n a second time",)),
        ("fftconv n=8 causal same", ("says mode a second time",)),
        ("fftconv n=8 bf16 fp32", ("says dtype a second time",)),
        ("fftconv n=8 gated post_gated", ("says post_gate a second time",)),
        ("fftconv n=8 bhl blh", ("says layout a second time",)),
        ("fftconv n=eight", ("'n=eight' is not a whole number",)),
        ("fftconv n=-8", ("'n=-8' is not a whole number",)),
        ("fftconv n=", ("not a whole number",)),
        ("fftconv n=0", ("n=0", "from 1 to 2^40")),
        ("fftconv n=8 b=0", ("b=0",)),
        ("fftconv n=8 h=0", ("h=0",)),
        ("fftconv n=8 k=0", ("k=0",)),
        (f"fftconv n={LARGEST + 1}", ("from 1 to 2^40",)),
        ("fftconv n=8 same", ("k=8 is even",)),
        ("fftconv n=9 k=4 same", ("k=4 is even",)),
        ("fftconv n=8 k=9 circular", ("at most n=8 taps",)),
        ("blockdiag in=8", ("out is missing",)),
        ("blockdiag in=8 in=9 out=8", ("says in a second time",)),
        ("blockdiag in=8 out=8 gelu silu", ("says activation a second time",)),
        ("blockdiag in=8 out=9 blocks=2", ("out=9 is no multiple of blocks=2",)),
        ("blockdiag in=9 out=8 blocks=2", ("in=9 is no multiple of blocks=2",)),
        ("blockdiag in=9 out=9 blocks=3 glu", ("blocks=3 is odd",)),
        ("blockdiag in=8 out=8 causal", ("'causal' is unknown", "in=", "gelu", "with blockdiag")),
        ("blockdiag in=8 out=8 fftconv", ("'fftconv' says op a second time",)),
    ],
)
def test_errors_name_the_trouble(text, parts):
    with pytest.raises(ProblemError) as caught:
        parse(text)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [{"dtype": "int8"}, {"mode": "valid"}, {"layout": "HBL"}, {"h": True}, {"b": 2.0}, {"n": "8"}],
)
def test_fields_are_checked_too(fields):
    with pytest.raises(ProblemError):
        FftConvProblem(**{"n": 8, **fields})


def reach(problem: Problem) -> tuple[int, int]:
    """(lo, hi) from the definitions in the design, term by term: the lags d with a tap and an output to reach."""
    n, k, lags = problem.n, problem.taps_given, set()
    for i in range(n):
        for j in range(n):
            tap = {
                "causal": i - j if j <= i else None,
                "bidirectional": i - j if j <= i else j - i - 1,
                "same": i - j + (k - 1) // 2,
                "circular": (i - j) % n,
            }[problem.mode]
            if tap is not None and 0 <= tap < k:
                lags.add(tap if problem.mode == "circular" else i - j)
    return -min(0, *lags, 0), max(0, *lags, 0)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, 8, 11])
@pytest.mark.parametrize("mode", ["causal", "bidirectional", "same", "circular"])
def test_taps_and_linear_size(n, k, mode):
    if (mode == "same" and k % 2 == 0) or (mode == "circular" and k > n):
        return
    problem = FftConvProblem(n=n, k=k, mode=mode)
    lo, hi = problem.taps
    assert (lo, hi) == reach(problem)
    wanted = [i - j for i in range(n) for j in range(n)]
    wraps = (
        {
            size: any((d - lag) % size == 0 and d != lag for d in wanted for lag in range(-lo, hi + 1))
            for size in (problem.linear_size, problem.linear_size - 1)
        }
        if problem.linear_size > 1
        else {problem.linear_size: False}
    )
    if mode != "circular":
        assert not wraps[problem.linear_size]
        if problem.linear_size > n:
            assert wraps[problem.linear_size - 1]
    else:
        assert problem.linear_size == n + k - 1


def test_a_problem_of_another_op_is_refused():
    class Other(Problem):
        grammar = dataclasses.replace(FftConvProblem.grammar, op="other", example="other n=8")

    problem = FftConvProblem(n=8)
    assert FftConvProblem.of(problem) is problem
    with pytest.raises(ProblemError, match="not a problem of other"):
        Other.of(problem)

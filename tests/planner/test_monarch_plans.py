"""Plans of Monarch products: every order, unequal blocks, constraints, and why there is none."""

from __future__ import annotations

import re
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2gen.device.limits import LIMITS, target
from m2gen.errors import PlanError, ProblemError
from m2gen.modules.linear import BlockDiagLinear, MonarchLinear
from m2gen.ops.monarch_matmul import monarch_matmul
from m2gen.planner import search
from m2gen.planner.factor import max_order
from m2gen.planner.monarch.factorings import factorings
from m2gen.planner.monarch.problem import MonarchProblem, inner_widths, parameters
from m2gen.planner.monarch.steps import MonarchStep, NativeMonarch
from m2gen.planner.plan import Plan
from m2gen.planner.problems import PROBLEMS, parse
from m2gen.planner.stored import plan_from_json
from m2gen.runtime import planning
from m2gen.runtime.measure import cases
from m2gen.runtime.measure.cases import case_of
from m2gen.runtime.measure.monarch_case import MonarchCase


@settings(max_examples=60)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 5000), st.sampled_from(sorted(LIMITS)))
def test_every_candidate_is_a_monarch_of_these_sizes(n_in: int, n_out: int, rows: int, arch: str) -> None:
    problem = MonarchProblem(n_in=n_in, n_out=n_out, rows=rows)
    plans = search.rank(problem, target(arch)).plans
    assert any(len(plan.body.factors) == 1 for plan in plans), "a dense matrix, to compare with"
    for plan in plans:
        body, factors = plan.body, plan.body.factors
        assert isinstance(body, MonarchStep) and plan_from_json(plan.to_json()) == plan
        inner_widths(factors)  # raises where they do not interleave
        assert (factors[0][0] * factors[0][2], factors[-1][0] * factors[-1][1]) == (n_in, n_out)
        assert all(a[0] * a[1] == b[0] * b[2] for a, b in pairwise(factors))
        assert body.expected(problem, target(arch)) == plan.estimate.seconds > 0
        assert plan.estimate.flop >= 2 * rows * parameters(factors) and plan.estimate.bytes >= problem.least_bytes
        given_ = MonarchProblem(n_in=n_in, n_out=n_out, rows=rows, factors=factors)
        assert parse(str(given_)) == given_ and list(factorings(given_)) == [factors]


@pytest.mark.parametrize("n", [64, 360, 1024, 4096])
def test_every_order_is_there(n: int) -> None:
    """Each with the 2 p n^(1 + 1/p) FLOP a row of equal blocks where n is a power; unequal blocks beside them."""
    found: dict[int, list[tuple[tuple[int, int, int], ...]]] = {}
    for factors in factorings(MonarchProblem(n_in=n, n_out=n)):
        found.setdefault(len(factors), []).append(factors)
    assert sorted(found) == list(range(1, max_order(n) + 1))
    assert any(len({shape[1] for shape in one}) > 1 for one in found[2])
    for order, all_ in found.items():
        root = round(n ** (1 / order))
        if root**order == n:
            assert min(map(parameters, all_)) == order * n * root
        for one in all_:
            assert order == 1 or prod(shape[1] for shape in one) == n


def test_factors_that_are_planned_multiply() -> None:
    problem = MonarchProblem(n_in=24, n_out=36)
    for factors in factorings(problem):
        weights = [torch.randn(shape) for shape in factors]
        assert monarch_matmul(torch.randn(3, 24), weights).shape == (3, 36)


def test_constraints() -> None:
    text = "monarch in=4096 out=4096 rows=64 fp32"
    for plan in search.rank(parse(f"{text} params<=150K"), target("avx2")).plans:
        assert parameters(plan.body.factors) <= 150_000
    for plan in search.rank(parse(f"{text} blocks=16x16"), target("avx2")).plans:
        assert {shape[1:] for shape in plan.body.factors} == {(16, 16)}
    assert {len(plan.body.factors) for plan in search.rank(parse(f"{text} order=3"), target("avx2")).plans} == {3}
    assert str(parse(f"{text} order=3 blocks=16x16 params<=2M")).endswith("order=3 blocks=16x16 params<=2000000")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("monarch in=1009 out=1009 order=2", "1009 has 1 prime factors"),
        ("monarch in=64 out=64 blocks=3x3", "no factors of 64 x 64 meet blocks=3x3"),
        ("monarch in=64 out=64 params<=10", "the least such factors have 768 numbers"),
        ("monarch in=64 out=45 order=2", "no factors of 45 x 64 meet order=2"),
    ],
)
def test_none_has_a_reason(text: str, why: str) -> None:
    with pytest.raises(PlanError, match=re.escape(why)):
        search.plan(parse(text), target("avx2"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("monarch in=8 out=8 factors=2x4x4,2x4", "is not understood"),
        ("monarch in=8 out=8 factors=2x4x4,2x3x4", "the factors give 6 numbers, not out=8"),
        ("monarch in=8 out=8 factors=2x4x3", "factor 0 takes 6 numbers where there are 8"),
        ("monarch in=8 out=8 factors=8x1x1,2x4x4,2x4x4", "do not split into groups"),
        ("monarch in=8 out=8 order=2 factors=2x4x4,2x4x4 params<=9", "its factors are given"),
        ("monarch in=8 out=8 blocks=4", "is not understood. Write for example blocks=64x64"),
        ("monarch in=8 out=8 params<=2X", "is not understood. Write for example params<=2M"),
        ("monarch in=8", "out is missing"),
        ("monarch in=8 out=8 params=7", "'params=7' is unknown"),
    ],
)
def test_errors_name_the_trouble(text: str, part: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(part)):
        parse(text)


def test_one_kernel_where_it_is_estimated_to_pay() -> None:
    """Measured on an AVX2 core: one kernel beats the stages at equal blocks; order 3 about equals order 2 at 4096."""
    limits = target("avx2")
    for n in (256, 1024, 4096):
        assert search.plan(parse(f"monarch in={n} out={n} rows=1024 order=2"), limits).solver == "native"
    best = search.plan(parse("monarch in=4096 out=4096 rows=1024"), limits).body
    assert isinstance(best, NativeMonarch) and 2 < len(best.factors) < 6
    assert {kernel.part for kernel in best.kernels(parse("monarch in=4096 out=4096"))} == {"fwd", "bwd", "sum"}


def test_layers_ask_the_planner() -> None:
    layer = MonarchLinear(64, 96, order="auto")
    planned = m2gen_ranking("monarch in=64 out=96 rows=4096")
    assert [tuple(factor.shape) for factor in layer.factors()] == list(planned.body.factors)
    assert layer.order == len(planned.body.factors) and layer(torch.randn(2, 64)).shape == (2, 96)
    blocks = BlockDiagLinear(768, 768, nblocks="auto").nblocks
    seconds = {n: m2gen_ranking(f"blockdiag in=768 out=768 blocks={n} rows=4096").estimate.seconds for n in (1, blocks)}
    assert 1 < blocks < 768 and seconds[blocks] < seconds[1]


def m2gen_ranking(text: str) -> Plan:
    from m2gen.runtime.planning import ranking

    return ranking(text).plans[0]


def test_what_is_not_measured_says_so() -> None:
    """Orders are different matrices: only where the factors are given are plans compared by their times."""
    open_, given = parse("monarch in=8 out=8"), parse("monarch in=8 out=8 factors=2x4x4,4x2x2")
    with pytest.raises(PlanError, match=r"its plans are not to be compared by their times. Give the factors"):
        case_of(open_)
    assert not open_.measured and given.measured and case_of(given) is MonarchCase
    assert set(PROBLEMS) == set(cases._CASES)


@pytest.mark.parametrize("rigor", search.RIGORS)
def test_no_rigor_stops_what_cannot_be_measured(rigor: str) -> None:
    assert planning.plan("monarch in=16 out=16 rows=3", rigor=rigor).body.factors


@pytest.mark.parametrize("n", [720720, 735134400, 6983776800])
def test_sizes_with_very_many_divisors(n: int) -> None:
    """Of each order the most balanced splits; all of them where they are few."""
    found = list(factorings(MonarchProblem(n_in=n, n_out=n, rows=4096)))
    assert 500 < len(found) < 128 * max_order(n) and len(set(found)) == len(found)
    assert {len(shapes) for shapes in found} == set(range(1, max_order(n) + 1))


def test_parameters_in_thousands_and_parts() -> None:
    for text, params in (("300k", 300_000), ("0.5M", 500_000), ("2M", 2_000_000), ("1234", 1234)):
        assert parse(f"monarch in=64 out=64 params<={text}").params == params


def test_how_to_have_a_planned_layer() -> None:
    plan = search.rank(parse("monarch in=512 out=2048 rows=64 order=3"), target("avx2")).plans[0]
    made = next(line for line in plan.body.lines(plan.problem) if line.startswith("layer"))
    layer = eval(made.split(maxsplit=1)[1], {"MonarchLinear": MonarchLinear})
    assert tuple(tuple(f.shape) for f in layer.factors()) == plan.body.factors
    timed = next(line for line in plan.body.lines(plan.problem) if line.startswith("to time"))
    assert parse(timed.split("m2gen tune ")[1]).factors == plan.body.factors

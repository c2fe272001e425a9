"""Plans of products with block-diagonal weights: which there are, what they say, what they cost."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m2gen.device.limits import LIMITS, DeviceLimits, target
from m2gen.dtypes import DTYPES
from m2gen.planner import search
from m2gen.planner.blockdiag.native_products import columns_for
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import FusedProduct, LibraryProduct, NativeProduct, Product
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.stored import plan_from_json
from m2gen.show import show


@st.composite
def problems(draw: st.DrawFn) -> BlockDiagProblem:
    glu, blocks = draw(st.booleans()), 2 * draw(st.integers(1, 40))
    return BlockDiagProblem(
        n_in=blocks * draw(st.integers(1, 300)),
        n_out=blocks * draw(st.integers(1, 300)),
        blocks=blocks,
        rows=draw(st.integers(1, 10**5)),
        dtype=draw(st.sampled_from(("fp16", "bf16", "fp32", "fp64"))),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from((None, "gelu", "relu", "silu"))),
        glu=glu,
        residual=draw(st.booleans()),
    )


@settings(max_examples=200)
@given(problems(), st.sampled_from(sorted(LIMITS)))
def test_every_candidate_is_sound(problem: BlockDiagProblem, arch: str) -> None:
    limits = target(arch)
    ranking = search.rank(problem, limits)
    assert {solver for solver, _ in ranking.rejections} <= {"library", "fused", "native"}
    if not ranking.plans:
        assert any("memory" in why for _, why in ranking.rejections)
    for plan in ranking.plans:
        assert plan_from_json(plan.to_json()) == plan
        body, of = plan.body, plan.estimate
        assert body.expected(problem, limits) == of.seconds > 0
        assert of.flop >= problem.flop and of.bytes >= problem.least_bytes and of.launches >= 1
        _launches(plan, limits)
        if isinstance(body, FusedProduct):
            assert limits.kind == "gpu" and problem.dtype != "fp64"
            assert (body.spec.part, body.dx.part, body.dw.part) == ("fwd", "fwd", "dw")
            assert (body.spec.bias, body.spec.residual) == (problem.bias, problem.residual)
            assert (body.dw.bias, body.dx.bias, body.dx.activation, body.dx.glu) == (problem.bias, False, None, False)
            assert (body.dz is None) == (problem.activation is None and not problem.glu)
            assert body.dz is None or (body.dz.bias, body.dz.activation, body.dz.glu, body.dz.residual) == (
                problem.bias, problem.activation, problem.glu, False,
            )  # fmt: skip
            continue
        if isinstance(body, LibraryProduct):
            assert limits.kind == "gpu" or problem.dtype in ("fp16", "bf16"), "a row is not to depend on its company"
            continue
        assert isinstance(body, NativeProduct) and limits.kind == "cpu"
        assert (body.spec.part, body.spec.glu, body.spec.activation) == ("fwd", problem.glu, problem.activation)
        assert (body.pack is not None) == (problem.rows >= 128)
        assert body.pack is None or (body.pack.columns, body.pack.glu) == (body.spec.columns, False)
        assert set(body.kernels(problem)) == {s for s in (body.spec, body.pack, body.outer) if s is not None}
        assert body.pieces == max(1, problem.rows // 64)
        _pieces_of_work(body, problem)


def _launches(plan: Plan, limits: DeviceLimits) -> None:
    """Those of the forward pass are the estimate; gradients add at least the two products, and what they must move."""
    problem, of = plan.problem, plan.estimate
    assert isinstance(problem, BlockDiagProblem) and isinstance(plan.body, Product)
    forward, both = (plan.body.launches(problem, limits, gradients) for gradients in (False, True))
    for name in ("seconds", "bytes", "flop"):
        assert sum(getattr(one, name) for one in forward) == pytest.approx(getattr(of, name), rel=1e-9)
    if isinstance(plan.body, FusedProduct):
        kernels = [one.name for one in both if one.name != "add_parts"]
        assert len(forward) == 1 and both[:1] == forward
        assert kernels == [
            plan.body.spec.name,
            *(spec.name for part, spec in plan.body.parts(problem).items() if part != "fwd"),
        ]
    assert all(one.bytes > 0 and one.seconds > 0 and one.flop >= 0 for one in both)
    assert sum(one.flop for one in both) >= 3 * problem.flop
    rows, w = problem.rows, problem.weights
    x, y, z = rows * problem.n_in, rows * problem.results, rows * problem.n_out
    least = problem.least_bytes + (2 * x + 2 * w + y + z) * DTYPES[problem.dtype].bytes
    assert sum(one.bytes for one in both) >= least


def test_a_body_without_a_word_of_its_own_launches_what_it_estimates() -> None:
    for text in ("turn n=4096 h=8 b=2 bf16", "gate n=30 rows=4"):
        plan = search.plan(parse(text), target("sm90"))
        (one,) = plan.body.launches(plan.problem, target("sm90"), True)
        body = plan.body.estimate
        assert (one.bytes, one.seconds, one.flop) == (body.bytes, body.seconds, body.flop)


def test_gradients_on_a_gpu_copy_no_activations() -> None:
    """M2-BERT's gated product: the library's copies and steps move twice what the kernels do."""
    problem = parse("blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 gelu glu")
    ranking = search.rank(problem, target("sm90"))
    moved, copies = {}, {}
    for solver in ("library", "fused"):
        plan = ranking.best(solver)
        assert plan is not None
        found = plan.body.launches(problem, target("sm90"), True)
        moved[solver] = sum(one.bytes for one in found)
        copies[solver] = [one.name for one in found if "copy" in one.name or "side by side" in one.name]
    assert moved["library"] > 2 * moved["fused"] and len(copies["library"]) == 3 and not copies["fused"]


def _pieces_of_work(body: NativeProduct, problem: BlockDiagProblem) -> None:
    """They are of whole panels, cover each once, and there are enough for every thread where panels suffice."""
    panels, groups = body.panels(problem), body.pieces * problem.result_blocks
    assert body.outer is None or body.outer_rows % body.outer.rows == 0, "whole tiles"
    each, rest = divmod(body.outer_work(problem), problem.blocks)
    assert rest == 0 and (each - 1) * body.outer_rows < problem.block_out <= each * body.outer_rows
    for threads in (1, 2, 64):
        items, together = body.work(problem, threads)
        each, rest = divmod(items, groups)
        assert rest == 0 and (each - 1) * together < panels <= each * together
        assert together == 1 or items >= (body.items * threads if body.parallel else 1)


@pytest.mark.parametrize("out", [1, 7, 48, 96, 100, 192, 768])
@pytest.mark.parametrize("arch", ["avx512", "avx2", "neon"])
def test_the_tile_that_computes_least_in_vain_is_chosen(arch: str, out: int) -> None:
    """Of equals the fastest: with few registers not the widest."""
    plan = search.plan(BlockDiagProblem(n_in=64, n_out=2 * out, blocks=2, rows=512), target(arch))
    assert isinstance(plan.body, NativeProduct)
    spec = plan.body.spec
    assert spec.columns == columns_for(out, spec.vector, spec.registers)


def test_16_bits_are_widened_where_the_cpu_has_no_units_for_them() -> None:
    problem = parse("blockdiag in=768 out=768 rows=512 bf16")
    assert search.plan(problem, target("avx2")).solver == "native"
    assert search.plan(problem, target("avx512")).solver == "library"


def test_kernels_that_no_device_has_run_are_ranked_by_their_estimates() -> None:
    """And say that they are checked first; M2GEN_UNTRIED=avoid puts them last (tests/runtime/test_first_use.py)."""
    ranking = search.rank(parse("blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 gelu glu"), target("sm90"))
    library, first = ranking.best("library"), ranking.plans[0]
    assert library is not None and first.solver == "fused" and library.body.untried is None
    assert first.estimate.seconds < library.estimate.seconds
    assert "not yet run on a device: checked once on its device before its first use" in first.explain()
    assert "untried" not in library.explain()


def test_explain_and_show() -> None:
    problem = parse("blockdiag in=768 out=6144 blocks=4 rows=512 fp32 gelu glu")
    plan = search.plan(problem, target("avx2"))
    text = plan.explain()
    for part in ("4 x 1536 x 192", "a 4th of a dense one's 4718592", "blockdiag_mm_fwd_c2_fp32_glu_gelu", "seconds ="):
        assert part in text
    assert f"= {plan.estimate.seconds:.6g} s" in text
    assert dict(search.rank(problem, target("avx2")).rejections)["library"].startswith("its sums depend on the number")
    assert "blockdiag_mm_pack" in show(problem, "avx2", part="pack")


def test_what_is_added_is_read_once_more_by_every_solver() -> None:
    """The residual's bytes are in the problem's least, in each estimate and in the formulas that are shown."""
    text = "blockdiag in=3072 out=768 blocks=4 rows=4096 {} bias"
    for arch, dtype, solvers in (("avx512", "fp32", {"native"}), ("avx2", "bf16", {"library", "native"}),
                                 ("sm90", "bf16", {"library", "fused"})):  # fmt: skip
        bare, added = (parse(text.format(dtype) + word) for word in ("", " residual"))
        more = added.least_bytes - bare.least_bytes
        assert more == 4096 * 768 * (4 if dtype == "fp32" else 2)
        plain, beside = (search.rank(problem, target(arch)) for problem in (bare, added))
        assert {plan.solver for plan in beside.plans} == solvers
        for solver in solvers:
            one, other = plain.best(solver), beside.best(solver)
            assert one is not None and other is not None
            assert other.estimate.bytes >= one.estimate.bytes + more and other.estimate.seconds > one.estimate.seconds
            assert "behind it bias, residual" in other.explain() and "behind it bias\n" in one.explain()
    library = search.rank(added, target("sm90")).best("library")
    assert library is not None and "S = 1" in library.explain()


def test_a_gated_product_moves_what_it_must() -> None:
    """M2-BERT's, and with everything behind it: by the plan, at most a tenth more than every tensor once."""
    for words in ("gelu glu", "bias gelu glu residual"):
        problem = parse(f"blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 {words}")
        plan = search.rank(problem, target("sm90")).best("fused")
        assert plan is not None and problem.least_bytes <= plan.estimate.bytes <= 1.1 * problem.least_bytes

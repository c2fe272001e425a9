"""Plans of rings that need passes over memory: sizes, stages, chunks, what is said of them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from m2gen.device.limits import LIMITS, DeviceLimits, target
from m2gen.planner.fftconv.passes import LARGEST, SMALLEST, Passes, factored, plans
from m2gen.planner.fftconv.passes_rows import INNER
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.fftconv.steps_turned import TurnedPasses
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.planner.step import UNTRIED
from m2gen.planner.stored import plan_from_json

GPUS = [limits for limits in LIMITS.values() if limits.kind == "gpu"]
SM90 = target("sm90")


def first(text: str, arch: str = "sm90") -> PassesConv:
    found = rank(parse(text), target(arch)).best("passes")
    assert found is not None and isinstance(found.body, PassesConv)
    return found.body


@pytest.mark.parametrize("power", range(13, 25))
def test_stages_make_up_the_ring(power: int) -> None:
    """As few as it takes, or one more; the outermost, which the user's tensors pass through, has the least radix."""
    found = list(factored(2**power))
    assert found and len(set(found)) == len(found) <= 30
    for radices in found:
        assert 2**power // prod(radices) in INNER
        assert list(radices) == sorted(radices)
    least = min(map(len, found))
    assert {len(radices) for radices in found} <= {least, least + 1}
    assert least == 1 or 2**power > 128 ** (least - 1) * INNER[-1]


@pytest.mark.parametrize("limits", GPUS, ids=lambda limits: limits.arch)
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("mode", ["circular", "causal", "bidirectional", "same"])
def test_every_gpu_has_plans_up_to_16_million_points(limits: DeviceLimits, dtype: str, mode: str) -> None:
    for n in (2**15, 10**5 + 1, 2**20, 2**22 + 3):
        problem = FftConvProblem(n=n, h=16, b=2, k=n - 1 + n % 2, dtype=dtype, mode=mode, pre_gate=True, skip=True)
        found = list(plans(problem, limits, SMALLEST))
        if dtype == "fp32" and limits.arch not in ("sm80", "sm90"):  # less shared memory, or no float32 kernel on chip
            assert found or "gives no kernels" in str(Passes().reject(problem, limits))
        else:
            assert found
        for plan in found:
            assert plan.seconds > 0 and plan.body.untried == UNTRIED
            assert plan_from_json(plan.to_json()) == plan


def test_what_is_too_large_too_small_or_lies_across_is_rejected_with_the_reason() -> None:
    def why(text: str, arch: str = "sm90") -> str:
        return str(dict(rank(parse(text), target(arch)).rejections)["passes"])

    assert f"at most {LARGEST} points, and the least for it has {2 * LARGEST}" in why(f"fftconv n={LARGEST + 1} fp16")
    assert "done on chip" in why("fftconv n=2000 fp16")
    assert "no fp64 path" in why("fftconv n=40000 fp64")
    assert "sm90" not in why("fftconv n=40000 fp16", "avx2")
    bare = replace(SM90, shared_bytes=2**10)
    assert "gives no kernels" in str(Passes().reject(parse("fftconv n=40000 fp16"), bare))


@pytest.mark.parametrize("text", [
    "fftconv n=1048576 h=768 b=2 fp16 circular gated",
    "fftconv n=16777216 h=3 b=64 bf16 causal",
    "fftconv n=16777215 h=3 b=5 bf16 circular gated skip",
    "fftconv n=1000000 h=768 b=64 fp32 bidirectional gated skip add",
    "fftconv n=20000 h=768 b=512 fp16 causal",
])  # fmt: skip
def test_scratch_is_bounded_and_stated(text: str) -> None:
    problem = parse(text)
    for plan in rank(problem, SM90).plans:
        if plan.solver == "passes":
            body = plan.body
            assert plan.estimate.working_set <= body.scratch(problem, gradients=True) <= 1.01 * SM90.chunk_bytes
            assert f"{body.scratch(problem, gradients=True) / 2**20:.0f} MiB" in plan.explain()
            assert body.channels == 1 or body.rows == problem.b  # a batch is cut where one channel is too much


def test_half_a_million_rows_of_one_channel_are_cut() -> None:
    body = first("fftconv n=1048576 h=2 b=4096 fp16 circular")
    assert body.channels == 1 and body.rows < 4096 and body.rows % 2 == 0


def test_a_batch_of_any_size_is_planned() -> None:
    """In chunks that are as large as they may be, and at once."""
    for b in (10**5, 10**8):
        problem = parse(f"fftconv n=20000 h=2 b={b} bf16 causal")
        body = first(str(problem))
        assert body.channels == 1 and 0.5 < body.scratch(problem, True) / SM90.chunk_bytes <= 1.01


def test_a_plan_says_its_stages_and_kernels() -> None:
    text = rank(parse("fftconv n=1048576 h=192 b=2 bf16 causal gated skip"), SM90).best("passes").explain()
    for part in ("outer_analysis_n", "outer stages", "scratch", UNTRIED, "t^1048576 = i", "passes-conv"):
        assert part in text


@pytest.mark.parametrize("text", [
    "fftconv n=65536 h=768 b=8 fp16 circular gated",
    "fftconv n=1048576 h=768 b=2 bf16 causal skip",
    "fftconv n=100001 h=64 b=8 fp16 circular post_gated add",
])  # fmt: skip
def test_launches_are_those_of_a_call(text: str) -> None:
    """As many as there are, chunk by chunk, and together what the estimate says."""
    problem = parse(text)
    body = first(text)
    chunks = -(-problem.h // body.channels) * -(-problem.b // body.rows)
    forward = body.launches(problem, SM90, gradients=False)
    every = body.launches(problem, SM90, gradients=True)
    assert len(forward) == body.estimate.launches == (2 * len(body.outer) + 1) * chunks
    of_filter = {spec.name for spec in body.filters.forward}  # a step of its own
    assert {one.name for one in forward} == {s.name for s in body.kernels(problem, gradients=False)} - of_filter
    assert sum(one.seconds for one in forward) == pytest.approx(body.estimate.seconds, rel=0.02)
    assert sum(one.bytes for one in forward) == pytest.approx(body.estimate.bytes)
    behind = [one for one in every if one.back]
    assert every == (*forward, *behind) and len(behind) > 2 + len(forward)
    assert {one.name for one in behind} - {spec.name for spec in body.kernels(problem)} == {
        behind[0].name,
        behind[-1].name,
    }


@pytest.mark.parametrize("words", ["", "gated skip add", "pre_gated", "post_gated"])
@pytest.mark.parametrize("mode", ["causal", "circular"])
def test_channels_last_is_turned(words: str, mode: str) -> None:
    """Between turns stands what is planned for times as neighbours, without gates; launches are those that the estimate
    has, and what they move is told."""
    problem = parse(f"fftconv n=100001 h=64 b=8 bf16 {mode} {words} blh")
    plan = rank(problem, SM90).best("passes")
    body = plan.body
    assert isinstance(body, TurnedPasses) and body.layout(problem) == "BHL"
    like = replace(problem, layout="BHL", pre_gate=False, post_gate=False, add=False)
    straight = next(one.body for one in plans(like, SM90, SMALLEST) if one.body.outer == body.outer)
    assert isinstance(straight, PassesConv) and not isinstance(straight, TurnedPasses)
    assert set(straight.kernels(like, False)) < set(body.kernels(problem, False))
    forward, every = (body.launches(problem, SM90, gradients) for gradients in (False, True))
    turns = [one for one in every if one.name.startswith("turn")]
    assert len(turns) == 2 + 2 + 1 + problem.gates and every[: len(forward)] == forward
    assert forward[0].name.startswith("turn") and forward[-1].name.startswith("turn")
    assert len(forward) == body.estimate.launches
    assert sum(one.seconds for one in forward) == pytest.approx(body.estimate.seconds, rel=0.02)
    assert sum(one.bytes for one in forward) == pytest.approx(body.estimate.bytes)
    named = {spec.name for spec in body.kernels(problem)}
    assert {one.name for one in every} - named == {"spectrum of the filter", "taps of the filter's gradient"}
    tensor = problem.b * problem.h * problem.n
    more = body.scratch(problem, False) - straight.scratch(like, False)
    assert more == tensor * (2 + (4 if problem.post_gate or problem.add else 2))
    assert "turned by turn_bf16" in plan.explain() and plan_from_json(plan.to_json()) == plan


def test_kernels_of_other_sizes_are_shared() -> None:
    """A pass is the same kernel for rings of any size."""
    names = [
        {
            one.name
            for plan in plans(parse(f"fftconv n={n} h=768 b=8 fp16 circular"), SM90, SMALLEST)
            for one in plan.body.outer
        }
        for n in (2**15, 2**16, 2**20)
    ]
    assert names[0] <= names[1] and names[0] < names[2]


@pytest.mark.parametrize(
    ("n", "words"),
    [
        (2**14, "fp16 circular gated"),
        (2**16, "fp16 circular gated"),
        (2**16, "bf16 causal pre_gated blh"),
        (2**17 - 1, "bf16 circular skip add"),
        (2**20, "bf16 causal skip"),
    ],
)
def test_gradients_are_made_by_the_quickest_passes(n: int, words: str) -> None:
    """Whatever makes the forward pass, itself or another; those of up to 2048 points a row have a kernel of several."""
    problem = parse(f"fftconv n={n} h=768 b=8 {words}")
    found = [plan for plan in rank(problem, SM90).plans if plan.solver == "passes"]
    behind, own = [], []
    for plan in found:
        body = plan.body
        for of, into in ((body, behind), (replace(body, back=None), own)):
            into.append(sum(one.seconds for one in of.launches(problem, SM90, gradients=True) if one.back))
            assert of.seconds_behind(problem, SM90) == pytest.approx(into[-1])
        assert (body.bwd is None) == (body.spec.size > 2048)
        if body.bwd is not None:
            assert body.bwd.spec.radices == body.spec.radices and body.bwd.spec.name in plan.explain()
        gradients = body.back or body
        assert gradients.back is None and set(gradients.behind(problem)) <= set(body.kernels(problem))
        assert plan_from_json(plan.to_json()) == plan
        assert body.scratch(problem, True) >= gradients.scratch(problem, True)
        assert body.back is None or "with the filter's gradient in passes over memory" in plan.explain()
    assert behind == pytest.approx([min(own)] * len(found)) and (n < 2**16 or max(own) > 1.05 * min(own))


def test_one_kernel_for_all_gradients_is_estimated_faster_than_one_each() -> None:
    problem = parse("fftconv n=32768 h=768 b=16 fp16 circular gated skip")
    body = first(str(problem))
    singly = replace(body, bwd=None).launches(problem, SM90, gradients=True)
    together = body.launches(problem, SM90, gradients=True)
    assert sum(one.seconds for one in together) < sum(one.seconds for one in singly)
    assert sum(one.bytes for one in together) < sum(one.bytes for one in singly)
    assert len(together) < len(singly)


def test_float32_has_a_kernel_for_each_gradient() -> None:
    """Its products are three in TF32: no registers are left for more."""
    body = first("fftconv n=65536 h=768 b=8 fp32 circular gated")
    assert body.bwd is None and (body.back or body).bwd is None

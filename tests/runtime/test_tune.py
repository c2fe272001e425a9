"""Tuning for real on this CPU, small: candidates are checked, bad ones dropped, results kept and found again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import m2gen
from m2gen.cache import wisdom as store
from m2gen.config import Config
from m2gen.errors import CompileError, WisdomError
from m2gen.planner import search
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problems import parse
from m2gen.reference.fftconv import fftconv as reference
from m2gen.reference.fftconv import fftconv_at
from m2gen.runtime.bindings.spectral import SpectralKernel
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure import tune, wisdom
from m2gen.runtime.measure.cases import case_of
from m2gen.runtime.measure.timer import Samples
from m2gen.testing.operands import operands

PROBLEM = parse("fftconv n=300 h=4 b=2 fp32 causal gated skip")
HERE = live(torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Wisdom of the test's own."""
    for module in (store, wisdom):
        monkeypatch.setattr(module, "config", lambda: Config(wisdom=str(tmp_path)))
    monkeypatch.setattr(store, "shipped", lambda arch: [])
    monkeypatch.setattr(store, "_here", {})
    wisdom.refresh()
    yield tmp_path
    monkeypatch.undo()
    wisdom.refresh()


@pytest.fixture
def rigged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stopwatch by which the third candidate takes half the default's time."""
    seen: list[str] = []

    def interleaved(calls: dict[str, object], device: object, **_: object) -> dict[str, Samples]:
        seen.extend(name for name in calls if name not in seen)
        return {name: Samples(((0.5 if name == seen[2] else 1.0),) * 9) for name in calls}

    monkeypatch.setattr(tune, "interleaved", interleaved)
    return seen


def run(**options: object) -> list[tune.Outcome]:
    return list(tune.tune_all([PROBLEM], HERE, **options))  # type: ignore[arg-type]


def test_the_fastest_is_kept_and_followed(folder: Path, rigged: list[str]) -> None:
    (outcome,) = run(best=4)
    assert outcome.entry is not None and not outcome.dropped
    assert (outcome.entry.choice, outcome.entry.default) == (rigged[2], rigged[0])
    assert store.load(folder) == [outcome.entry]
    assert m2gen.plan(PROBLEM).choice == rigged[2]
    assert m2gen.plan(PROBLEM, rigor="wisdom_only").origin.startswith("wisdom: measured")
    x = operands(PROBLEM)
    assert torch.allclose(m2gen.fftconv(**x).double(), reference(**x), atol=1e-3)
    with pytest.raises(WisdomError, match="no wisdom"):
        m2gen.plan("fftconv n=5000 h=4 b=2 fp32 causal", rigor="wisdom_only")


def test_a_tuning_that_is_stopped_goes_on(folder: Path, rigged: list[str]) -> None:
    assert [outcome.why for outcome in run(budget=0.0)] == ["the budget is spent"]
    assert run(best=3)[0].entry is not None
    assert [outcome.why for outcome in run(budget=0.0)] == ["tuned before"]
    assert [outcome.why for outcome in run(budget=0.0, again=True)] == ["the budget is spent"]


def test_wrong_and_failing_candidates_are_dropped(
    folder: Path, rigged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(tune.contenders(search.rank(PROBLEM, HERE), 4))
    bound = tune.kernel_of

    class Wrong(SpectralKernel):
        def forward(self, x: object) -> Tensor:
            return super().forward(x) * (1 + 1e-3)  # type: ignore[arg-type]

    class Stale(SpectralKernel):
        def forward(self, x: object) -> Tensor:
            return super().forward(replace(x, u=x.u.abs()))  # type: ignore[arg-type, attr-defined, type-var]

    def broken(plan: search.Plan) -> object:
        library = search.rank(plan.problem, HERE).best("library")
        assert library is not None
        if plan.choice == names[0]:
            return Wrong(plan.problem, library.body)  # type: ignore[arg-type]
        if plan.choice == names[1]:
            raise CompileError("a kernel", "it does not compile", "nothing")
        if plan.choice == names[2]:
            return Stale(plan.problem, library.body)  # type: ignore[arg-type]
        return bound(plan)

    monkeypatch.setattr(tune, "kernel_of", broken)
    (outcome,) = run(best=4)
    assert list(outcome.dropped) == names[:3]
    assert outcome.dropped[names[0]].startswith("it is wrong: error")
    assert "it does not compile" in outcome.dropped[names[1]]
    assert outcome.entry is not None
    assert outcome.entry.default == names[3], "the first that is right"
    assert outcome.entry.dropped == outcome.dropped == store.load(folder)[0].dropped


def test_nothing_right_leaves_no_entry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(plan: object) -> object:
        raise RuntimeError("no memory")

    monkeypatch.setattr(tune, "kernel_of", broken)
    (outcome,) = run(best=2)
    assert outcome.entry is None and "no memory" in outcome.why
    assert store.load(folder) == []


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=5 h=3 b=2 fp32 circular",
        "fftconv n=64 h=20 b=1 bf16 same k=17 blh",
        "blockdiag in=40 out=60 blocks=4 rows=150 fp32 gelu glu",
        "blockdiag in=40 out=60 blocks=4 rows=30 bf16 bias silu residual",
    ],
)
def test_real_measurements(folder: Path, text: str) -> None:
    outcome = tune.tune(parse(text), HERE, seconds=0.02, best=2)
    assert outcome.entry is not None and outcome.dropped == {}
    assert outcome.entry.choice in outcome.entry.seconds
    assert {sample > 0 for one in outcome.samples.values() for sample in one.seconds} == {True}


def test_what_cannot_be_written_holds_for_the_process(
    folder: Path, rigged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "put", lambda entry: None)
    (outcome,) = run(best=3)
    assert store.load(folder) == [] and outcome.entry is not None
    assert m2gen.plan(PROBLEM).choice == outcome.entry.choice


def test_measuring_at_the_first_call(folder: Path, rigged: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = m2gen.plan(PROBLEM, rigor="measure")
    assert plan.choice == rigged[2] and len(store.load(folder)) == 1
    monkeypatch.setattr(tune, "tune", None)  # never asked again
    assert m2gen.plan(PROBLEM, rigor="measure") == plan
    monkeypatch.setattr(wisdom, "config", lambda: Config(wisdom=str(folder), rigor="wisdom_only"))
    with pytest.raises(WisdomError, match="m2gen tune"):
        m2gen.fftconv(torch.zeros(1, 1, 9999), torch.zeros(1, 9999))


def test_large_problems_are_timed_on_fewer_channels() -> None:
    large = parse("fftconv n=1000000 h=256 b=1 bf16 causal gated skip")
    assert case_of(large).reduced(large) == replace(large, h=67)
    assert case_of(PROBLEM).reduced(PROBLEM) == PROBLEM
    many = parse("blockdiag in=768 out=768 rows=1000000")
    assert case_of(many).reduced(many) == replace(many, rows=2**26 // 768)


@pytest.mark.parametrize(
    "text",
    [
        "fftconv n=700 h=40 b=3 fp32 causal gated skip",
        "blockdiag in=48 out=96 blocks=4 rows=900 fp32 gelu glu",
        "blockdiag in=48 out=96 blocks=4 rows=900 fp32 bias silu glu residual",
        "shortconv n=700 h=40 b=9 fp32 bias",
        "shortconv n=700 h=40 b=9 bf16 bias blh",
        "shortconv n=700 h=40 b=9 fp32 bias gated blh",
        "shortconv n=700 h=40 b=9 bf16 gated to=blh",
        "gate n=30 rows=900 fp32 gelu",
    ],
)
def test_a_plan_does_the_problems_that_are_measured_in_its_problems_stead(text: str) -> None:
    """Nothing of a plan says how much there is to do: fewer rows, sequences and samples stay within their memory."""
    problem = parse(text)
    kind = case_of(problem)
    cpu = torch.device("cpu")
    case = kind(kind.small(problem), cpu)
    assert case.problem != problem
    for plan in search.rank(problem, live(cpu)).plans[:4]:
        assert case.wrong_somewhere(replace(plan, problem=case.problem)) is None, plan


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "same", "circular"])
def test_the_sampled_reference_is_the_reference(mode: str) -> None:
    args = operands(FftConvProblem(n=23, k=23, h=3, b=2, mode=mode, pre_gate=True, post_gate=True, skip=True, add=True))
    args.pop("layout")
    at = torch.tensor([0, 3, 22])
    torch.testing.assert_close(fftconv_at(at, **args), reference(**args)[..., at], rtol=1e-12, atol=1e-12)


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from m2gen.cache import wisdom as store
from m2gen.config import Config
from m2gen.planner.problems import parse
from m2gen.runtime.measure import tune, wisdom
from m2gen.runtime.measure.cases import case_of
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure.timer import Samples
import m2gen
rank, folder, port = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
for module in (store, wisdom):  # each rank has a folder of its own
    module.config = lambda: Config(wisdom=f"{folder}/{rank}")
favourite = 2 if rank == 0 else 1
def interleaved(calls, device, **_):
    assert rank == 0, "only rank 0 measures while ranks are connected" if dist.is_initialized() else ""
    names = list(calls)
    return {name: Samples(((0.5 if name == names[min(favourite, len(names) - 1)] else 1.0),) * 9) for name in names}
tune.interleaved = interleaved
here = live(torch.device("cpu"))
alone, together = (parse(f"fftconv n={n} h=4 b=2 fp32 causal") for n in (300, 500))
if rank == 0:
    tune.tune(alone, here, best=3)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
count = wisdom.share_wisdom()
(outcome,) = tune.tune_all([together], here, best=3)
plans = [m2gen.plan(problem, rigor="wisdom_only").choice for problem in (alone, together)]
print(count, outcome.entry is not None, len(store.load(store.place())), *plans, sep="|")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_ranks_agree(tmp_path: Path) -> None:
    """Two processes, different wisdom: both follow rank 0's, what it knew and what it measures; only it writes."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    words = [sys.executable, "-c", TWO_RANKS]
    running = [
        subprocess.Popen([*words, str(rank), str(tmp_path), port], stdout=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    first, second = (process.communicate()[0].strip().split("|") for process in running)
    assert first[3:] == second[3:] and len(first) == 5
    assert first[:2] == second[:2] == [first[0], "True"]
    assert (first[2], second[2]) == ("2", "0")

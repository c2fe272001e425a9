"""A plan tried in a process of its own: what faults is dropped, and nothing else is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import m2gen
from m2gen.cache import wisdom as store
from m2gen.config import Config
from m2gen.device.limits import target
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure import trial, tune, wisdom

CPU = torch.device("cpu")
PROBLEM = parse("fftconv n=300 h=4 b=2 fp32 causal gated skip")
FAULTY = str(Path(__file__).with_name("faulty.py"))


def native() -> Plan:
    plan = rank(PROBLEM, live(CPU)).best("native")
    if plan is None:
        pytest.skip("no generated C++ here")
    return plan


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No verdict is remembered from another test."""
    trial.fault.cache_clear()
    yield
    trial.fault.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        str(PROBLEM),
        "fftconv n=100 h=3 b=2 fp32 bidirectional",
        "fftconv n=64 h=8 b=2 bf16 circular blh",
        "monarch in=110 out=60 rows=70 factors=11x6x10,6x10x11",
        "monarch in=36 out=36 rows=5 bf16 factors=12x3x3,6x6x6",
    ],
)
def test_every_solvers_plan_is_found_right(text: str) -> None:
    """In this process: the checks themselves hold, for each solver's best plan."""
    problem = parse(text)
    ranking = rank(problem, live(CPU))
    for solver in {plan.solver for plan in ranking.plans}:
        plan = ranking.best(solver)
        assert plan is not None
        assert trial.judged(plan, problem, CPU) is None, plan


def test_a_right_plan_passes_in_a_process_of_its_own() -> None:
    assert trial.fault(native(), PROBLEM, CPU) is None


TRITONS = (
    "fftconv n=200 h=2 b=2 fp32 causal gated skip",
    "blockdiag in=40 out=60 blocks=4 rows=70 fp32 gelu glu",
    "blockdiag in=40 out=60 blocks=4 rows=70 bf16 bias silu residual",
    "blockdiag in=40 out=60 blocks=4 rows=70 fp16 bias relu glu residual",
    "blockdiag in=40 out=60 blocks=4 rows=70 fp32 relu",
    "blockdiag in=40 out=60 blocks=4 rows=70 fp32 bias",
    "blockdiag in=40 out=60 blocks=4 rows=70 bf16 glu",
    "shortconv n=90 h=20 b=2 bf16 bias blh",
    "shortconv n=90 h=20 b=2 fp32 bias gated blh to=bhl",
)
JUDGE = """
import sys, torch
from m2gen.device.limits import target
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.measure import trial
torch.set_num_threads(1)
for problem in map(parse, sys.argv[1:]):
    plan = next(plan for plan in rank(problem, target("sm90")).plans if plan.solver == "fused")
    print(trial.judged(plan, problem, torch.device("cpu")))
"""


def test_tritons_kernels_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code runs generated Triton kernels: forward, gradients, filter's and weight's gradient. The first from
    here, as any plan; all others in one process."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # the other processes'
    problem = parse(TRITONS[0])
    plan = next(plan for plan in rank(problem, target("sm90")).plans if plan.solver == "fused")
    assert trial.fault(plan, problem, CPU) is None
    words = [sys.executable, "-c", JUDGE, *TRITONS[1:]]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["None"] * len(TRITONS[1:]), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("signal", "its process ended with signal 11"),
        ("exit", "its process ended with status 3"),
        ("raise", "an illegal memory access"),
        ("wrong", "it is wrong: result is off by"),
        ("gradient", "it is wrong: gradient of k is off by"),
    ],
)
def test_what_faults_is_told(how: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, FAULTY, how))
    why = trial.fault(native(), PROBLEM, CPU)
    assert why is not None
    assert said in why


def test_what_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, FAULTY, "hang"))
    assert trial.fault(native(), PROBLEM, CPU, 3.0) == "it was not done after 3 s"


def test_a_plan_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = native()
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, FAULTY, "exit"))
    first = trial.fault(plan, PROBLEM, CPU)
    monkeypatch.setattr(trial, "COMMAND", ("/no/such/command",))
    assert trial.fault(plan, PROBLEM, CPU) == first
    assert "could not be tried" in str(trial.fault(replace(plan, arch="other"), PROBLEM, CPU))


def test_on_a_gpu_tritons_kernels_are_tried_alone() -> None:
    fused = next(plan for plan in rank(PROBLEM, target("sm90")).plans if isinstance(plan.body, FusedConv))
    assert trial.alone(fused, torch.device("cuda"))
    assert not trial.alone(fused, CPU)
    assert not trial.alone(rank(PROBLEM, target("sm90")).best("library") or fused, torch.device("cuda"))


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


def faulting(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Let the estimate's choice die by a signal wherever it is tried; only that one is tried elsewhere."""
    plan = native()
    monkeypatch.setattr(
        trial, "alone", lambda one, device: one.body.spec == plan.body.spec if one.solver == "native" else False
    )
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, FAULTY, "signal"))
    return plan


def test_tuning_goes_on_without_the_candidate_that_faults(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = faulting(monkeypatch)
    others = parse("fftconv n=60 h=2 b=2 fp32 causal")
    found = list(tune.tune_all([PROBLEM, others], live(CPU), budget=30.0, best=3))
    first = found[0]
    assert "signal 11" in first.dropped[bad.choice]
    assert first.entry is not None
    assert first.entry.choice != bad.choice
    assert "signal 11" in first.entry.dropped[bad.choice]
    assert found[1].problem == others
    again = list(tune.tune_all([PROBLEM], live(CPU), budget=30.0, best=3))
    assert [outcome.why for outcome in again] == ["tuned before"]  # nothing was lost


def test_measuring_in_a_running_program_goes_the_same_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = faulting(monkeypatch)
    monkeypatch.setattr(tune, "BEST", 3)
    monkeypatch.setattr(tune, "SECONDS", 0.5)
    chosen = m2gen.plan(PROBLEM, rigor="measure")
    assert chosen.choice != bad.choice
    assert chosen.origin.startswith("wisdom")

"""Kernels that no device has run: checked once for a machine, before their first use; here on one that is made up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from m2gen import log
from m2gen.cache import verdicts
from m2gen.config import Config
from m2gen.device.limits import target
from m2gen.planner import explain, ranking, search
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.runtime import beside, executor, planning
from m2gen.runtime.bindings import blockdiag, blockdiag_triton
from m2gen.runtime.build.limits import planned_for
from m2gen.runtime.measure import first_use, trial
from m2gen.runtime.measure.trial import Trial

H100 = replace(target("sm90"), description="Some H100, planned for as NVIDIA H100")
GLU = parse("blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 gelu glu")
SHORT = parse("shortconv n=4096 h=768 b=8 bf16 bias gated blh")
CONV = parse("fftconv n=1024 h=768 b=64 fp16 causal gated")
RIGHT = Trial(None)


class Device:
    """What other processes would find: a verdict for each plan, and which were asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Plan, Any]] = []
        self.says: Callable[[Plan], Trial] = lambda plan: RIGHT

    def tried(self, plan: Plan, measured: Any, device: torch.device, seconds: float | None = None) -> Trial:
        self.asked.append((plan, measured))
        return self.says(plan)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The log's warnings."""
    lines: list[str] = []
    monkeypatch.setattr(log, "fallback", lines.append)
    monkeypatch.setattr(verdicts, "fallback", lines.append)
    return lines


def forget() -> None:
    """As in a new process."""
    first_use._found.clear()
    for cache in (first_use.here_of, executor.bound, search.rank, search.plan, ranking.cheapest_of):
        cache.cache_clear()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    def set_to(**fields: Any) -> None:
        for module in (verdicts, first_use, ranking, explain, executor):
            monkeypatch.setattr(module, "config", lambda: Config(**{"cache_dir": str(tmp_path / "cache")} | fields))
        forget()

    set_to()
    yield set_to
    monkeypatch.undo()
    forget()


@pytest.fixture
def device(settings: Callable[..., None], said: list[str], monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(first_use, "device_of", lambda limits: torch.device("cpu"))
    monkeypatch.setattr(trial, "tried", found.tried)
    return found


def bound(problem: Any = GLU) -> Any:
    return executor.bound(problem, H100, 1, 0)


def test_a_right_plan_is_checked_once_for_a_machine(device: Device, said: list[str]) -> None:
    first = search.rank(GLU, H100).plans[0]
    assert first.solver == "fused"
    assert bound().step == first.body
    ((plan, measured),) = device.asked
    assert plan == first and measured == replace(GLU, rows=1300), "the same kernels, few rows"
    assert len(said) == 1 and first.choice in said[0] and "not yet run on a device" in said[0] and "300 s" in said[0]
    forget()
    bound()
    fewer = replace(GLU, rows=16384)  # the same kernels: not again for other sizes
    assert search.rank(fewer, H100).plans[0].body.kernels(fewer) == first.body.kernels(GLU)
    bound(fewer)
    assert len(device.asked) == 1
    bound(SHORT)
    assert len(device.asked) == 2 and device.asked[1][0].problem == SHORT


def test_a_plan_is_known_when_all_its_kernels_are(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is right beside one that nobody tried, in this process and in another."""
    plan, one, two = search.rank(GLU, H100).plans[0], {"one": "1" * 64}, {"two": "2" * 64}
    monkeypatch.setattr(first_use, "kernels_of", lambda plan: one)
    first_use.verdict(plan, H100)
    monkeypatch.setattr(first_use, "kernels_of", lambda plan: one | two)
    assert first_use.unknown(plan, H100)
    forget()
    assert first_use.unknown(plan, H100)
    first_use.verdict(plan, H100)
    assert len(device.asked) == 2 and not first_use.unknown(plan, H100)


def test_what_is_not_known_is_planned_and_not_asked(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `m2gen plan` does on the device."""
    monkeypatch.setattr(planning, "limits_of", lambda name: H100)
    monkeypatch.setattr(planning, "_ahead", lambda *_: None)
    monkeypatch.setattr(planning, "known", lambda name: None)
    first, second = search.rank(GLU, H100).plans[:2]
    assert planning.plan(GLU) == first and not device.asked
    device.says = lambda plan: Trial("its process ended with signal 11") if plan == first else RIGHT
    bound()
    assert planning.plan(GLU) == second and len(device.asked) == 2
    assert planning.plan(GLU, "sm90") == first, "of a named target nothing is known"


def test_another_device_driver_or_compiler_is_another_matter(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = search.rank(GLU, H100).plans[0]
    first_use.verdict(plan, H100)
    first_use.verdict(plan, replace(H100, description="Another one, planned for as NVIDIA H100"))
    assert len(device.asked) == 2
    for name, other in (("_driver", lambda: "999.1"), ("importlib", None)):
        forget()
        if other is None:
            monkeypatch.setattr(first_use.importlib.metadata, "version", lambda _: "9.9")
        else:
            monkeypatch.setattr(first_use, name, other)
        first_use.verdict(plan, H100)
    assert len(device.asked) == 4


@pytest.mark.parametrize(
    "why", ["its process ended with signal 11: x", "it is wrong: gradient of x: off", "it was not done after 300 s"]
)
def test_the_next_plan_of_the_ranking_takes_a_faulty_one_s_place(device: Device, said: list[str], why: str) -> None:
    bad, good = search.rank(GLU, H100).plans[:2]
    device.says = lambda plan: Trial(why) if plan == bad else RIGHT
    assert bound().step == good.body and good.body != bad.body
    assert [plan for plan, _ in device.asked] == [bad, good]
    line = next(one for one in said if "is not used" in one)
    assert bad.choice in line and why in line and f"{good.choice} does {GLU}" in line and "Some H100" in line
    assert first_use.sound(bad, H100, check=False) == good and len(device.asked) == 2
    assert f"left out  {bad.choice} is not used on a Some H100: {why}" in (
        first_use.sound(bad, H100, check=False).explain()
    )
    forget()
    assert bound().step == good.body and len(device.asked) == 2, "a fault is remembered, too"


def test_where_every_kernel_faults_the_library_computes(device: Device, said: list[str]) -> None:
    """After three, no more are tried."""
    device.says = lambda plan: Trial("its process ended with signal 11")
    assert isinstance(bound(), blockdiag.LibraryKernel)
    assert len(device.asked) == 3 and sum("is not used" in one for one in said) == 3
    assert "library bmm does" in said[-1]


def test_where_all_plans_are_of_such_kernels_pytorch_s_products_compute(device: Device) -> None:
    problem = parse("monarch in=4096 out=4096 rows=8192 bf16 factors=64x64x64,64x64x64")
    plans = search.rank(problem, H100).plans
    assert all(plan.body.untried for plan in plans)
    device.says = lambda plan: Trial("its process ended with signal 11")
    kernel = bound(problem)
    assert all(isinstance(stage, blockdiag.LibraryKernel) for stage in kernel.stages)
    left_out = first_use.sound(plans[0], H100).left_out
    assert sum("is not used on a Some H100" in one for one in left_out) == min(3, len(plans)), "and the plan says so"


def test_what_the_circumstances_did_is_not_kept(device: Device) -> None:
    device.says = lambda plan: Trial("there is no room to try it", lasting=False)
    assert isinstance(bound(), blockdiag.LibraryKernel)
    many = len(device.asked)
    executor.forget()
    bound()
    assert len(device.asked) == many, "but not asked again in this process"
    forget()
    device.says = lambda plan: RIGHT
    assert isinstance(bound(), blockdiag_triton.FusedKernel)


def test_settings(device: Device, settings: Callable[..., None]) -> None:
    assert (
        "untried   compiled and interpreted, not yet run on a device: checked once on its device before its first use"
        in (search.plan(GLU, H100).explain())
    )
    settings(untried="trust")
    assert isinstance(bound(), blockdiag_triton.FusedKernel) and not device.asked
    assert "used without a check" in search.plan(GLU, H100).explain()
    settings(untried="avoid")
    plans = search.rank(GLU, H100).plans
    assert [plan.solver for plan in plans] == ["library", *["fused"] * (len(plans) - 1)]
    assert isinstance(bound(), blockdiag.LibraryKernel) and not device.asked
    assert f"left out  {plans[1].choice}, estimated" in plans[0].explain()
    assert "M2GEN_UNTRIED=avoid" in plans[0].explain()


def test_nothing_is_checked_on_a_cpu_or_in_the_interpreter(device: Device, settings: Callable[..., None]) -> None:
    fused = search.rank(GLU, H100).plans[0]
    assert first_use.asked(fused, H100) and not first_use.asked(fused, target("avx2"))
    assert not any(plan.body.untried for plan in search.rank(GLU, target("avx2")).plans)
    with planned_for(H100):  # as a plan of a model on a machine without it
        assert not first_use.asked(fused, H100)
    settings(triton_interpret=True)
    assert isinstance(bound(), blockdiag_triton.FusedKernel) and not device.asked


def test_a_fused_convolution_does_without_its_filter_s_kernels_where_those_are_wrong(
    device: Device, settings: Callable[..., None]
) -> None:
    """And where it avoids what no device has run; nothing is asked of a plan whose kernels a device has run."""
    first = search.rank(CONV, H100).plans[0]
    plainer = first.plainer(H100)
    assert first.solver == "fused" and plainer is not None and plainer.body.untried is None
    device.says = lambda plan: Trial("it is wrong: gradient of k")
    assert first_use.sound(first, H100) == plainer and [plan for plan, _ in device.asked] == [first]
    settings(untried="avoid")
    assert search.rank(CONV, H100).plans[0] == plainer


def test_beside_another_computes_until_the_check_is_done(
    device: Device, settings: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(compile="beside")
    done = Event()
    bad, good = search.rank(GLU, H100).plans[:2]

    def late(plan: Plan) -> Trial:
        done.wait(60)
        return Trial("its process ended with signal 11") if plan == bad else RIGHT

    device.says = late
    compiled: list[Any] = []
    monkeypatch.setattr(beside, "there", lambda *_: True)
    monkeypatch.setattr(beside, "make_ready", lambda plans, limits: compiled.extend(plans))
    kernel = bound()
    assert isinstance(kernel._now(), blockdiag.LibraryKernel) and kernel.step.own_gradients is False
    done.set()
    kernel._thread.join(60)
    assert kernel.step == good.body and [(plan.body, trained) for plan, trained in compiled] == [(good.body, True)]
    executor.forget()
    assert not isinstance(bound(), beside.Beside), "nothing is left to wait for"


# -- the store ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"format": 1, "why": null}', b"x" * 2**17])
def test_a_damaged_file_is_as_if_it_were_not_there(device: Device, said: list[str], content: bytes) -> None:
    bound()
    for path in verdicts.place().glob("*.json"):
        path.write_bytes(content)
    forget()
    bound()
    assert len(device.asked) == 2 and any(line.startswith("left out: ") for line in said)
    forget()
    bound()
    assert len(device.asked) == 2, "it was written anew"


def test_another_s_verdict_under_this_name_is_not_taken(device: Device) -> None:
    bound()
    for path in verdicts.place().glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"driver": "other"}))
    forget()
    bound()
    assert len(device.asked) == 2


def test_a_folder_that_others_write_to_is_not_believed(device: Device, said: list[str]) -> None:
    bound()
    verdicts.place().chmod(0o777)
    forget()
    bound()
    assert len(device.asked) == 2 and any("others could change" in line for line in said)


def test_without_a_place_to_write_the_process_remembers(
    device: Device, settings: Callable[..., None], said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    settings(cache_dir=str(tmp_path / "file" / "below"))
    bound()
    executor.forget()
    bound()
    assert len(device.asked) == 1 and any("for this process alone" in line for line in said)


TWO = """
import sys, time
from dataclasses import replace
from pathlib import Path
from m2gen.device.limits import target
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.measure import first_use, trial

def tried(plan, measured, device, seconds=None):
    with open(sys.argv[1], "a") as file:
        file.write("asked\\n")
    time.sleep(3)
    return trial.Trial(None)

trial.tried, first_use.device_of = tried, lambda limits: None
problem = parse("blockdiag in=768 out=6144 blocks=4 rows=32768 bf16 gelu glu")
limits = replace(target("sm90"), description="Some H100, planned for as NVIDIA H100")
Path(sys.argv[2]).touch()
while not all(Path(name).exists() for name in sys.argv[2:]):
    time.sleep(0.01)
print(first_use.verdict(rank(problem, limits).plans[0], limits).why)
"""


def test_two_processes_check_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M2GEN_CACHE_DIR", str(tmp_path / "cache"))
    noted, ready = tmp_path / "asked", [str(tmp_path / name) for name in "ab"]
    both = [
        subprocess.Popen([sys.executable, "-c", TWO, str(noted), *names], stdout=subprocess.PIPE, text=True)
        for names in (ready, ready[::-1])
    ]
    assert [one.communicate(timeout=120)[0].strip() for one in both] == ["None", "None"]
    assert noted.read_text() == "asked\n"


# -- the trial ---------------------------------------------------------------------------------------------------------


def test_a_trial_in_a_process_of_its_own_from_end_to_end(
    settings: Callable[..., None], said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process has Triton's interpreter for a device: right kernels, and then their verdict from the store."""
    monkeypatch.setattr(first_use, "device_of", lambda limits: torch.device("cpu"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    problem = parse("blockdiag in=40 out=60 blocks=4 rows=70 fp32 bias gelu glu residual")
    plan = search.rank(problem, H100).plans[0]
    assert plan.solver == "fused" and first_use.unknown(plan, H100)
    assert first_use.verdict(plan, H100).why is None
    assert not first_use.unknown(plan, H100)
    forget()
    assert not first_use.unknown(plan, H100)


@pytest.mark.parametrize(
    ("program", "said", "lasting"),
    [
        ("raise SystemExit(3)", "status 3", False),
        ("began.touch(); raise SystemExit(3)", "status 3", True),
        ("time.sleep(1e6)", "not done after 2 s", False),
        ("began.touch(); time.sleep(1e6)", "not done after 2 s", True),
        ("answer.write_text(json.dumps({'why': 'no room', 'lasting': False}))", "no room", False),
    ],
)
def test_what_ended_before_the_device_was_used_is_not_the_plan_s_fault(
    program: str, said: str, lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = "import json, sys, time; from pathlib import Path; request = json.load(open(sys.argv[1])); "
    begin += "answer = Path(request['verdict']); began = answer.with_suffix('.began'); "
    monkeypatch.setattr(trial, "COMMAND", (sys.executable, "-c", begin + program))
    plan = search.rank(GLU, H100).plans[0]
    found = trial.tried(plan, GLU, torch.device("cpu"), 2.0)
    assert said in str(found.why) and found.lasting is lasting

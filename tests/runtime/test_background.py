"""Jobs in other processes beside the caller's work: in their order, each once, and nothing left over."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slow_jobs import SlowJob

from m2gen.runtime.build import background
from m2gen.runtime.build.background import Background
from m2gen.runtime.build.workers import Failed, Worker

SERVES = "slow_jobs:serve"


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Processes end at once, and those of other tests leave room."""
    monkeypatch.setattr(background, "IDLE", 0.2)
    yield


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(background, "fallback", lines.append)
    return lines


def until(path: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


def test_jobs_are_done_once_and_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "cores", lambda: 2)
    some, jobs = Background(SERVES), [SlowJob(str(tmp_path), name) for name in "abc"]
    some.begin(jobs)
    some.begin(jobs)
    some.finish(60)
    done = sorted(tmp_path.glob("*.done"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem for path in done] == ["a", "b", "c"]
    assert len({path.read_text() for path in tmp_path.glob("*.begun")}) == 1, "one core is the caller's"
    assert str(os.getpid()) not in {path.read_text() for path in tmp_path.glob("*.begun")}


def test_a_call_waits_for_what_is_being_done_and_does_itself_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "cores", lambda: 2)
    some, first, last = Background(SERVES), SlowJob(str(tmp_path), "first", 1.0), SlowJob(str(tmp_path), "last")
    some.begin([first, last])
    until(tmp_path / "first.begun")
    some.needed(last, 0.0)
    assert not (tmp_path / "first.done").exists()
    some.needed(first)
    assert (tmp_path / "first.done").exists()
    some.finish(60)
    assert not (tmp_path / "last.begun").exists()


def test_a_process_that_dies_and_a_job_that_fails_cost_nothing_else(tmp_path: Path, said: list[str]) -> None:
    some = Background(SERVES)
    some.begin(
        [SlowJob(str(tmp_path), "a", how="dies"), SlowJob(str(tmp_path), "b", how="fails"), SlowJob(str(tmp_path), "c")]
    )
    some.finish(60)
    assert (tmp_path / "c.done").exists()
    assert len(said) == 2 and any("a is left to its first call: the compiler died" in line for line in said)
    assert any("b is left to its first call: it fails" in line for line in said)


def test_processes_end_when_there_is_no_more_to_do(tmp_path: Path) -> None:
    some = Background(SERVES)
    some.begin([SlowJob(str(tmp_path), "a")])
    some.finish(60)
    pid = int((tmp_path / "a.begun").read_text())
    end = time.monotonic() + 60
    while _alive(pid):
        assert time.monotonic() < end
        time.sleep(0.05)
    some.begin([SlowJob(str(tmp_path), "b")])  # and start again
    some.finish(60)
    assert (tmp_path / "b.done").exists()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_places_are_shared_by_all_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finds those taken that this one has, and takes one beside them at most."""
    monkeypatch.setattr(background, "cores", lambda: 2)
    slots = background._Slots()
    held = [slot for slot in (slots.take(False), slots.take(False)) if slot is not None]
    code = (
        "from m2gen.runtime.build import background; background.cores = lambda: 2; slots = background._Slots(); "
        "print(slots.take(False) is None, slots.take(True) is not None)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True" if len(held) == 2 else "False", "True"] or len(held) < 2  # others may test as well
    assert slots.take(False) is None
    for slot in held:
        slot.give()


def test_a_worker_that_is_late_is_stopped(tmp_path: Path) -> None:
    worker = Worker(SERVES)
    with pytest.raises(Failed, match="not done after"):
        worker.do(SlowJob(str(tmp_path), "late", 60.0), 3.0)
    assert worker.do(SlowJob(str(tmp_path), "next"), 60.0).error == ""
    worker.stop()


LEAVES = """
import sys; sys.path.insert(0, {here!r})
from pathlib import Path
from slow_jobs import SlowJob
from m2gen.runtime.build.background import Background
import time
Path({folder!r}, "main").open("x").close()  # no guard, and not imported by others
some = Background("slow_jobs:serve")
some.begin([SlowJob({folder!r}, "long", 120.0), SlowJob({folder!r}, "other", 120.0)])
while not Path({folder!r}, "long.begun").exists():
    time.sleep(0.01)
{last}
"""


@pytest.mark.parametrize("last", ["", "raise SystemExit(0)", "import os; os.kill(os.getpid(), 9)", "FORK"])
def test_a_program_that_ends_waits_for_nothing_and_leaves_nothing(tmp_path: Path, last: str) -> None:
    fork = "import os\npid = os.fork()\nif pid == 0:\n    sys.exit(0)\nassert os.waitpid(pid, 0)[1] == 0"
    script = tmp_path / "program.py"
    here = str(Path(__file__).parent)
    script.write_text(LEAVES.format(here=here, folder=str(tmp_path), last=fork if last == "FORK" else last))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == (-9 if "kill" in last else 0), done.stderr
    pid = int((tmp_path / "long.begun").read_text())
    end = time.monotonic() + 60
    while _alive(pid):  # a process that was killed tells nobody: its workers look
        assert "kill" in last and time.monotonic() < end
        time.sleep(0.05)

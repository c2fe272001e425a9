"""Wisdom on disk: what is good stays, what is damaged or stale is left out with a line, and nothing ever raises."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from m2gen.cache import wisdom
from m2gen.config import Config
from m2gen.errors import WisdomError

PROBLEM = "fftconv n=4096 h=8 b=2 fp32 causal"


def entry(
    problem: str = PROBLEM, choice: str = "native 8x8x4x4x4 channels 1, spectra kept", **key: object
) -> wisdom.Entry:
    found = wisdom.Key(
        problem=problem, arch="avx512", processor="a processor", threads=1, candidates="0123456789ab", compiler="g++ 12"
    )
    return wisdom.Entry(
        key=replace(found, **key),  # type: ignore[arg-type]
        choice=choice,
        style="native falling, a vector, kept",
        default="native 4x4x4x4x4x4 channels 1, spectra kept",
        measured=problem,
        seconds={choice: 1.25e-3, "library 8192 channels 8": 0.01},
        date="2026-11-24T12:00:00Z",
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wisdom, "config", lambda: Config(cache_dir=str(tmp_path)))
    return tmp_path / "wisdom"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    lines: list[str] = []
    monkeypatch.setattr(wisdom, "fallback", lines.append)
    yield lines


def test_an_entry_comes_back(folder: Path) -> None:
    path = wisdom.put(entry())
    assert path is not None and path.parent == folder / "avx512"
    assert json.loads(path.read_text())["key"]["problem"] == PROBLEM, "readable, the key spelled out"
    assert wisdom.load(folder) == wisdom.load(path) == [entry()]
    for other in (entry(threads=2), entry(compiler="g++ 13"), entry(processor="another"), entry(candidates="f" * 12)):
        assert wisdom.put(other) != path, "every field of the key tells entries apart"
    assert len(wisdom.load(folder)) == 5


def test_truncated_at_every_byte(folder: Path, said: list[str]) -> None:
    good = wisdom.put(entry("fftconv n=8 h=1 b=1 fp32 causal"))
    path = wisdom.put(entry())
    assert good is not None and path is not None
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last byte ends the line
        path.write_bytes(whole[:length])
        assert wisdom.load(folder) == [entry("fftconv n=8 h=1 b=1 fp32 causal")], length
        assert len(said) == length + 1
    wisdom.put(entry())
    assert len(wisdom.load(folder)) == 2, "tuning again mends it"


ALTERED = {
    "key": {},
    "choice": "never measured",
    "seconds": {"native 8x8x4x4x4 channels 1, spectra kept": -1.0},
    "style": 7,
    "date": "two\nlines",
    "dropped": [1],
    "format": 99,
    "extra": 1,
}


@pytest.mark.parametrize("name", ALTERED)
def test_altered_fields(folder: Path, said: list[str], name: str) -> None:
    path = wisdom.put(entry())
    assert path is not None
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: ALTERED[name]}))
    assert wisdom.load(folder) == []
    assert len(said) == 1 and "malformed" in said[0]


@pytest.mark.parametrize(
    "text", ["", "null", "3", "[1", "[" * 100_000, '"x"', '{"format": 1}', '{"entries": 3}', "\x00", '{"a": NaN}']
)
def test_files_that_are_no_wisdom(folder: Path, said: list[str], text: str) -> None:
    wisdom.put(entry())
    (folder / "avx512" / "zzz.json").write_text(text)
    (folder / "avx512" / "bytes.json").write_bytes(b"\xff\xfe\x00")
    assert wisdom.load(folder) == [entry()]
    assert len(said) == (1 if text == "null" else 2)


def test_infinite_and_huge_figures(said: list[str]) -> None:
    for figure in (float("inf"), float("nan"), 0, True, "1", None):
        data = entry().to_data() | {"seconds": {entry().choice: figure}}
        with pytest.raises(WisdomError, match="malformed"):
            wisdom.from_data(data)
    with pytest.raises(WisdomError, match="malformed"):
        wisdom.from_data(entry(arch="../../etc").to_data())


def test_another_version_is_stale(folder: Path, said: list[str]) -> None:
    wisdom.put(entry())
    wisdom.put(entry(m2gen="0.0.1"))
    wisdom.put(entry(timer=wisdom.TIMER + 1))
    assert wisdom.load(folder) == [entry()]
    assert len(said) == 2 and all("stale" in line for line in said)


def test_merge_keeps_the_newest_of_each_key(tmp_path: Path, folder: Path) -> None:
    old, new = entry(), replace(entry(), choice="library 8192 channels 8", date="2026-11-25T00:00:00Z")
    other = entry(threads=2)
    assert wisdom.merge([[old, other], [new]]) == wisdom.merge([[new], [other, old]])
    assert set(wisdom.merge([[old], [new], [other]])) == {new, other}
    wisdom.export([old, other], tmp_path / "table.json")
    assert wisdom.load(tmp_path / "table.json") == [old, other]
    with pytest.raises(WisdomError, match="cannot be written"):
        wisdom.export([old], tmp_path / "table.json" / "below")


WRITER = """
import sys
from dataclasses import replace
from m2gen.cache import wisdom
from m2gen.config import Config
sys.path.insert(0, {tests!r})
from test_wisdom import entry
wisdom.config = lambda: Config(cache_dir={folder!r})
print("ready", flush=True)
for i in range(10**9 if {forever} else 40):
    wisdom.put(entry(f"fftconv n={{i % 40 + 1}} h=8 b=2 fp32 causal"))
"""


def writer(folder: Path, forever: bool) -> subprocess.Popen[bytes]:
    code = WRITER.format(tests=str(Path(__file__).parent), folder=str(folder.parent), forever=forever)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


def test_eight_writers_two_of_them_killed(folder: Path, said: list[str]) -> None:
    """Readers meanwhile see whole entries; afterwards every entry of those that ended is there."""
    running = [writer(folder, forever=i < 2) for i in range(8)]
    for process in running:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    deadline = time.monotonic() + 60
    while any(process.poll() is None for process in running[2:]) and time.monotonic() < deadline:
        assert all(found.choice == entry().choice for found in wisdom.load(folder))
    for process in running[:2]:
        process.send_signal(signal.SIGKILL)
    assert [process.wait() for process in running] == [-signal.SIGKILL] * 2 + [0] * 6
    assert sorted(int(found.key.problem.split()[1][2:]) for found in wisdom.load(folder)) == list(range(1, 41))
    assert said == []


def test_what_killed_writers_leave_is_taken_away_a_day_later(folder: Path) -> None:
    path = wisdom.put(entry())
    assert path is not None
    left = path.with_name(f".{path.name}-abc")
    left.write_text("half")
    assert wisdom.load(folder) == [entry()]
    wisdom.put(entry())
    assert left.exists()
    os.utime(left, (time.time() - 2 * 86400,) * 2)
    wisdom.put(entry())
    assert not left.exists()


def test_a_folder_that_cannot_be_written(folder: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.joinpath("wisdom").write_text("a file, no folder")
    assert wisdom.put(entry()) is None
    assert len(said) == 1 and "for this process only" in said[0]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder(folder: Path, said: list[str]) -> None:
    path = wisdom.put(entry())
    assert path is not None
    path.parent.chmod(0o500)
    assert wisdom.put(entry(threads=2)) is None
    assert wisdom.load(folder) == [entry()]
    path.parent.chmod(0o700)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where mounting is allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_full_disk(tiny_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wisdom, "config", lambda: Config(cache_dir=str(tiny_disk)))
    assert wisdom.put(entry()) is not None
    with contextlib.suppress(OSError):
        (tiny_disk / "filler").write_bytes(bytes(2**20))
    assert wisdom.put(entry(threads=2)) is None
    assert wisdom.load(tiny_disk) == [entry()], "the good entry stays, and nothing half written beside it"
    assert len(said) == 1


def test_a_read_only_disk(tiny_disk: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wisdom, "config", lambda: Config(cache_dir=str(tiny_disk)))
    assert wisdom.put(entry()) is not None
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    assert wisdom.put(entry(threads=2)) is None
    assert wisdom.load(tiny_disk) == [entry()]
    assert len(said) == 1


def test_constants_are_for_their_own_processor(folder: Path, said: list[str]) -> None:
    path = wisdom.put_constants("avx512", "a processor", {"native_call": 2.0}, "2026-11-24")
    assert wisdom.constants("avx512", "a processor") == {"native_call": 2.0}
    assert wisdom.constants("avx512", "another") == wisdom.constants("avx2", "a processor") == {}
    assert wisdom.load(folder) == [] and said == [], "constants are no entry"
    path.write_text("{")
    assert wisdom.constants("avx512", "a processor") == {}
    assert len(said) == 1

"""Sources on disk: whole or not at all, refused where others could write, private where home cannot be written."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from m2gen import ConfigError
from m2gen.cache import store
from m2gen.config import Config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(store, "config", lambda: Config(cache_dir=str(tmp_path / "cache")))
    store.source_folder.cache_clear()
    yield tmp_path / "cache" / "sources"
    store.source_folder.cache_clear()


def test_a_source_is_written_once_and_mended(folder: Path) -> None:
    path = store.put("kernel", "abc", "x = 1\n")
    assert path.parent == folder and path.read_text() == "x = 1\n"
    before = path.stat().st_mtime_ns
    assert store.put("kernel", "abc", "x = 1\n").stat().st_mtime_ns == before
    for damage in (b"x =", b"", b"\xff\xfe", b"import os\n"):
        path.write_bytes(damage)
        assert store.put("kernel", "abc", "x = 1\n").read_text() == "x = 1\n"
    assert [p.name for p in folder.iterdir()] == ["kernel-abc.py"], "nothing half-written stays"


def test_the_folder_is_private(folder: Path) -> None:
    assert stat.S_IMODE(store.source_folder().stat().st_mode) & 0o022 == 0
    folder.chmod(0o777)
    store.source_folder.cache_clear()
    with pytest.raises(ConfigError, match=r"others could change kernels\. Own it and run chmod go-w"):
        store.source_folder()


def test_an_unwritable_home_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setattr(store, "config", lambda: Config(cache_dir=str(blocked)))
    store.source_folder.cache_clear()
    path = store.put("kernel", "abc", "x = 1\n")
    assert path.read_text() == "x = 1\n" and blocked not in path.parents
    store.source_folder.cache_clear()


def test_eight_writers_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from m2gen.cache import store; from m2gen.config import Config;"
        f"store.config = lambda: Config(cache_dir={str(tmp_path)!r});"
        "[store.put('kernel', 'abc', 'x = 1\\n' * 2000) for _ in range(20)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(8)]
    assert [process.wait() for process in running] == [0] * 8
    (path,) = (tmp_path / "sources").iterdir()
    assert path.read_text() == "x = 1\n" * 2000

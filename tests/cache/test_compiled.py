"""Folders of kernels compiled ahead: found by their source, never loaded where damaged, refused where others write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from m2gen import ConfigError
from m2gen.cache import compiled
from m2gen.cache.compiled import Manifest, Planned

TEXT, BINARY = "int x;\n", b"\x7fELF and so on"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one kernel for avx2; nothing remembered of others."""
    place = tmp_path / "kernels" / "avx2"
    place.mkdir(parents=True, mode=0o755)
    manifest = Manifest("avx2", "1.0", "g++", {"fftconv n=8": Planned("(plan)", ["one"], ["somebody"])})
    manifest.kernels["one"] = compiled.keep(place, "one", TEXT, {".so": BINARY, ".cpp": TEXT.encode()})
    manifest.write(place)
    compiled.opened.cache_clear()
    return place


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(compiled, "fallback", lines.append)
    return lines


def found(folder: Path, text: str = TEXT, name: str = "one") -> Path | None:
    return compiled.find(str(folder.parent), ("avx512", "avx2", "generic"), name, text)


def test_what_was_written_is_found(folder: Path, said: list[str]) -> None:
    path = found(folder)
    assert path == folder / "one.so" and path.read_bytes() == BINARY and not said
    manifest = compiled.read(folder)
    assert manifest is not None and manifest.problems["fftconv n=8"].kernels == ["one"]
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o644}, "others may read, and not write"


def test_another_source_is_not_taken(folder: Path, said: list[str]) -> None:
    assert found(folder, "int y;\n") is None and found(folder, name="two") is None
    assert len(said) == 2 and "one is not among the kernels compiled ahead" in said[0]


@pytest.mark.parametrize("damage", [b"", BINARY[:5], BINARY[:-1] + b"x", None])
def test_a_damaged_binary_is_never_loaded(folder: Path, said: list[str], damage: bytes | None) -> None:
    path = folder / "one.so"
    path.unlink() if damage is None else path.write_bytes(damage)
    assert found(folder) is None and said


def test_a_manifest_cut_anywhere_is_refused(folder: Path) -> None:
    path = folder / compiled.MANIFEST
    whole = path.read_bytes()
    for size in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"manifest\.json cannot be read"):
            compiled.read(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"kernels": {"one": {"source": "x", "files": {"../one.so": "x"}}}},
        {"kernels": {"one": {"source": 1, "files": {}}}},
        {"kernels": []},
        {"more": 1},
    ],
)
def test_a_manifest_that_means_nothing_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / compiled.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match="Make them again with m2gen compile"):
        compiled.read(folder)


def test_a_folder_or_a_file_that_others_write_to_is_refused(folder: Path, said: list[str]) -> None:
    (folder / "one.so").chmod(0o666)
    assert found(folder) is None and "others could change kernels" in said[0]
    compiled.opened.cache_clear()
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match=r"others could change kernels\. Own it and run chmod"):
        found(folder)


def test_a_folder_for_other_machines_says_for_which(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"it has kernels for avx2, and this machine runs neon\. Run m2gen compile"):
        compiled.find(str(folder.parent), ("neon",), "one", TEXT)
    with pytest.raises(ConfigError, match="there is no such folder"):
        compiled.find(str(folder.parent / "nowhere"), ("avx2",), "one", TEXT)

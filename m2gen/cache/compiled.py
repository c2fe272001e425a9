"""Folders of kernels compiled ahead by `m2gen compile`, for machines that have no compiler, or where nobody is to wait
for one: read, never written.

    <folder>/<target>/manifest.json    problems, their plans, the kernels of each, and the digest of every file
    <folder>/<target>/<kernel>.so      beside its source; for a GPU machine code, what Triton says of it (.json), and
                                       assembly, to be looked at

A kernel is found by its source's text, so one of another version of m2gen is never taken. The target's folder and the
binary must belong to the user or to root, as in an image of a container, and nobody else may write to them; a binary
that does not match its digest is not loaded.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from m2gen.cache import store
from m2gen.errors import ConfigError
from m2gen.log import fallback

MANIFEST = "manifest.json"
FORMAT = 1
_READABLE = 0o644  # by those the folder is made for


@dataclass(slots=True)
class Kernel:
    """One kernel: the SHA-256 of its source's text, and of each file, by the file's name."""

    source: str
    files: dict[str, str]


@dataclass(slots=True)
class Planned:
    """One problem: its plan, as text and as what is read back, its kernels by name, and who asked for it.

    An operator that poses no problem has its kernels under its name, and no plan."""

    plan: str
    kernels: list[str]
    steps: dict[str, Any] = field(default_factory=dict)
    of: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Manifest:
    """What a target's folder holds. `compiler` is the one that made the binaries."""

    target: str
    m2gen: str
    compiler: str
    problems: dict[str, Planned] = field(default_factory=dict)
    kernels: dict[str, Kernel] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Put it into its folder, whole or not at all. Raises OSError."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        store.write_whole(folder / MANIFEST, text.encode(), _READABLE)


def read(folder: Path) -> Manifest | None:
    """The manifest of a target's folder, None where there is none. Raises ConfigError for one that means nothing."""
    try:
        data = json.loads((folder / MANIFEST).read_text())
        if data.pop("format") != FORMAT:
            raise ValueError("it is of another format")
        problems = {text: Planned(**entry) for text, entry in data.pop("problems").items()}
        kernels = {name: _kernel(entry) for name, entry in data.pop("kernels").items()}
        return Manifest(**data, problems=problems, kernels=kernels)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        asked = f"the kernels compiled ahead in {folder}"
        raise ConfigError(
            asked, f"{MANIFEST} cannot be read ({error})", "make them again with m2gen compile"
        ) from error


def _kernel(entry: Mapping[str, object]) -> Kernel:
    source, files = entry["source"], entry["files"]
    if not isinstance(source, str) or not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise ValueError("a kernel's files are not named as they should be")
    return Kernel(source, {str(name): str(digest) for name, digest in files.items()})


def keep(folder: Path, name: str, text: str, contents: Mapping[str, bytes]) -> Kernel:
    """Write the files of one kernel, by their suffix, and what the manifest says of it. Raises OSError."""
    for suffix, content in contents.items():
        store.write_whole(folder / f"{name}{suffix}", content, _READABLE)
    digests = {f"{name}{suffix}": _digest(content) for suffix, content in contents.items()}
    return Kernel(_digest(text.encode()), digests)


def whole(folder: Path, kernel: Kernel | None, text: str) -> bool:
    """Whether the folder holds that source's kernel with all its files as they were written."""
    if kernel is None or kernel.source != _digest(text.encode()):
        return False
    try:
        return all(_digest((folder / name).read_bytes()) == digest for name, digest in kernel.files.items())
    except OSError:
        return False


def find(folder: str, targets: Iterable[str], name: str, text: str, suffix: str = ".so") -> Path | None:
    """The binary of a source in one of the targets' folders, its digest checked just now; None, with one line in the
    log, where there is none. Raises ConfigError for a folder without any of the targets, or that others can change."""
    for place, manifest in opened(folder, tuple(targets)):
        kernel = manifest.kernels.get(name)
        if kernel is None or kernel.source != _digest(text.encode()):
            continue
        file = place / f"{name}{suffix}"
        why = _changeable(file) if file.is_file() else "it is missing"
        if why is None and not whole(place, kernel, text):
            why = "it is not what its digest says"
        if why is None:
            return file
        fallback(f"{file} is not used: {why}")
    fallback(f"{name} is not among the kernels compiled ahead in {folder}: m2gen compile adds it")
    return None


def planned(folder: str, targets: Iterable[str], problem: str) -> dict[str, Any] | None:
    """The plan that the problem's kernels in the folder were made for. Raises ConfigError, as `find` does."""
    for _, manifest in opened(folder, tuple(targets)):
        if problem in manifest.problems:
            return manifest.problems[problem].steps
    return None


@lru_cache(maxsize=8)
def opened(folder: str, targets: tuple[str, ...]) -> list[tuple[Path, Manifest]]:
    """The targets' folders that are there; none in a folder for GPUs where CPUs are asked for, or the other way."""
    root = store.expanded(folder)
    if root is None:
        none = "there is no home folder"
        raise ConfigError(f"M2GEN_COMPILED_DIR={folder}", none, "give an absolute path, or set HOME")
    found = [(root / target, manifest) for target in targets if (manifest := read(root / target)) is not None]
    if not root.is_dir():
        make = f"run m2gen compile --target {targets[0]} --out {folder}, or unset it"
        raise ConfigError(f"M2GEN_COMPILED_DIR={folder}", "there is no such folder", make)
    there = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST}"))
    if not found and (not there or any(_of_gpu(one) == _of_gpu(targets[0]) for one in there)):
        raise ConfigError(
            f"M2GEN_COMPILED_DIR={folder}",
            f"it has kernels for {', '.join(there) or 'nothing'}, and this machine runs {', '.join(targets)}",
            f"run m2gen compile --target {targets[0]} --out {folder}, or unset it",
        )
    for place, _ in found:
        if why := _changeable(place):
            raise ConfigError(f"the kernels compiled ahead in {place}", why, "own it and run chmod -R go-w on it")
    return found


def _of_gpu(target: str) -> bool:
    return target.startswith(("sm", "gfx"))


def _changeable(path: Path) -> str | None:
    """Who else could change a path, or None."""
    found = path.stat()
    if found.st_uid in (os.getuid(), 0) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return None
    return f"it belongs to user {found.st_uid} with mode {stat.filemode(found.st_mode)}: others could change kernels"


def _digest(content: bytes) -> str:
    return sha256(content).hexdigest()

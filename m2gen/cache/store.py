"""Rendered sources on disk, named by their content: they cannot go stale, and need no locks.

A source is always rendered again; the file is written where it is missing or differs. A folder that is not the user's
own, or that others may write to, is refused: what stands there would be executed.
"""

from __future__ import annotations

import atexit
import errno
import os
import shutil
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from m2gen.config import config
from m2gen.errors import ConfigError
from m2gen.log import fallback

DEFAULT = "~/.cache/m2gen"  # where M2GEN_CACHE_DIR is not set


@lru_cache(maxsize=1)
def source_folder() -> Path:
    """The folder of sources: M2GEN_CACHE_DIR, else ~/.cache/m2gen; a private temporary one where that cannot be
    written, or where there is no home."""
    named = config().cache_dir or DEFAULT
    wanted = expanded(named)
    try:
        if wanted is None:
            raise OSError(errno.ENOENT, "there is no home folder")
        folder = wanted / "sources"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="m2gen-"))
        atexit.register(_remove, folder, os.getpid())
        fallback(
            f"{wanted or named} cannot be written ({error.strerror}): kernel sources go to {folder} for this process"
        )
    check_private(folder)
    return folder


def expanded(path: str) -> Path | None:
    """A user's path, absolute, as the working folder may change; None for one from a home that is not known."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:  # HOME is not set, and the user has no entry with the system
        return None


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # a forked child's exit takes nothing away
        shutil.rmtree(folder, ignore_errors=True)


def check_private(folder: Path) -> None:
    """Raise unless the folder is the user's own and nobody else may write to it."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"the kernel cache {folder}",
            f"it belongs to user {found.st_uid} with mode {stat.filemode(found.st_mode)}: others could change kernels",
            "own it and run chmod go-w on it, or set M2GEN_CACHE_DIR to a private folder",
        )


def put(name: str, digest: str, text: str, suffix: str = ".py") -> Path:
    """The file that holds `text`, written whole or not at all. Raises OSError where it cannot be written."""
    path = source_folder() / f"{name}-{digest}{suffix}"
    try:
        if path.read_text() == text:
            return path
    except (OSError, UnicodeDecodeError):
        pass  # missing or damaged: written below
    write_whole(path, text.encode())
    return path


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file of its folder at once: readers see all of it or what was there before, on a full disk too."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            os.fchmod(handle, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise

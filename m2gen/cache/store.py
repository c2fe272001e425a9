"""Rendered sources on disk, named by their content: they cannot go stale, and need no locks.

A source is always rendered again; the file is written where it is missing or differs. A folder that is not the user's
own, or that others may write to, is refused: what stands there would be executed.
"""

from __future__ import annotations

import os
import stat
import tempfile
from functools import lru_cache
from pathlib import Path

from m2gen.config import config
from m2gen.errors import ConfigError
from m2gen.log import fallback


@lru_cache(maxsize=1)
def source_folder() -> Path:
    """The folder of sources: M2GEN_CACHE_DIR, else ~/.cache/m2gen; a private temporary one where that cannot be
    written."""
    wanted = Path(config().cache_dir).expanduser() if config().cache_dir else Path.home() / ".cache" / "m2gen"
    folder = wanted / "sources"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix="m2gen-"))
        fallback(f"{wanted} cannot be written ({error.strerror}): kernel sources go to {folder} for this process")
    check_private(folder)
    return folder


def check_private(folder: Path) -> None:
    """Raise unless the folder is the user's own and nobody else may write to it."""
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(
            f"the kernel cache {folder}",
            f"it belongs to user {found.st_uid} with mode {stat.filemode(found.st_mode)}: others could change kernels",
            "own it and run chmod go-w on it, or set M2GEN_CACHE_DIR to a private folder",
        )


def put(name: str, digest: str, text: str) -> Path:
    """The file that holds `text`, written whole or not at all."""
    path = source_folder() / f"{name}-{digest}.py"
    try:
        if path.read_text() == text:
            return path
    except (OSError, UnicodeDecodeError):
        pass  # missing or damaged: written below
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{digest}-")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.replace(temporary, path)
    return path

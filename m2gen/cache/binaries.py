"""Compiled kernels on disk, beside their sources: the binary under its content's digest, and a pointer to it.

`<name>-<key>.sha256` holds the digest of the bytes that were compiled for a key (source, compiler, flags, CPU);
`<name>-<key>-<digest>.so` holds the bytes. The pointer is written last, so processes that compile the same at once
never see one's pointer beside another's bytes. What does not match its digest is compiled again, never executed.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from m2gen.cache import store

_LENGTH = 16  # digits of a digest in a file's name
_STALE_SECONDS = 24 * 3600.0


def find(name: str, key: str) -> Path | None:
    """The binary of a key, its digest checked just now, in a folder that only the user can write to; else None."""
    folder = store.source_folder()
    store.check_private(folder)
    try:
        digest = (folder / f"{name}-{key}.sha256").read_text().strip()
        path = _path(folder, name, key, digest)
        return path if sha256(path.read_bytes()).hexdigest() == digest else None
    except (OSError, UnicodeDecodeError):
        return None


def add(name: str, key: str, content: bytes) -> Path:
    """Keep a binary. Raises OSError where it cannot be written; then nothing of it stays."""
    folder = store.source_folder()
    digest = sha256(content).hexdigest()
    path = _path(folder, name, key, digest)
    store.write_whole(path, content)
    store.write_whole(folder / f"{name}-{key}.sha256", digest.encode())
    return path


def _path(folder: Path, name: str, key: str, digest: str) -> Path:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise FileNotFoundError(f"{name}-{key}.sha256 holds no digest")
    return folder / f"{name}-{key}-{digest[:_LENGTH]}.so"


@contextmanager
def build_folder() -> Iterator[Path]:
    """A private folder for one compilation; what killed compilations left there a day ago goes."""
    folder = store.source_folder()
    for left in folder.glob(".build-*"):
        try:
            stale = time.time() - left.stat().st_mtime > _STALE_SECONDS
        except OSError:
            continue  # another process was faster
        if stale:
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=".build-"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)

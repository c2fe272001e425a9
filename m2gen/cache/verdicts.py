"""What first checks of generated kernels on a device found, kept for the machine: readable JSON.

Kernels that were right have a file each, and any plan made of such is; of a plan that faulted it is not known which
kernel did, so its file is of all of them together: `<folder>/<digest of kernels and circumstances>.json`. A file is
written at once, so that processes that check at the same time lose nothing; one that cannot be read is as if it were
not there, and is written anew. Nothing here is executed.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from m2gen.cache.store import DEFAULT, check_private, expanded, source_folder, write_whole
from m2gen.config import config
from m2gen.errors import ConfigError
from m2gen.log import fallback

FORMAT = 1
_BYTES = 2**16
_LOOK_AGAIN = 0.5  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Here:
    """Where kernels run, and what makes machine code of them: a verdict holds for nothing else."""

    device: str
    arch: str
    driver: str
    torch: str
    triton: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """`why` a plan's kernels must not run; None where they were right."""

    why: str | None


def place() -> Path:
    """`verdicts` in the cache's folder; in that of the sources, for this process, where there is no home."""
    base = expanded(config().cache_dir or DEFAULT)
    return source_folder() / "verdicts" if base is None else base / "verdicts"


def find(kernels: Mapping[str, str], here: Here) -> Verdict | None:
    """The verdict on a plan of these kernels, digests of their sources by their names; None where they are unknown."""
    if (together := _read(kernels, here)) is not None and together.why is not None:
        return together
    alone = [_read({name: digest}, here) for name, digest in kernels.items()]
    return Verdict(None) if all(one is not None and one.why is None for one in alone) else None


def keep(kernels: Mapping[str, str], here: Here, verdict: Verdict, date: str) -> None:
    """Write it; with a line in the log where that cannot be."""
    those = [{name: digest} for name, digest in kernels.items()] if verdict.why is None else [dict(kernels)]
    try:
        place().mkdir(parents=True, exist_ok=True, mode=0o700)
        check_private(place())
        for one in those:
            data = {"format": FORMAT, **asdict(here), "kernels": one, "why": verdict.why, "date": date}
            write_whole(_path(one, here), (json.dumps(data, indent=1) + "\n").encode())
    except (OSError, ConfigError) as error:
        fallback(f"what checks of kernels find is kept for this process alone: {place()} cannot be written ({error})")


def _path(kernels: Mapping[str, str], here: Here) -> Path:
    of = json.dumps([asdict(here), sorted(kernels.items())])
    return place() / f"{sha256(of.encode()).hexdigest()[:32]}.json"


def _read(kernels: Mapping[str, str], here: Here) -> Verdict | None:
    path = _path(kernels, here)
    try:
        check_private(path.parent)
        if path.stat().st_size > _BYTES:
            raise ValueError("it is too long")
        data = json.loads(path.read_text())
        if data.pop("format") != FORMAT or data.pop("kernels") != dict(kernels):
            raise ValueError("it is of another format, or of other kernels")
        why, _ = data.pop("why"), data.pop("date")
        if data != asdict(here) or not isinstance(why, str | None):
            raise ValueError("it is not what was written")
        return Verdict(why)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        fallback(f"left out: {path} ({error})")
        return None


@contextmanager
def one_at_a_time(seconds: float) -> Iterator[None]:
    """While others are in here, wait, `seconds` at most: what they find need not be found again. Where there can be no
    lock there is none."""
    try:
        place().mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(place() / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield
        return
    try:
        until = time.monotonic() + seconds
        while not _locked(lock) and time.monotonic() < until:
            time.sleep(_LOOK_AGAIN)
        yield
    finally:
        os.close(lock)  # a process that dies leaves none either


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True

"""What tuning measured, kept: readable JSON, one entry a problem, its key spelled out.

The user's entries are files of their own, `<folder>/<arch>/<problem>-<digest of the key>.json`, each written at once:
processes that tune at the same time lose nothing, and a killed one leaves nothing half written. A table,
`{"format": 1, "entries": [...]}`, is what is exported, merged and shipped (`m2gen/wisdom/<arch>.json`). Nothing here is
executed: an entry only names one of the planner's candidates. What is damaged or stale is left out with one line in
the log.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from m2gen.cache.store import DEFAULT, expanded, source_folder, write_whole
from m2gen.config import config
from m2gen.errors import WisdomError
from m2gen.log import fallback
from m2gen.version import __version__

FORMAT = 1
TIMER = 1  # version of what is measured and how; another one's figures do not compare
_ENTRY_BYTES, _TABLE_BYTES = 2**18, 2**26
_STALE_SECONDS = 24 * 3600.0
_ARCH = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What an entry is about; a lookup says which of these differ."""

    problem: str  # its text
    arch: str
    processor: str
    threads: int  # of a CPU; multiprocessors of a GPU
    candidates: str  # digest of the set that was chosen from
    compiler: str
    timer: int = TIMER
    m2gen: str = __version__

    @property
    def digest(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One problem's choice and what it was chosen by: the median seconds of every candidate that was timed."""

    key: Key
    choice: str
    style: str
    default: str  # what the estimate would have chosen
    measured: str  # the problem that was timed: with fewer channels, where it was too large
    seconds: Mapping[str, float] = field(hash=False)
    unchanging: Mapping[str, float] = field(default_factory=dict, hash=False)  # seconds with filters that stay
    dropped: Mapping[str, str] = field(default_factory=dict, hash=False)  # candidates that failed, and why
    date: str = ""

    def to_data(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}


def from_data(data: object) -> Entry:
    """The entry that `to_data` gave. Raises WisdomError for anything else, entries of other versions too."""
    try:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ValueError(f"no entry of format {FORMAT}")
        raw = {name: value for name, value in data.items() if name != "format"}
        entry = Entry(**{**raw, "key": Key(**raw["key"])})
        _check(entry)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WisdomError("an entry of wisdom", f"malformed ({error})", "tune the problem again") from error
    if (entry.key.timer, entry.key.m2gen) != (TIMER, __version__):
        raise WisdomError(
            f"wisdom for {entry.key.problem}",
            f"it is stale: m2gen {entry.key.m2gen} with timer {entry.key.timer}, not {__version__} with {TIMER}",
            "tune the problem again",
        )
    return entry


def _check(entry: Entry) -> None:
    """Raise ValueError or TypeError unless every field has its type and the figures can be times."""
    for owner in (entry.key, entry):
        for one in fields(owner):
            value, kind = getattr(owner, one.name), {"str": str, "int": int}.get(str(one.type))
            if kind and (not isinstance(value, kind) or isinstance(value, bool)):
                raise TypeError(f"{one.name} is {value!r}")
            if kind is str and (len(value) > 1000 or not value.isprintable()):
                raise ValueError(f"{one.name} is no short printable text")
    if not _ARCH.fullmatch(entry.key.arch) or not 0 <= entry.key.threads <= 2**20:
        raise ValueError(f"arch {entry.key.arch!r}, threads {entry.key.threads}")
    if not all(isinstance(value, dict) for value in (entry.seconds, entry.unchanging, entry.dropped)):
        raise TypeError("seconds, unchanging and dropped are objects")
    for text, value in [*entry.seconds.items(), *entry.unchanging.items()]:
        if isinstance(value, bool) or not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ValueError(f"seconds of {text!r} are {value!r}")
    if entry.choice not in entry.seconds or not all(isinstance(why, str) for why in entry.dropped.values()):
        raise ValueError(f"the choice {entry.choice!r} was not measured")


# -- files -------------------------------------------------------------------------------------------------------------


def place() -> Path:
    """The user's wisdom: M2GEN_WISDOM (a folder, or a table to read only), else `wisdom` in the cache's folder; in that
    of the sources, for this process, where there is no home."""
    path = expanded(config().wisdom) if config().wisdom else None
    if config().wisdom and path is None:
        fallback(f"M2GEN_WISDOM={config().wisdom} is not used: there is no home folder")
    if path is not None:
        return path
    base = expanded(config().cache_dir or DEFAULT)
    return source_folder() / "wisdom" if base is None else base / "wisdom"


def _is_folder(path: Path) -> bool:
    """As Path.is_dir, and False for what must not be looked at: reading it says so in the log."""
    try:
        return path.is_dir()
    except OSError:
        return False


def put(entry: Entry) -> Path | None:
    """Write an entry of its own file, whole or not at all; None, with a line in the log, where that cannot be."""
    name = re.sub(r"[^a-z0-9]+", "-", entry.key.problem.lower())[:80]
    path = place() / entry.key.arch / f"{name}-{entry.key.digest}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(path.parent)
        write_whole(path, (json.dumps(entry.to_data(), indent=1) + "\n").encode())
    except OSError as error:
        fallback(f"wisdom cannot be written below {place()} ({error.strerror}): it holds for this process only")
        return None
    return path


def _sweep(folder: Path) -> None:
    """Take away what killed writers left a day ago."""
    for left in folder.glob(".*.json-*"):
        try:
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()
        except OSError:  # noqa: PERF203
            continue  # another process was faster


def load(path: Path) -> list[Entry]:
    """The good entries of a table, of one entry's file, or of every such file below a folder; none where it is not."""
    return [entry for _, entry in stored(path)]


def stored(path: Path) -> Iterator[tuple[Path, Entry]]:
    """(file, entry) of every good entry, in the files' order; a line in the log for each bad one."""
    found = sorted(p for p in path.rglob("*.json") if not p.name.startswith(".")) if _is_folder(path) else [path]
    for file in found:
        if file.name.endswith(".limits.json"):
            continue  # fitted constants
        for data in _entries(file):
            try:
                yield file, from_data(data)
            except WisdomError as error:  # noqa: PERF203
                fallback(f"left out of {file}: {error}")


def _entries(file: Path) -> list[object]:
    """The undecoded entries of a file; none, with a line in the log, where it is no JSON."""
    data = read_json(file)
    if isinstance(data, dict) and isinstance(data.get("entries"), list):
        return list(data["entries"])
    return [] if data is None else [data]


def read_json(file: Path) -> object:
    """What a file says, None where it is missing, or with a line in the log where it is damaged."""
    try:
        if file.stat().st_size > _TABLE_BYTES:
            raise ValueError("larger than any table")
        return json.loads(file.read_bytes().decode())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        fallback(f"left out: {file} ({error})")
        return None


def put_constants(arch: str, processor: str, constants: Mapping[str, Any], date: str) -> Path:
    """Keep the fitted constants of a device's row. Raises WisdomError where they cannot be written."""
    path = place() / f"{arch}.limits.json"
    data = {"format": FORMAT, "arch": arch, "processor": processor, "date": date, "constants": dict(constants)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, (json.dumps(data, indent=1) + "\n").encode())
    except OSError as error:
        raise WisdomError(
            f"fitted constants in {path}", f"they cannot be written ({error.strerror})", "set M2GEN_WISDOM to a folder"
        ) from error
    return path


def constants(arch: str, processor: str) -> Mapping[str, Any]:
    """The constants that were fitted for an architecture on this processor; none otherwise. Unchecked."""
    data = read_json(place() / f"{arch}.limits.json") if _is_folder(place()) else None
    if not isinstance(data, dict) or (data.get("format"), data.get("arch")) != (FORMAT, arch):
        return {}
    found = data.get("constants")
    return found if data.get("processor") == processor and isinstance(found, dict) else {}


def shipped(arch: str) -> list[Entry]:
    """The entries that come with m2gen for an architecture."""
    path = Path(str(files("m2gen").joinpath("wisdom").joinpath(f"{arch}.json")))
    return load(path) if path.is_file() else []


def merge(tables: Iterable[Iterable[Entry]]) -> list[Entry]:
    """One entry a key, the newest; of equally new ones the last. In the order of problems."""
    newest: dict[Key, Entry] = {}
    for entry in (entry for table in tables for entry in table):
        if entry.key not in newest or newest[entry.key].date <= entry.date:
            newest[entry.key] = entry
    return sorted(newest.values(), key=lambda entry: (entry.key.arch, entry.key.problem, entry.key.digest))


def export(entries: Iterable[Entry], path: Path) -> None:
    """Write a table. Raises WisdomError where it cannot be written."""
    table = {"format": FORMAT, "entries": [entry.to_data() for entry in entries]}
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.absolute(), (json.dumps(table, indent=1) + "\n").encode())
        os.chmod(path, 0o644)
    except OSError as error:
        raise WisdomError(
            f"a table of wisdom in {path}", f"it cannot be written ({error.strerror})", "choose another place"
        ) from error


# -- what this process knows -------------------------------------------------------------------------------------------

_here: dict[Key, Entry] = {}  # measured by this process, or by rank 0 for it
_given: dict[str, tuple[Entry, ...]] = {}  # by architecture: in place of what the files say


@lru_cache(maxsize=16)
def known(arch: str) -> tuple[Entry, ...]:
    """Every entry for an architecture: this process's own over the user's over the shipped ones."""
    user: list[Entry] = []
    if arch not in _given:
        user = load(place() / arch if _is_folder(place()) else place())
    base = _given[arch] if arch in _given else shipped(arch)
    layers = (base, user, _here.values())
    return tuple({entry.key: entry for layer in layers for entry in layer if entry.key.arch == arch}.values())


def remember(entry: Entry) -> None:
    """Let `known` return an entry from now on, whatever the files say."""
    _here[entry.key] = entry
    known.cache_clear()


def replace_all(arch: str, entries: Iterable[Entry]) -> None:
    """Let `known` return these entries for an architecture and no others."""
    _given[arch] = tuple(entries)
    for key in [key for key in _here if key.arch == arch]:
        del _here[key]
    known.cache_clear()

"""The demo's text: the standard library of the running interpreter, as bytes, with some files held out.

Every installation has this text, no download is needed, and it is varied enough that counting bytes does not solve it.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from m2gen.errors import ProblemError

HELD_OUT_OF = 10  # one file in ten is held out
VOCAB = 256

# installed packages, tests, and files that are tables or fixtures rather than programs
_SKIP = frozenset(
    {
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "encodings",
        "pydoc_data",
        "turtledemo",
        "__pycache__",
    }
)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Training and held-out bytes (uint8 tensors), and where they come from."""

    train: Tensor
    held_out: Tensor
    source: str
    train_files: int
    held_out_files: int


def load_corpus(root: Path | None = None) -> Corpus:
    """The `.py` files below `root` (default: the interpreter's standard library) in two sets of whole files.

    A file is held out when a hash of its relative name says so: the split is the same in every run and on every machine
    with the same library, and no file is in both. Each file ends with a zero byte, so files do not run into each other.
    Raises ProblemError where either set would be empty.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for path in _files(root):
        parts[is_held_out(path.relative_to(root).as_posix())].append(path.read_bytes() + b"\0")
    if not parts[0] or not parts[1]:
        found = f"{len(parts[0])} training and {len(parts[1])} held-out .py files"
        raise ProblemError(f"a demo corpus from {root}", found, "give a folder with a few dozen Python files")
    train, held_out = (_bytes(b"".join(part)) for part in parts)
    return Corpus(train, held_out, str(root), len(parts[0]), len(parts[1]))


def is_held_out(name: str) -> bool:
    """Whether the file of this relative name is held out of training."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") % HELD_OUT_OF == 0


def _files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        folders = path.relative_to(root).parts[:-1]
        if not any(part in _SKIP or part.startswith("config-") for part in folders):
            yield path


def _bytes(text: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(text, dtype=np.uint8).copy())


def batches(text: Tensor, *, batch: int, length: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random windows of `text`: inputs and next bytes, both (batch, length) int64."""
    _check_length(text, length)
    offsets = torch.arange(length + 1)
    while True:
        starts = torch.randint(0, text.numel() - length, (batch, 1), generator=generator)
        window = text[starts + offsets].long()
        yield window[:, :-1], window[:, 1:]


def held_out_windows(text: Tensor, *, length: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` windows (or as many as there are) evenly spread over `text`, and where each one starts.

    Returns windows (n, length + 1) int64, of which the last `length` bytes are predicted, and starts (n,). Windows do
    not overlap, so no byte is predicted twice.
    """
    _check_length(text, length)
    n = min(count, (text.numel() - 1) // length)
    starts = torch.arange(n) * ((text.numel() - 1 - length) // max(n - 1, 1))
    return text[starts[:, None] + torch.arange(length + 1)].long(), starts


def _check_length(text: Tensor, length: int) -> None:
    if text.numel() <= length:
        raise ProblemError(
            f"windows of {length} bytes", f"the text has {text.numel()}", "use a shorter context or a larger corpus"
        )

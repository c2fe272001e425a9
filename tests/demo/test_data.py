"""The demo's text: deterministic, apart, and windows that do not overlap."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m2gen.demo.data import batches, held_out_windows, is_held_out, load_corpus
from m2gen.errors import ProblemError


def library(root: Path, files: int = 60) -> Path:
    for i in range(files):
        (root / f"module_{i}.py").write_text(f"def function_{i}(x):\n    return x + {i}\n\n\n" * 40)
    return root


def test_whole_files_on_one_side_only(tmp_path: Path) -> None:
    corpus = load_corpus(library(tmp_path))
    names = [f"module_{i}.py" for i in range(60)]
    held_out = bytes(corpus.held_out.tolist()).split(b"\0")[:-1]
    assert sorted(held_out) == sorted((tmp_path / name).read_bytes() for name in names if is_held_out(name))
    assert corpus.held_out_files == len(held_out)
    assert corpus.train_files + corpus.held_out_files == 60
    train = set(bytes(corpus.train.tolist()).split(b"\0"))
    assert not train & set(held_out)


def test_the_split_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = load_corpus(library(tmp_path)), load_corpus(tmp_path)
    assert torch.equal(first.train, second.train)
    assert torch.equal(first.held_out, second.held_out)


def test_packages_tests_and_tables_are_left_out(tmp_path: Path) -> None:
    want = load_corpus(library(tmp_path)).train.numel()
    for folder in ("site-packages/a", "json/tests", "test", "encodings", "config-3.11-linux"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "module.py").write_text("x = 1\n")
    (tmp_path / "notes.txt").write_text("not Python")
    assert load_corpus(tmp_path).train.numel() == want


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match="few dozen"):
        load_corpus(tmp_path)


def test_batches_are_windows_and_their_next_bytes() -> None:
    text = (torch.arange(1000) % 251).to(torch.uint8)
    first = batches(text, batch=3, length=16, generator=torch.Generator().manual_seed(0))
    again = batches(text, batch=3, length=16, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        (inputs, labels), (same, _) = next(first), next(again)
        assert torch.equal(inputs, same)
        assert torch.equal(inputs[:, 1:], labels[:, :-1])
        assert torch.equal((inputs + 1) % 251, labels)


@pytest.mark.parametrize(("size", "count", "want"), [(1000, 5, 5), (1000, 500, 62), (17, 3, 1)])
def test_held_out_windows_predict_no_byte_twice(size: int, count: int, want: int) -> None:
    text = torch.arange(size).to(torch.uint8)
    windows, starts = held_out_windows(text, length=16, count=count)
    assert windows.shape == (want, 17)
    assert (starts.diff() >= 16).all()
    assert all(torch.equal(w, text[s : s + 17].long()) for w, s in zip(windows, starts.tolist(), strict=True))


def test_too_short_a_text_is_refused() -> None:
    with pytest.raises(ProblemError, match="shorter context"):
        held_out_windows(torch.zeros(16, dtype=torch.uint8), length=16, count=1)

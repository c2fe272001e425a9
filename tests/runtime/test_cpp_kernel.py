"""Running a compiled kernel: threads, scratch, forks, several callers at once."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from small_kernel import SCALED, is_right, scaled

from m2gen.errors import M2GenError
from m2gen.kernels.gate import GateSpec
from m2gen.runtime.build import cpp_kernel
from m2gen.runtime.build.scratch import borrowed, on_huge_pages


@pytest.mark.parametrize("items", [0, 1, 2, 15, 17, 1000])
def test_every_item_once(folder: Path, two_threads: None, items: int) -> None:
    y, where = scaled(cpp_kernel.load_source(SCALED), items=items)
    assert is_right(y)
    assert (where % 64 == 0).all()


def test_threads_have_scratch_of_their_own(folder: Path, two_threads: None) -> None:
    """Two threads at work at once (each waits for the other) are given different scratch."""
    kernel = cpp_kernel.load_source(SCALED)
    for _ in range(50):
        y, where = scaled(kernel, items=64, room=8 * 2**13)
        assert is_right(y)
    assert where.unique().numel() <= 2


def test_the_number_of_threads_changes_no_bit(folder: Path, two_threads: None) -> None:
    kernel = cpp_kernel.load_source(SCALED)
    two, _ = scaled(kernel, factor=7)
    torch.set_num_threads(1)
    assert torch.equal(scaled(kernel, factor=7)[0], two)


def test_two_callers_at_once(folder: Path, two_threads: None) -> None:
    kernel = cpp_kernel.load_source(SCALED)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda factor: (factor, scaled(kernel, factor, 200, 20000)[0]), range(1, 40)))
    assert all(is_right(y, factor) for factor, y in found)


def test_inference_mode(folder: Path) -> None:
    with torch.inference_mode():
        assert is_right(scaled(cpp_kernel.load_source(SCALED))[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_computes_too(folder: Path, two_threads: None) -> None:
    """OpenMP's threads are gone in the child; a team waiting for them would never end."""
    kernel = cpp_kernel.load_source(SCALED)
    assert is_right(scaled(kernel)[0])
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        os._exit(0 if is_right(scaled(kernel, 5)[0], 5) else 1)
    mine = [scaled(kernel)[0] for _ in range(20)]
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(is_right(y) for y in mine)


def test_scratch_is_kept_and_not_shared() -> None:
    with borrowed(1000) as a, borrowed(100000) as b:
        assert a != b and a % 64 == b % 64 == 0
    with borrowed(300000) as large:
        pass
    with borrowed(1000) as again:
        assert again == large


def test_more_scratch_than_there_is_memory() -> None:
    with pytest.raises(M2GenError, match="GiB that kernels work in: the system gives none"), borrowed(2**60):
        pass


def test_huge_pages_change_no_value() -> None:
    x = on_huge_pages(torch.empty(9 * 2**20))
    assert x.fill_(1.0).sum(dtype=torch.float64) == x.numel()
    assert on_huge_pages(torch.empty(0)).numel() == 0


def test_ready(folder: Path) -> None:
    assert cpp_kernel.ready([]) == (0, 0, 0)
    spec = GateSpec(part="fwd", dtype="fp32", activation="relu")
    assert cpp_kernel.ready([spec]) == (1, 0, 0)
    assert cpp_kernel.ready([spec]) == (0, 1, 0)


def test_without_gnu_openmp_one_thread_does_it_all(
    folder: Path, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = cpp_kernel.load_source(SCALED)
    monkeypatch.setattr(cpp_kernel.torch, "__file__", "/nowhere/torch/__init__.py")
    y, where = scaled(kernel)
    assert is_right(y) and where.unique().numel() == 1

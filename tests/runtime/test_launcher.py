"""A launch goes straight to what was compiled for a call like it, and to nothing else; the compiler is made up."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from m2gen.device.limits import target
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.build import triton_kernel
from m2gen.runtime.build.triton_kernel import Launcher, interned, launcher


class Spec(NamedTuple):
    num_warps: int = 4
    num_stages: int = 3


SPEC: Any = Spec()
X = torch.zeros(64)  # PyTorch aligns what it allocates
CALL = (X, X[4:], 7, 16)


class Compiler:
    """Stands for a kernel of Triton's: what was compiled, and what launched."""

    def __init__(self) -> None:
        self.compiled: list[tuple[Any, ...]] = []
        self.launched: list[tuple[int, Any, tuple[Any, ...]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(*arguments: Any, num_warps: int, num_stages: int) -> Any:
            assert (num_warps, num_stages) == (4, 3)
            number = len(self.compiled)
            self.compiled.append((grid, arguments))
            return Compiled(self, number)

        return run


class Compiled:
    def __init__(self, of: Compiler, number: int) -> None:
        self.of, self.number = of, number

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments: self.of.launched.append((self.number, grid, arguments))


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    found = Compiler()
    monkeypatch.setattr(triton_kernel, "load", lambda spec: found)
    return found


def test_a_call_like_an_earlier_one_is_launched_at_once(compiler: Compiler) -> None:
    kernel = Launcher(SPEC)
    kernel.run(0, 10, CALL)
    assert compiler.compiled == [((10,), CALL)] and not compiler.launched
    again = (X.clone(), X[8:], 7, 16)  # other memory, as well aligned
    kernel.run(0, 20, again)
    assert len(compiler.compiled) == 1
    ((number, grid, arguments),) = compiler.launched
    assert (number, grid) == (0, (20, 1, 1)) and all(a is b for a, b in zip(arguments, again, strict=True))


@pytest.mark.parametrize(
    ("device", "arguments"),
    [
        (1, CALL),
        (0, (X, X[4:], 8, 16)),
        (0, (X, X[4:], 16, 7)),
        (0, (X, X[4:], 7, 17)),
        (0, (X.half(), X[4:], 7, 16)),
        (0, (X, X[4:].half(), 7, 16)),
        (0, (X.bfloat16(), X[4:], 7, 16)),
        (0, (X[1:], X[4:], 7, 16)),
        (0, (X[2:], X[4:], 7, 16)),
        (0, (X, X[3:], 7, 16)),
    ],
)
def test_any_other_is_compiled(compiler: Compiler, device: int, arguments: tuple[Any, ...]) -> None:
    """Triton may have taken sizes for constants, and addresses for multiples of 16."""
    kernel = Launcher(SPEC)
    kernel.run(0, 10, CALL)
    kernel.run(device, 10, arguments)
    assert len(compiler.compiled) == 2 and not compiler.launched
    kernel.run(device, 10, arguments)
    kernel.run(0, 10, CALL)
    assert [number for number, *_ in compiler.launched] == [1, 0]


def test_so_many_calls_are_remembered_and_no_more(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Launcher, "MOST", 2)
    kernel = Launcher(SPEC)
    for size in (1, 2, 3):
        kernel.run(0, 1, (X, size))
    assert len(kernel._known) == 1
    kernel.run(0, 1, (X, 3))
    kernel.run(0, 1, (X, 1))
    assert len(compiler.compiled) == 4 and len(compiler.launched) == 1


def test_the_interpreter_compiles_nothing(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []

    class Interpreted:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **_: runs.append(arguments)

    monkeypatch.setattr(triton_kernel, "load", lambda spec: Interpreted())
    kernel = Launcher(SPEC)
    kernel.run(-1, 1, CALL)
    kernel.run(-1, 1, CALL)
    assert len(runs) == 2 and not kernel._known


def test_equal_specs_are_one_kernel() -> None:
    plan: Any = rank(parse("turn n=4096 h=768 b=8 bf16"), target("sm90")).plans[0]
    one, other = (next(iter(plan.body.kernels(plan.problem))) for _ in range(2))
    made = interned(one)
    assert interned(other) is made and launcher(other) is launcher(one)
    assert triton_kernel._quick[id(made)] is launcher(one)

"""M2GEN_COMPILE=beside: another solver computes until the kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Event
from typing import Any

import pytest
import torch

import m2gen
from m2gen import log
from m2gen.config import config
from m2gen.errors import CompileError
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime import beside, executor
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.build.cpp_kernel import available
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure.cases import case_of

pytestmark = pytest.mark.skipif(available() is not None, reason="no C++ compiler")
CPU = torch.device("cpu")
PROBLEMS = (
    "fftconv n=70 h=3 b=2 fp32 causal gated",
    "monarch in=64 out=64 rows=30 factors=8x8x8,8x8x8",
    "blockdiag in=64 out=64 blocks=4 rows=30 bias",
    "shortconv n=50 h=6 b=2 width=3",
    "gate n=40 rows=7 gelu",
)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is bound from before, nor stays bound."""
    monkeypatch.setenv("M2GEN_COMPILE", "beside")
    config.cache_clear()
    caches = [executor.bound] + [one for one in vars(executor).values() if hasattr(one, "cache_clear")]
    for cache in caches:
        cache.cache_clear()
    yield
    monkeypatch.undo()
    config.cache_clear()
    for cache in caches:
        cache.cache_clear()


def bound(text: str) -> Any:
    return executor.bound(parse(text), live(CPU), 1, 0)


@pytest.mark.parametrize("text", PROBLEMS)
def test_another_computes_until_kernels_are_there(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, ready = Event(), beside.make_ready

    def wait(*args: Any) -> Any:
        compiled.wait(60)
        return ready(*args)

    monkeypatch.setattr(beside, "make_ready", wait)
    monkeypatch.setattr(beside, "there", lambda *_: False)
    problem, kernel = parse(text), bound(text)
    case = case_of(problem)(problem, CPU)
    planned = kernel_of(rank(problem, live(CPU)).plans[0])
    assert kernel._now() is not planned
    meanwhile = case.call(kernel)
    compiled.set()
    kernel._thread.join(60)
    assert kernel._now() is planned and case.wrong(case.call(kernel)) is None
    torch.testing.assert_close(meanwhile, case.call(kernel), rtol=1e-5, atol=1e-5)


def test_what_is_there_is_used_at_once() -> None:
    plan = rank(parse(PROBLEMS[1]), live(CPU)).plans[0]
    kernel_of(plan)  # its product; gradients' kernels as well:
    beside.make_ready([(plan, True)], live(CPU))
    assert not isinstance(bound(PROBLEMS[1]), beside.Beside)


def test_a_user_sees_right_results_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "there", lambda *_: False)
    u, k = torch.randn(2, 3, 61, requires_grad=True), torch.randn(3, 61, requires_grad=True)
    found = [torch.autograd.grad(m2gen.fftconv(u, k).square().sum(), (u, k)) for _ in range(20)]
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("error", [CompileError("a kernel", "broken", "mend it"), RuntimeError("no room")])
def test_what_does_not_compile(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other solver stays, and the log says so; what is no compiler's fault is raised."""

    def fail(*_: Any) -> Callable[..., Any]:
        raise error

    said: list[str] = []
    monkeypatch.setattr(beside, "make_ready", fail)
    monkeypatch.setattr(beside, "there", lambda *_: False)
    monkeypatch.setattr(log, "fallback", said.append)
    kernel = bound(PROBLEMS[1])
    kernel._thread.join(60)
    x, factors = torch.randn(30, 64), [torch.randn(8, 8, 8)] * 2
    if isinstance(error, CompileError):
        assert kernel.product(x, factors).shape == (30, 64) and "broken" in said[0]
    else:
        with pytest.raises(RuntimeError, match="no room"):
            kernel.product(x, factors)

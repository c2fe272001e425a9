"""Compiling beside the work, which M2GEN_COMPILE=beside asks for: until a plan's kernels are there, another plan, one
without generated code, computes. So a result's last bits depend on what was compiled when it was asked for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any

from m2gen import log
from m2gen.device.limits import DeviceLimits
from m2gen.errors import CompileError
from m2gen.planner.plan import Plan
from m2gen.runtime.measure.ready import make_ready, there


def missing(chosen: Plan, limits: DeviceLimits) -> bool:
    """Whether a kernel of the plan has to be compiled, one of its gradients' too."""
    return not there(chosen, limits)


class Beside:
    """The computation of `chosen`, or of what `settle` takes in its place, once its kernels are compiled, in a thread
    that begins now; `meanwhile` until then, and for good where they do not compile."""

    def __init__(
        self,
        chosen: Plan,
        limits: DeviceLimits,
        bind: Callable[[Plan], Any],
        meanwhile: Any,
        settle: Callable[[Plan], Plan] = lambda plan: plan,
    ) -> None:
        self._chosen, self._meanwhile, self._settle = chosen, meanwhile, settle
        self._made: Future[Any] = Future()
        self._thread = Thread(target=self._make, args=(limits, bind), name=f"compile {chosen.problem}", daemon=True)
        self._thread.start()

    def _make(self, limits: DeviceLimits, bind: Callable[[Plan], Any]) -> None:
        try:
            plan = self._settle(self._chosen)
            make_ready([(plan, True)], limits)
            self._made.set_result(bind(plan))
        except BaseException as error:  # a call will say it
            self._made.set_exception(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def _now(self) -> Any:
        if not self._made.done():
            return self._meanwhile
        error = self._made.exception()
        if error is None:
            return self._made.result()
        if not isinstance(error, CompileError):
            raise error
        log.fallback(f"{self._chosen.problem} is done without generated code: {error}")
        return self._meanwhile

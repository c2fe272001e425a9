"""Kernels compiled by other processes while this one goes on: what a call does not need yet, the next ones will.

Processes start when there is work and end some seconds after the last of it. On a machine there are no more of them
than cores, however many programs compile, but for one of each program. What goes wrong here costs time alone: a kernel
that is not there is compiled by the call that needs it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from threading import Condition, Thread
from typing import Any

from m2gen.cache import store
from m2gen.log import fallback
from m2gen.runtime.build.workers import Failed, Worker

SECONDS = 120.0  # of one job
IDLE = 10.0  # seconds that a process waits for more


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Background:
    """Jobs, done by processes in the order in which they came. `function` is what a process does with one."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._change = Condition()
        self._waiting: dict[Any, None] = {}
        self._running: set[Any] = set()
        self._seen: set[Any] = set()
        self._threads = 0

    def begin(self, jobs: Iterable[Any]) -> None:
        """Have these done, each once. One core is left to the caller, who compiles as well."""
        with self._change:
            new = [job for job in jobs if job not in self._seen]
            self._seen.update(new)
            self._waiting |= dict.fromkeys(new)
            wanted = min(len(self._waiting) + len(self._running), max(1, cores() - 1))
            for _ in range(wanted - self._threads):
                slot = _slots.take(self._threads == 0)
                if slot is None:
                    break
                self._threads += 1
                Thread(target=self._serve, args=(slot,), name="m2gen compiles", daemon=True).start()
            self._change.notify_all()

    def needed(self, job: Any, seconds: float = SECONDS) -> None:
        """Wait for a job that is being done. One that waits itself is left to the caller."""
        with self._change:
            self._waiting.pop(job, None)
            self._change.wait_for(lambda: job not in self._running, seconds)

    def finish(self, seconds: float = SECONDS) -> None:
        """Wait for all."""
        with self._change:
            self._change.wait_for(lambda: not self._waiting and not self._running, seconds)

    def _serve(self, slot: _Slot) -> None:
        worker = Worker(self._function)
        try:
            while (job := self._next()) is not None:
                try:
                    why = getattr(worker.do(job, SECONDS), "error", "")
                except Failed as failed:
                    why = failed.why
                if why:
                    fallback(f"{getattr(job, 'name', job)} is left to its first call: {why}")
                with self._change:
                    self._running.discard(job)
                    self._change.notify_all()
        finally:
            worker.stop()
            slot.give()

    def _next(self) -> Any:
        """The next job; None where there was none for a while, and the thread is to end."""
        with self._change:
            if not self._change.wait_for(lambda: bool(self._waiting), IDLE):
                self._threads -= 1
                return None
            job = next(iter(self._waiting))
            del self._waiting[job]
            self._running.add(job)
            return job


class _Slot:
    """One of the machine's places for a process that compiles, held by a lock that ends with this process."""

    def __init__(self, file: int | None, number: int | None, of: _Slots) -> None:
        self._file, self._number, self._of = file, number, of

    def give(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                os.close(self._file)
        self._of.taken.discard(self._number)


class _Slots:
    """As many places as there are cores. Locks of a process do not hold against itself, so it knows its own."""

    def __init__(self) -> None:
        self.taken: set[int | None] = set()

    def take(self, anyway: bool) -> _Slot | None:
        """A place that is free; where none is, None, or with `anyway` one beside them."""
        for number in range(cores()):
            if number in self.taken:
                continue
            try:
                place = store.source_folder() / f".compiling-{number}"
                file = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                break
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # another process has it, or there are no locks here
                os.close(file)
                continue
            self.taken.add(number)
            return _Slot(file, number, self)
        return _Slot(None, None, self) if anyway else None


_slots = _Slots()

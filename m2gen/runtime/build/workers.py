"""Processes that compile: a job in, a result out, with a time limit.

A kernel that spills badly keeps the assembler busy for minutes, and a compiler that dies must not take the caller with
it. A process starts anew, so that it shares neither threads nor a GPU's context with this one, and it does not import
the program's main module. It ends with this process, whatever becomes of that.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import Any
from weakref import WeakSet

# what the other process does first: it imports what this one would
_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from m2gen.runtime.build.workers import serve; serve(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))"
)


_LOOK_AGAIN = 1.0  # seconds


class Failed(Exception):
    """Why there is no result, and after how many seconds."""

    def __init__(self, why: str, seconds: float) -> None:
        super().__init__(why)
        self.why, self.seconds = why, seconds


class Worker:
    """A process that calls a function of one argument, "module:name"; started when first needed, and again after it was
    stopped or died."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        _all.add(self)

    def do(self, job: Any, timeout: float) -> Any:
        """What the function gives for the job. Raises Failed."""
        start = time.perf_counter()
        try:
            pipe = self._pipe or self._start()
            pipe.send(job)
            if pipe.poll(timeout):
                return pipe.recv()
            why = f"not done after {timeout:.0f} s"
        except (EOFError, OSError):
            why = "the compiler died"
        self.stop()
        raise Failed(why, time.perf_counter() - start)

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        words = [json.dumps(sys.path), str(theirs.fileno()), self._function, str(os.getpid())]
        with theirs, _lock:
            if _ended:
                raise OSError("this process ends")
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, *words],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._pipe = ours
        return ours

    def stop(self) -> None:
        """End the process and the assembler it may be waiting for."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # its session's leader, so the group is its own
            process.wait()
        if pipe is not None:
            pipe.close()

    def forget(self) -> None:
        """In a forked child: the process is the parent's."""
        self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None


def serve(descriptor: int, function: str, parent: int) -> None:
    """A worker's life."""
    Thread(target=_watch, args=(parent,), daemon=True).start()
    module, name = function.split(":")
    call: Callable[[Any], Any] = getattr(import_module(module), name)
    pipe = Connection(descriptor)
    while True:
        try:
            job = pipe.recv()
        except (EOFError, OSError):
            return
        result = call(job)
        try:
            pipe.send(result)
        except OSError:  # nobody waits any more
            return


def _watch(parent: int) -> None:
    """End with the process that asks, also in the middle of a job, and the assembler with it."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AGAIN)
    os.killpg(os.getpgrp(), signal.SIGKILL)


_all: WeakSet[Worker] = WeakSet()
_lock, _ended = Lock(), False


def _stop_all() -> None:
    global _ended
    with _lock:
        _ended = True  # threads that have jobs left start nothing any more
    for worker in list(_all):
        worker.stop()


def _forget_all() -> None:
    global _lock
    _lock = Lock()
    for worker in list(_all):
        worker.forget()


atexit.register(_stop_all)
os.register_at_fork(after_in_child=_forget_all)

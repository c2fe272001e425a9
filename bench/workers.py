"""What a benchmark does, by processes of their own: first much at once, to compile; then one after the other, to time.

A job has a time limit, and one that hangs, dies or breaks its GPU (an illegal address ends a process's use of it) costs
itself alone: the next one finds a process that started anew.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from threading import Condition
from typing import Any

Row = dict[str, Any]
LEAST = 2.0  # seconds: with less left, nothing is begun
START = 60.0  # seconds that a process may take to import everything


@dataclass(frozen=True)
class Job:
    """A function of a module with its arguments, which gives rows of results; and what it takes of the device."""

    name: str
    call: Callable[..., list[Row]]
    args: tuple[Any, ...] = ()
    gigabytes: float = 1.0


@dataclass(frozen=True)
class Done:
    """What became of a job: its rows, or why there are none."""

    rows: list[Row]
    why: str = ""
    cut: bool = False  # there was no time for it, or not enough, in the whole run


class Worker:
    """A process that does jobs; started when first needed, and again after it was stopped or died."""

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._process: Any = None
        self._pipe: Connection | None = None

    def do(self, job: Job, seconds: float, until: float) -> Done:
        """For at most `seconds` from when the process is there, and not past `until`."""
        try:
            pipe = self._pipe or self._start()
            left = until - time.monotonic()
            if left <= LEAST:
                return Done([], "the minutes were over", cut=True)
            pipe.send(job)
            if pipe.poll(min(seconds, left)):
                done: Done = pipe.recv()
                return done
            found = Done([], f"not done after {min(seconds, left):.0f} s", cut=left < seconds)
        except (EOFError, OSError):
            self._process.join(5)
            found = Done([], f"its process ended with {self._process.exitcode}")
        self.stop()
        return found

    def _start(self) -> Connection:
        context = get_context("spawn")  # a fork would share the parent's threads and GPU
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._threads), daemon=True)
        self._process.start()
        theirs.close()
        if not self._pipe.poll(START):
            raise OSError("it did not start")
        self._pipe.recv()
        return self._pipe

    def stop(self) -> None:
        """End the process and those that it started."""
        if self._process is None or self._pipe is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # gone already, or not yet a group of its own
            self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None


def _serve(pipe: Connection, threads: int | None) -> None:
    """A worker's life: a job in, what became of it out."""
    os.setpgrp()
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    pipe.send("ready")
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            done = Done(job.call(*job.args))
        except Exception as error:  # whatever a contender raises is this job's result
            done = Done([], f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"[:500])
        pipe.send(done)
        del done
        if not _clean(torch):
            return


def _clean(torch: Any) -> bool:
    """Give memory and compiled graphs back; False where the GPU can no longer be used from this process."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


class _Room:
    """The device's memory: what does not fit waits, and what fits nowhere is done alone."""

    def __init__(self, gigabytes: float) -> None:
        self._all, self._used, self._change = gigabytes, 0.0, Condition()

    def take(self, amount: float) -> None:
        with self._change:
            self._change.wait_for(lambda: self._used == 0 or self._used + amount <= self._all)
            self._used += amount

    def give(self, amount: float) -> None:
        with self._change:
            self._used -= amount
            self._change.notify_all()


def together(
    jobs: Sequence[Job], workers: int, room: float, seconds: float, until: float, threads: int | None = None
) -> Iterator[tuple[Job, Done]]:
    """Do jobs in `workers` processes, with at most `room` GB of the device in use, each for at most `seconds` and none
    past `until` (of time.monotonic). All processes have ended when the last result is out."""
    idle, memory = [Worker(threads) for _ in range(max(1, min(workers, len(jobs))))], _Room(room)

    def run(job: Job) -> Done:
        memory.take(job.gigabytes)
        worker = idle.pop()
        try:
            return worker.do(job, seconds, until)
        finally:
            idle.append(worker)
            memory.give(job.gigabytes)

    try:
        with ThreadPoolExecutor(len(idle)) as pool:
            yield from zip(jobs, pool.map(run, jobs), strict=True)
    finally:
        for worker in idle:
            worker.stop()


def in_turn(
    jobs: Sequence[Job], seconds: float, until: float, threads: int | None = None
) -> Iterator[tuple[Job, list[Row]]]:
    """Do jobs one after the other in one process, each for at most `seconds`, until `until`: the rows of each. A job
    that fails has one row that says why, of group "failed"; one that there was no time for, of group "left out"."""
    worker = Worker(threads)
    try:
        for job in jobs:
            done = Done([], "the minutes were over", cut=True) if until - time.monotonic() <= LEAST else None
            done = done or worker.do(job, seconds, until)
            yield job, [told("left out" if done.cut else "failed", job.name, done.why)] if done.why else done.rows
    finally:
        worker.stop()


def told(group: str, problem: str, why: str) -> Row:
    """A row of what was not measured."""
    return {"group": group, "problem": problem, "why": why}

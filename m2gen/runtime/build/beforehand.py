"""Before Triton compiles a kernel for a call: look whether it is there already, compiled ahead or beside, and have what
the next calls will need compiled beside it by other processes.

A plan's kernels are `expected` by who binds it. At the first launch of one of them that is not in Triton's cache, the
caller compiles it and other processes the rest: those of the gradients, where gradients follow. So the first result is
there after the first kernel, and backward finds its own.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch

from m2gen.config import config
from m2gen.errors import CompileError, M2GenError
from m2gen.kernels.spec import KernelSpec
from m2gen.log import once
from m2gen.runtime.build import ahead
from m2gen.runtime.build.background import Background
from m2gen.runtime.build.cpp_kernel import gradients_follow
from m2gen.runtime.build.cross_compile import SERVES, Job
from m2gen.runtime.build.launched import Launched, launched
from m2gen.runtime.build.limits import live
from m2gen.runtime.build.specialised import files_of, specialised


@dataclass(frozen=True)
class Expected:
    """The kernels of a forward pass, and the jobs of all, of the gradients too where they are asked for."""

    forward: frozenset[KernelSpec]
    jobs: Callable[[bool], list[Job]]
    begun: set[bool] = field(default_factory=set)  # without gradients, with them


_MOST = 64  # plans that share a kernel which are remembered; the others' kernels compile one after another
_expected: dict[KernelSpec, deque[Expected]] = {}  # of those plans, the newest last
_lock = RLock()
_background = Background(SERVES)


def expect(specs: Iterable[KernelSpec], what: Expected) -> None:
    """Let the first launch of one of these kernels begin the others."""
    for spec in specs:
        _expected.setdefault(spec, deque(maxlen=_MOST)).append(what)


def forget() -> None:
    """As in a new process."""
    global _background
    _expected.clear()
    _in_cache.clear()
    _background = Background(SERVES)


def before(spec: Any, device: int, arguments: tuple[Any, ...]) -> None:
    """Called before Triton looks for the kernel of this launch on a GPU. Whatever goes wrong is left to Triton."""
    folder = config().compiled_dir
    if not folder and not (_expected and spec in _expected):
        return
    arch = live(torch.device("cuda", device)).compiled_for
    own = launched(spec, arguments).on(arch)
    try:
        if _there(own, arch) or (folder and ahead.into_tritons_cache(own, arch)):
            return
        with _lock:
            _begin(spec, own)
    except (CompileError, OSError) as error:
        once(f"kernels are compiled one after the other: {error}")
        return
    _background.needed(Job(spec, arch, arguments=own.arguments, look=False))


def _begin(spec: Any, own: Launched) -> None:
    """Have the rest compiled beside what the caller compiles now."""
    for what in reversed(_expected.get(spec, ())):
        gradients = gradients_follow.get() or spec not in what.forward
        jobs = what.jobs(gradients)
        if all(job.launch != own for job in jobs):  # it is not this plan's: its others would be for other calls
            continue
        if gradients not in what.begun:
            what.begun.add(gradients)
            _background.begin([job.ready for job in jobs if job.launch != own and not there(job)])
        return


def there(job: Job) -> bool:
    """Whether Triton's cache has the kernel of a launch. Raises CompileError where Triton does not tell."""
    return _there(job.launch, job.arch)


def _there(launch: Launched, arch: str) -> bool:
    if (launch, arch) in _in_cache:
        return True
    found = bool(files_of(specialised(launch, arch)))
    if found:
        _in_cache.add((launch, arch))
    return found


_in_cache: set[tuple[Launched, str]] = set()


def captured(spec: Any, error: Exception) -> M2GenError | None:
    """What to say of an error of Triton's while a CUDA graph is captured; None where none is."""
    if not (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return None
    asked, do = f"{spec.name} in a CUDA graph", "call it once with these sizes before the capture"
    return M2GenError(asked, f"it was not loaded before, which a capture does not allow ({error})", do)


os.register_at_fork(after_in_child=forget)  # processes and threads are the parent's

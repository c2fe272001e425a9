"""A C++ spec to a kernel that can be run: render, compile, load, spread over PyTorch's threads.

A generated source exports

    void    <name>(void *const *ptrs, const int64_t *ints, void *scratch, int64_t begin, int64_t end)
    int64_t <name>_scratch(const int64_t *ints)

Items begin..end are each computed by one thread alone, so a result does not depend on the number of threads; scratch is
64-byte aligned and private to the call. Threads are those of PyTorch's OpenMP pool: with a pool of our own, PyTorch's
workers, which spin for a while after their work, would take the cores away (two threads were then no faster than one).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from m2gen.codegen.render import Source, render
from m2gen.errors import CompileError, M2GenError
from m2gen.kernels.dispatch import DispatchSpec
from m2gen.kernels.spec import KernelSpec
from m2gen.log import fallback
from m2gen.runtime.build import ahead, compiler
from m2gen.runtime.build.scratch import borrowed

_CHUNKS = 8  # pieces of work for each thread, so that a thread held up does not hold up the others
_ALIGN = 128  # bytes: threads' scratch does not share a cache line, nor the pair that is fetched together


class CppKernel:
    """A compiled kernel. May be run from several Python threads at once; the GIL is released meanwhile."""

    def __init__(self, name: str, library: ctypes.CDLL) -> None:
        self.name, self._library = name, library
        self._kernel = getattr(library, name)
        self._kernel.restype = None
        self._kernel.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2
        self._address = ctypes.cast(self._kernel, ctypes.c_void_p)
        self._scratch = getattr(library, f"{name}_scratch")
        self._scratch.restype, self._scratch.argtypes = ctypes.c_int64, [ctypes.c_void_p]

    def run(self, pointers: Sequence[int], integers: Sequence[int], items: int, parallel: bool = True) -> None:
        """Compute items 0..items of the kernel, given the addresses and integers that it knows; on one thread where
        the work is not worth a second one (`parallel` False)."""
        ptrs = (ctypes.c_void_p * len(pointers))(*pointers)
        ints = (ctypes.c_int64 * len(integers))(*integers)
        size = -(-self._scratch(ints) // _ALIGN) * _ALIGN
        threads = torch.get_num_threads() if parallel and items > 1 else 1
        with borrowed(size * min(threads, max(items, 1))) as scratch:
            if threads > 1 and (team := _team()) is not None:
                # the whole team, as PyTorch itself does: OpenMP would end surplus threads and start them again
                grain = max(1, items // (threads * _CHUNKS))
                team[0](team[1], threads, self._address, ptrs, ints, scratch, size, items, grain)
            else:
                self._kernel(ptrs, ints, scratch, 0, items)


@lru_cache(maxsize=1024)
def load(spec: KernelSpec) -> CppKernel:
    """The kernel of a spec whose `arch` (if it has one) this machine can run. Raises CompileError."""
    return load_source(render(spec), getattr(spec, "arch", "native"))


def load_source(source: Source, arch: str = "native") -> CppKernel:
    """The kernel of a text that exports the two functions. Raises CompileError."""
    library = _open(source, compiler.arch_flags(arch))
    try:
        return CppKernel(source.name, library)
    except AttributeError as error:
        found = f"its text does not export what a kernel does ({error})"
        raise CompileError(f"the kernel {source.name}", found, "see templates/README.md") from error


def there(spec: KernelSpec) -> bool:
    """Whether `load` need not compile it. Raises CompileError where there is no compiler whose it could be."""
    source = render(spec)
    flags = compiler.arch_flags(getattr(spec, "arch", "native"))
    return bool(ahead.binary(source) or compiler.kept(source, flags))


def ready(specs: Iterable[KernelSpec]) -> tuple[int, int, int]:
    """Compile several kernels at once, so that `load` finds them: how many were compiled, were there, and failed, which
    say so where they are loaded."""

    def one(spec: KernelSpec) -> int:
        try:
            found = there(spec)
            load(spec)
            return int(found)
        except CompileError:
            return 2

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(one, specs))
    return found.count(0), found.count(1), found.count(2)


# whether what is called will be differentiated: kernels of gradients are then compiled at once with the forward's
gradients_follow: ContextVar[bool] = ContextVar("gradients_follow", default=False)


def compile_together(*specs: KernelSpec | None) -> None:
    """Where gradients follow, compile the kernels that a forward and a backward pass need at once. `load` finds them;
    one that does not compile says so there."""
    wanted = [spec for spec in specs if spec is not None]
    if gradients_follow.get() and len(wanted) > 1:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for spec in wanted:
                pool.submit(load, spec)


def compile_text(spec: KernelSpec, arch: str) -> str:
    """The assembly of a spec for a CPU that need not be this one: "avx512", "avx2", "neon" or "generic"."""
    return compiler.portable(render(spec), arch, "-S").decode()


@lru_cache(maxsize=1)
def available() -> str | None:
    """None where generated C++ can be compiled and run, found by compiling the dispatcher; else why not."""
    try:
        _dispatcher()
    except M2GenError as error:
        return str(error)
    return None


def _open(source: Source, flags: tuple[str, ...]) -> ctypes.CDLL:
    path: Path = ahead.binary(source) or compiler.shared_library(source, flags)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(
            f"the kernel {source.name} in {path}",
            f"it cannot be loaded ({error})",
            "set M2GEN_CACHE_DIR to a folder from which programs may run, or CXX to another compiler",
        ) from error


@lru_cache(maxsize=1)
def _dispatcher() -> Any:
    spec = DispatchSpec()
    function = getattr(_open(render(spec), ()), spec.name)
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint, *[ctypes.c_void_p] * 4, *[ctypes.c_int64] * 3]
    return function


@lru_cache(maxsize=1)
def _team() -> tuple[Any, ctypes.c_void_p] | None:
    """(dispatcher, GOMP_parallel of the OpenMP runtime that PyTorch uses); None where one thread has to do."""
    if _forked:
        fallback("generated kernels run on one thread here: OpenMP's threads do not survive a fork; spawn instead")
        return None
    suffix = "dylib" if sys.platform == "darwin" else "so"
    library = Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel  # looks in the libraries that it was linked with
    except (OSError, AttributeError):
        fallback(f"generated kernels run on one thread here: {library.name} is built without GNU OpenMP's interface")
        return None
    return _dispatcher(), ctypes.cast(parallel, ctypes.c_void_p)


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    _team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""Compile kernels for GPUs that are not here, and read off what their compilers made of them.

Each compilation runs in a worker process with a time limit: a kernel that spills badly keeps the assembler busy for
minutes, and a compiler that dies must not take the caller with it. What fails is a result too.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from m2gen.codegen.render import render
from m2gen.errors import CompileError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.runtime.machine_code import resources as machine_code

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

TARGETS = {**{f"sm{cc}": ("cuda", cc, 32) for cc in (80, 86, 89, 90, 100, 120)}, "gfx942": ("hip", "gfx942", 64)}
MMA = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"(?<!wg)mma\.sync",
    "mfma": r"v_mfma",
}
_POINTERS = {"u_ptr": "dtype", "pre_ptr": "dtype", "post_ptr": "dtype", "y_ptr": "dtype", "dy_ptr": "dtype"}
_POINTERS |= {"add_ptr": "dtype"}
_POINTERS |= {"kf_ptr": "compute", "a0_ptr": "compute", "a1_ptr": "compute", "b2_ptr": "compute"}
_POINTERS |= {"scratch_ptr": "compute"}  # the others are float32
_ANY = ("batch", "splits", "channels", "programs")  # numbers that need not be a multiple of 16

Layout = Literal["BHL", "BLH"]


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiler made of one kernel. With `error`, only `seconds` means anything besides."""

    arch: str
    name: str
    error: str = ""
    seconds: float = 0.0  # next to nothing where Triton's cache has it
    shared_bytes: int = 0  # per block
    registers: int = 0  # per thread
    stack_bytes: int = 0  # per thread
    spills: int = 0  # instructions that write or read spilled registers
    instructions: int = 0  # that a warp issues for one tile
    mma: tuple[tuple[str, int], ...] = ()  # matrix instructions in the assembly: (wgmma | tcgen05 | mma | mfma, count)
    traps: int = 0  # a kernel that stops at once: a compiler's way of not saying that it cannot
    texts: dict[str, str] = field(default_factory=dict, repr=False)  # source, ttir, ptx and sass or amdgcn
    binary: dict[str, bytes] = field(default_factory=dict, repr=False)  # cubin or hsaco

    @property
    def matrix_unit(self) -> str:
        """The kinds of matrix instructions, joined by "+"."""
        return "+".join(kind for kind, count in self.mma if count) or "none"


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel and the launch it is specialised to, as the just-in-time compiler would: lengths a multiple of 16."""

    spec: FftConvSpec | TritonSpec
    arch: str
    layout: Layout = "BHL"


def compile_all(jobs: Iterable[Job], *, timeout: float = 120.0, processes: int = 2) -> Iterator[Compiled]:
    """The jobs' results in their order; a job that takes longer than `timeout` seconds is stopped and says so."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    for _ in range(processes):
        idle.put(_Worker())

    def run(job: Job) -> Compiled:
        worker = idle.get()
        try:
            return worker.compile(job, timeout)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(processes) as threads:
            yield from threads.map(run, jobs)
    finally:
        for _ in range(processes):
            idle.get().stop()


def compile_one(job: Job, *, timeout: float = 120.0) -> Compiled:
    """One job's result."""
    return next(iter(list(compile_all([job], timeout=timeout, processes=1))))


class _Worker:
    """A process that compiles; started when first needed, and again after it was stopped or died."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None

    def compile(self, job: Job, timeout: float) -> Compiled:
        start = time.perf_counter()
        pipe = self._pipe or self._start()
        try:
            pipe.send(job)
            if pipe.poll(timeout):
                result: Compiled = pipe.recv()
                return result
            why = f"not done after {timeout:.0f} s"
        except (EOFError, OSError):
            why = "the compiler died"
        self.stop()
        return Compiled(job.arch, job.spec.name, error=why, seconds=time.perf_counter() - start)

    def _start(self) -> Connection:
        context = get_context("spawn")  # a fork of a process with threads may hang
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self._pipe

    def stop(self) -> None:
        """End the worker and the assembler it may be waiting for."""
        if self._process is None or self._pipe is None:
            return
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:  # gone already, or not yet a group of its own
            self._process.kill()
        self._process.join()
        self._pipe.close()
        self._process = self._pipe = None


def _serve(pipe: Connection) -> None:
    """A worker's life: a job in, a result out."""
    os.setpgrp()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        start = time.perf_counter()
        try:
            result = _compile(job)
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            result = Compiled(job.arch, job.spec.name, error=why, seconds=time.perf_counter() - start)
        pipe.send(result)


def _compile(job: Job) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if not hasattr(triton, "knobs"):
        raise CompileError(
            f"{job.spec.name} for {job.arch}",
            f"triton {triton.__version__} cannot be told to compile for a GPU that is not here",
            "install triton 3.4 or newer (it comes with torch 2.8 or newer)",
        )
    triton.knobs.runtime.interpret = False  # before the kernel's module is loaded
    from m2gen.runtime.build.triton_kernel import load

    spec, kernel, start = job.spec, load(job.spec), time.perf_counter()
    signature, constants, attributes = specialise(spec, kernel.arg_names, job.layout)
    binary = triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget(*TARGETS[job.arch]),
        options={"num_warps": spec.num_warps, "num_stages": spec.num_stages},
    )
    seconds = time.perf_counter() - start
    assembly = str(binary.asm.get("ptx") or binary.asm["amdgcn"])
    texts = {"source": render(spec).text, "ttir": str(binary.asm["ttir"])}
    texts["ptx" if "ptx" in binary.asm else "amdgcn"] = assembly
    if "hsaco" in binary.asm:
        usage = machine_code.amd(assembly, spec.loops)
    else:
        usage, texts["sass"] = machine_code.cuda(binary.asm["cubin"], spec.loops)
    return Compiled(
        job.arch,
        spec.name,
        seconds=seconds,
        shared_bytes=binary.metadata.shared,
        **usage._asdict(),
        mma=tuple((kind, len(re.findall(pattern, assembly))) for kind, pattern in MMA.items()),
        traps=len(re.findall(r"\btrap\b|s_trap", assembly)),
        texts=texts,
        binary={kind: binary.asm[kind] for kind in ("cubin", "hsaco") if kind in binary.asm},
    )


def specialise(
    spec: FftConvSpec | TritonSpec, arguments: Iterable[str], layout: Layout = "BHL"
) -> tuple[dict[str, str], dict[str, int], dict[tuple[int], list[list[object]]]]:
    """Signature, constants, attributes of a launch on dense tensors: the stride that is 1 is a constant, pointers,
    lengths and the other strides are multiples of 16."""
    signature: dict[str, str] = {}
    constants: dict[str, int] = {}
    attributes: dict[tuple[int], list[list[object]]] = {}
    arguments = list(arguments)
    special = _of_fftconv(spec, arguments, layout) if isinstance(spec, FftConvSpec) else spec.launched()
    for place, name in enumerate(arguments):
        kind = special.get(name, "")
        if kind == "1":
            signature[name], constants[name] = "constexpr", 1
            continue
        if name.endswith("_ptr"):
            signature[name] = "*" + (kind or spec.dtype)
        else:
            signature[name] = "i64" if name.startswith("stride_") else "i32"
        if kind != "any":
            attributes[(place,)] = [["tt.divisibility", 16]]
    return signature, constants, attributes


def _of_fftconv(spec: FftConvSpec, arguments: Iterable[str], layout: Layout) -> dict[str, str]:
    """`TritonSpec.launched` of a fused convolution, which depends on the layout of the user's tensors."""
    one = "l" if layout == "BHL" else "h"
    special = dict.fromkeys(_ANY, "any")
    for name in arguments:
        if name.startswith("stride_") and name.endswith(one):
            special[name] = "1"
        elif name.endswith("_ptr"):
            special[name] = str(getattr(spec, _POINTERS[name])) if name in _POINTERS else "fp32"
    return special

"""Compile kernels for GPUs that need not be here, and read off what their compilers made of them.

Each compilation runs in a worker process with a time limit (m2gen/runtime/build/workers.py). What fails is a result,
too.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal

from m2gen.codegen.render import render
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.runtime.build.launched import Argument, Launched
from m2gen.runtime.build.specialised import BINARIES, Specialised, files_of, made_up, specialised
from m2gen.runtime.build.specialised import TARGETS as TARGETS
from m2gen.runtime.build.triton_source import load
from m2gen.runtime.build.workers import Failed, Worker
from m2gen.runtime.machine_code import resources as machine_code

SERVES = "m2gen.runtime.build.cross_compile:serve_one"
MMA = {
    "wgmma": r"wgmma\.mma_async",
    "tcgen05": r"tcgen05\.mma",
    "mma": r"(?<!wg)mma\.sync",
    "mfma": r"v_mfma",
}
_POINTERS = {"u_ptr": "dtype", "pre_ptr": "dtype", "post_ptr": "dtype", "y_ptr": "dtype", "dy_ptr": "dtype"}
_POINTERS |= dict.fromkeys(("add_ptr", "du_ptr", "dpre_ptr", "dpost_ptr", "conv_ptr"), "dtype")
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
    told: bytes = field(default=b"", repr=False)  # what Triton says of it and needs to load it, as JSON

    @property
    def matrix_unit(self) -> str:
        """The kinds of matrix instructions, joined by "+"."""
        return "+".join(kind for kind, count in self.mma if count) or "none"


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel and the launch it is specialised to, as the just-in-time compiler would."""

    spec: FftConvSpec | TritonSpec
    arch: str
    layout: Layout = "BHL"
    arguments: tuple[Argument, ...] = ()  # of a launch that is known; else `typical` ones
    look: bool = True  # False: into Triton's cache, and no more
    what: Specialised | None = field(default=None, compare=False, repr=False)  # where that was found out before

    @property
    def ready(self) -> Job:
        """The same, its specialisation found out here: a worker need not load torch for it."""
        return replace(self, what=specialised(self.launch, self.arch))

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def launch(self) -> Launched:
        if self.arguments:
            return Launched(self.spec, self.arguments)
        return typical(self.spec, load(self.spec).arg_names, self.layout)


def compile_all(jobs: Iterable[Job], *, timeout: float = 120.0, processes: int = 2) -> Iterator[Compiled]:
    """The jobs' results in their order; a job that takes longer than `timeout` seconds is stopped and says so."""
    idle: SimpleQueue[Worker] = SimpleQueue()
    for _ in range(processes):
        idle.put(Worker(SERVES))

    def run(job: Job) -> Compiled:
        worker = idle.get()
        try:
            return done_by(worker, job, timeout)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(processes) as threads:
            yield from threads.map(run, jobs)
    finally:
        for _ in range(processes):
            idle.get().stop()


def done_by(worker: Worker, job: Job, timeout: float) -> Compiled:
    """The worker's result, or why there is none."""
    try:
        found: Compiled = worker.do(job, timeout)
        return found
    except Failed as error:
        return Compiled(job.arch, job.spec.name, error=error.why, seconds=error.seconds)


def compile_one(job: Job, *, timeout: float = 120.0) -> Compiled:
    """One job's result."""
    return next(iter(list(compile_all([job], timeout=timeout, processes=1))))


def serve_one(job: Job) -> Compiled:
    """What a worker does with a job: what fails is a result, too."""
    start = time.perf_counter()
    try:
        return _compile(job)
    except Exception as error:
        why = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        return Compiled(job.arch, job.spec.name, error=why, seconds=time.perf_counter() - start)


def _compile(job: Job) -> Compiled:
    import triton

    if hasattr(triton, "knobs"):
        triton.knobs.runtime.interpret = False  # before the kernel's module is loaded
    what, start = job.what or specialised(job.launch, job.arch), time.perf_counter()
    binary = triton.compile(what.source, target=what.target, options=what.options)
    seconds = time.perf_counter() - start
    if not job.look:
        return Compiled(job.arch, job.spec.name, seconds=seconds)
    spec, assembly = job.spec, str(binary.asm.get("ptx") or binary.asm["amdgcn"])
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
        binary={kind: binary.asm[kind] for kind in BINARIES if kind in binary.asm},
        told=_told(what),
    )


def _told(what: Specialised) -> bytes:
    """The JSON beside the binary in Triton's cache; nothing where that has been cleared meanwhile."""
    found = [path for name, path in files_of(what).items() if name.endswith(".json")]
    return Path(found[0]).read_bytes() if found else b""


def typical(spec: FftConvSpec | TritonSpec, names: list[str], layout: Layout = "BHL") -> Launched:
    """A launch on dense tensors, of sizes that are not known: the stride that is 1 is a constant, pointers, lengths and
    the other strides are multiples of 16."""
    special = _of_fftconv(spec, names, layout) if isinstance(spec, FftConvSpec) else spec.launched()
    return Launched(spec, made_up(spec, names, special))


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

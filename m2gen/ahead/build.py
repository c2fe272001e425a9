"""Making what `record` found: rendered, compiled, and kept in a folder with its manifest (`m2gen.cache.compiled`)."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from m2gen.ahead.record import Wanted
from m2gen.cache import compiled
from m2gen.cache.compiled import Manifest, Planned
from m2gen.codegen.render import render
from m2gen.device.limits import DeviceLimits
from m2gen.errors import CompileError, M2GenError
from m2gen.kernels.dispatch import DispatchSpec
from m2gen.planner import search
from m2gen.planner.plan import Plan
from m2gen.runtime import planning
from m2gen.version import __version__

if TYPE_CHECKING:
    from m2gen.kernels.spec import KernelSpec
    from m2gen.runtime.build.launched import Launched

_SUFFIX = {"source": "py", "amdgcn": "s"}  # of texts that are not called like their files
Tell = Callable[[str, str], None]  # a kernel's name, and what became of it


@dataclass(slots=True)
class Result:
    """How many problems and kernels a target's folder got: `new` ones, those that were `there`, and what failed; and
    lines on the problems that need none, which are `without`."""

    folder: Path
    problems: int = 0
    new: int = 0
    there: int = 0
    failed: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)


def build(out: Path, target: str, wanted: Wanted, tell: Tell) -> Result:
    """Compile all that is wanted for a target into out/<target>, beside what is there already.

    A kernel that is there, made from the same source, is left alone, so a broken-off run goes on where it was. Raises
    M2GenError where the folder cannot be written, or no compiler for the target works.
    """
    limits = planning.limits_of(target)
    maker = _gpu if limits.kind == "gpu" else _cpu
    tool = _triton() if limits.kind == "gpu" else _tool(limits.arch)
    folder = _folder(out, limits.arch)  # not before there is a compiler
    manifest = compiled.read(folder) or Manifest(limits.arch, __version__, tool)
    manifest.m2gen, manifest.compiler = __version__, tool
    jobs, without = _plan_all(manifest, wanted, target, limits)
    missing = [job for job in jobs if not compiled.whole(folder, manifest.kernels.get(job.name), job.text)]
    result = Result(folder, len(wanted.problems), there=len(jobs) - len(missing), without=without)
    try:
        for job, made in maker(missing, limits.arch):
            if isinstance(made, str):
                result.failed.append(f"{job.name}: {made}")
            else:
                manifest.kernels[job.name] = compiled.keep(folder, job.name, job.text, made)
                result.new += 1
            tell(job.name, made if isinstance(made, str) else "compiled")
            manifest.write(folder)  # after every kernel: a run that is broken off has not been for nothing
        manifest.write(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return result


@dataclass(frozen=True, slots=True)
class _Job:
    """A kernel under its name, and what it is made of; for a GPU the launch that it is specialised to."""

    spec: KernelSpec
    name: str
    text: str
    launch: Launched | None = None

    @classmethod
    def of(cls, spec: KernelSpec) -> _Job:
        return cls(spec, spec.name, render(spec).text)

    @classmethod
    def of_launch(cls, launch: Launched, arch: str) -> _Job:
        from m2gen.runtime.build.ahead import name_and_text
        from m2gen.runtime.build.specialised import specialised

        return cls(launch.spec, *name_and_text(launch, specialised(launch, arch)), launch)


def _folder(out: Path, arch: str) -> Path:
    """The target's folder, made where it is missing: the user's own, and nobody else's to write to."""
    folder = out.expanduser().absolute() / arch
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(folder.stat().st_mode & ~(stat.S_IWGRP | stat.S_IWOTH))
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> M2GenError:
    return M2GenError(f"kernels in {folder}", f"it cannot be written ({error.strerror or error})", "use another --out")


def _plan_all(manifest: Manifest, wanted: Wanted, target: str, limits: DeviceLimits) -> tuple[list[_Job], list[str]]:
    """Every kernel of every problem, each once, and a line on each problem that has none; the manifest is told which
    problem has which."""
    jobs: dict[str, _Job] = {}
    without: list[str] = []
    for problem, who in wanted.problems.items():
        chosen = planning.plan(problem, target)
        own = _jobs_of(chosen, limits, problem in wanted.trained)
        _note(manifest, str(problem), chosen, own, who)
        jobs |= {job.name: job for job in own if job.name not in jobs}
        if not own:
            without.append(_needs_none(chosen, limits))
    if limits.kind == "cpu":
        jobs[DispatchSpec().name] = _Job.of(DispatchSpec())  # which every kernel needs
    return list(jobs.values()), without


def _needs_none(plan: Plan, limits: DeviceLimits) -> str:
    """What is said of a problem that no kernel is generated for, and why."""
    ranking = search.rank(plan.problem, limits)
    estimated = ranking.plans[0].solver == plan.solver  # else what was measured decided
    why = search.reason(ranking) if estimated else plan.origin
    return f"{plan.problem}: planned as {plan.solver}, which needs no generated kernel: {why}"


def _jobs_of(plan: Plan, limits: DeviceLimits, gradients: bool) -> list[_Job]:
    if limits.kind == "cpu":
        return [_Job.of(spec) for spec in plan.body.kernels(plan.problem, gradients)]
    from m2gen.runtime.measure.rehearsed import launches

    return [_Job.of_launch(one.on(limits.arch), limits.arch) for one in launches(plan, limits, gradients)]


def _note(manifest: Manifest, problem: str, plan: Plan, jobs: list[_Job], who: list[str]) -> None:
    """The problem's entry; kernels and askers of an earlier run with the same plan stay."""
    text, steps = str(plan), json.loads(plan.to_json())
    entry = manifest.problems.get(problem)
    if entry is None or entry.plan != text:
        entry = manifest.problems[problem] = Planned(text, [])
    entry.steps = steps
    entry.kernels = list(dict.fromkeys((*entry.kernels, *(job.name for job in jobs))))
    entry.of = list(dict.fromkeys((*entry.of, *who)))


def _triton() -> str:
    import triton

    return f"Triton {triton.__version__}"


def _tool(arch: str) -> str:
    from m2gen.runtime.build import compiler

    return f"{compiler.compiler_for(arch).identity} {' '.join(compiler.portable_flags(arch))}"


_Made = Iterator[tuple[_Job, Mapping[str, bytes] | str]]


def _cpu(jobs: list[_Job], arch: str) -> _Made:
    """Each job with its source and library for any CPU of that row, or with why there is none."""
    from m2gen.runtime.build import compiler

    def make(job: _Job) -> Mapping[str, bytes] | str:
        source = render(job.spec)
        try:
            return {".so": compiler.portable(source, arch), ".cpp": source.text.encode()}
        except CompileError as error:
            return str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from zip(jobs, pool.map(make, jobs), strict=True)


def _gpu(jobs: list[_Job], arch: str) -> _Made:
    """Each job with its source, assembly, machine code and what Triton says of it, or with why there is none."""
    from m2gen.runtime.build.background import cores
    from m2gen.runtime.build.cross_compile import Job, compile_all

    launches = [Job(job.launch.spec, arch, arguments=job.launch.arguments) for job in jobs if job.launch is not None]
    made_of = compile_all(launches, processes=max(1, min(cores(), len(launches))))
    for job, made in zip(jobs, made_of, strict=True):
        files = {f".{_SUFFIX.get(kind, kind)}": text.encode() for kind, text in made.texts.items()}
        files |= {f".{kind}": content for kind, content in made.binary.items()}
        yield job, made.error or {**files, ".json": made.told}

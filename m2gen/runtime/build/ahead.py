"""What was compiled ahead (`m2gen compile`), where M2GEN_COMPILED_DIR names it: binaries, and the plans they are for.

A problem that was compiled ahead is done as it was planned then, whatever would be planned now: its kernels are there.
"""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

from m2gen.cache import compiled
from m2gen.codegen.render import Source, render
from m2gen.config import config
from m2gen.device.limits import DeviceLimits
from m2gen.errors import PlanError
from m2gen.log import fallback
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.stored import plan_from_json
from m2gen.runtime.build.cpu import local_arch
from m2gen.runtime.build.launched import Launched
from m2gen.runtime.build.specialised import BINARIES, Specialised, install, key_of, specialised

_X86 = ("avx512", "avx2", "generic")  # each runs what stands behind it


def runnable() -> tuple[str, ...]:
    """The rows of the device table whose code this CPU runs, its own first."""
    local = local_arch()
    return _X86[_X86.index(local) :] if local in _X86 else (local,)


def binary(source: Source) -> Path | None:
    """The source's binary, its digest checked just now; None where there is none. Raises ConfigError."""
    folder = config().compiled_dir
    return compiled.find(folder, runnable(), source.name, source.text) if folder else None


def plan(problem: Problem, limits: DeviceLimits) -> Plan | None:
    """The plan that the problem's kernels were compiled for; None where they were not. Raises ConfigError."""
    folder = config().compiled_dir
    targets = runnable() if limits.kind == "cpu" else (limits.arch,)
    steps = compiled.planned(folder, targets, str(problem)) if folder else None
    if not steps:
        return None
    try:
        return plan_from_json(json.dumps(steps))
    except PlanError as error:  # of another version of m2gen
        fallback(f"{problem} is planned anew, not as in {folder}: {error}")
        return None


def name_and_text(launch: Launched, what: Specialised) -> tuple[str, str]:
    """Under which name a kernel for a GPU is kept, one of several that a source is compiled to, and what it is made of:
    of the source, and of all that Triton's own key depends on."""
    which = sha256(repr(launch.arguments).encode()).hexdigest()[:8]
    return f"{launch.spec.name}-{which}", f"{render(launch.spec).text}\n{key_of(what)}"


def into_tritons_cache(launch: Launched, arch: str) -> bool:
    """Put what was compiled ahead for a launch where Triton looks for it, its digest checked just now; False where
    there is none. Raises ConfigError, and OSError where Triton's cache cannot be written."""
    what = specialised(launch, arch)
    name, text = name_and_text(launch, what)
    told = compiled.find(config().compiled_dir, (arch,), name, text, ".json")
    if told is None:
        return False
    binaries = [told.with_suffix(f".{kind}") for kind in BINARIES]
    files = [told, *(path for path in binaries if path.is_file())]
    install(what, {f"{launch.spec.name[:150]}{path.suffix}": path.read_bytes() for path in files})
    return True

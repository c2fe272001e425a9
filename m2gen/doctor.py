"""What `m2gen doctor` tells: versions, the device and its limits, compilers, settings, what would run and why."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator

from m2gen.device.limits import DeviceLimits
from m2gen.errors import M2GenError

Rows = list[tuple[str, str]]

_PACKAGES = ("torch", "triton", "numpy", "sympy", "jinja2", "transformers", "safetensors")
_COMPILERS = ("g++", "clang++")


def report(cxx: str | None = None) -> Iterator[tuple[str, Rows]]:
    """(title, rows) of every section; `cxx` is a compiler to look at besides the usual ones."""
    from m2gen.runtime.planning import limits_of

    limits = limits_of("auto")
    yield "versions", _versions()
    yield "device", _device(limits)
    named = [(name, compiler(name)) for name in dict.fromkeys((*([cxx] if cxx else []), *_COMPILERS))]
    yield "compilers", [*named, ("generated C++", _trial())]
    yield "settings in force", _settings()
    caches = [("plans", "in memory, per process"), ("compiled ahead", _ahead()), ("kernel sources", _sources())]
    yield "caches", [*caches, ("wisdom", _wisdom(limits))]
    yield "what will run, and why (n=1024 h=64 b=2 causal)", _choices(limits)


def _versions() -> Rows:
    return [("python", platform.python_version()), *((name, _version(name)) for name in _PACKAGES)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _device(limits: DeviceLimits) -> Rows:
    import torch

    rows = [("arch", f"{limits.arch}: {limits.description}"), ("memory", f"{limits.memory_bytes / 2**30:.0f} GiB")]
    threads = [("threads", f"{torch.get_num_threads()} of torch; plans are for one")] if limits.kind == "cpu" else []
    return [*rows, *threads, ("figures", "m2gen/device/limits.py, each with its source")]


def compiler(name: str) -> str:
    """Where the compiler is and what it calls itself."""
    path = shutil.which(name)
    if path is None:
        return "not found"
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path}: does not run ({error})"
    return f"{path}: {(done.stdout.splitlines() or ['says nothing'])[0]}"


def _trial() -> str:
    """Whether a small generated source compiles, loads and can be run, and with which compiler."""
    from m2gen.runtime.build import compiler, cpp_kernel

    why = cpp_kernel.available()
    if why:
        return f"not possible here: {why}"
    try:
        return f"compiles and loads: {compiler.compiler().identity}"
    except M2GenError as error:
        return f"loads what was compiled ahead, and nothing else: {error}"


def _ahead() -> str:
    """The folder of `m2gen compile` in use, and how many kernels it has for this CPU, or for GPUs."""
    from m2gen.cache import compiled
    from m2gen.config import config
    from m2gen.runtime.build.ahead import runnable
    from m2gen.runtime.build.specialised import TARGETS

    folder = config().compiled_dir
    try:
        found = (compiled.opened(folder, runnable()) or compiled.opened(folder, tuple(TARGETS))) if folder else []
    except M2GenError as error:
        return f"refused: {error}"
    return (
        "; ".join(f"{place}: {len(m.kernels)} kernels" for place, m in found)
        or "nothing: M2GEN_COMPILED_DIR is not set"
    )


def _sources() -> str:
    """Where generated sources go, and how many are there."""
    from m2gen.cache.store import source_folder

    try:
        folder = source_folder()
    except M2GenError as error:
        return f"refused: {error}"
    return f"{folder}: {sum(path.suffix in ('.py', '.cpp') for path in folder.iterdir())} files"


def _wisdom(limits: DeviceLimits) -> str:
    """Where tuning's results are, and how many are known for this device."""
    from m2gen.cache import wisdom

    try:
        known, shipped = len(wisdom.known(limits.arch)), len(wisdom.shipped(limits.arch))
        return f"{wisdom.place()}: {known} entries known for {limits.arch}, with {shipped} that are shipped"
    except M2GenError as error:
        return f"refused: {error}"


def _settings() -> Rows:
    from m2gen.config import FOREIGN, config

    try:
        current = config()
    except M2GenError as error:
        return [("refused", str(error))]
    names = [field.name for field in dataclasses.fields(current)]
    return [(FOREIGN.get(name, f"M2GEN_{name.upper()}"), str(getattr(current, name))) for name in names]


def _choices(limits: DeviceLimits) -> Rows:
    from m2gen.dtypes import DTYPES

    return [(dtype, choice(f"fftconv n=1024 h=64 b=2 {dtype} causal", limits)) for dtype in DTYPES]


def choice(text: str, limits: DeviceLimits) -> str:
    """The chosen solver with its reason: what the other solvers would cost, or why they cannot."""
    from m2gen.planner.problems import parse
    from m2gen.planner.search import plan, rank, reason

    problem = parse(text)
    try:
        chosen = plan(problem, limits)
    except M2GenError as error:
        return f"nothing: {error}"
    return f"{chosen.solver}, {chosen.body.what}: {reason(rank(problem, limits))}"

"""C++ text in, a shared library or assembly out: which compiler, which flags, and everything that can go wrong.

A binary's key is the source, the compiler (path and version), the flags and the features of this CPU, so that a home
directory shared by different machines holds one binary for each of them and none is ever run on the wrong one.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from m2gen.cache import binaries, store
from m2gen.codegen.render import Source
from m2gen.config import config
from m2gen.errors import CompileError
from m2gen.runtime.build.cpu import local_arch

USUAL = ("g++", "clang++", "c++")
SECONDS = 120.0  # a compilation's time limit
HOW_TO_GET = (
    "install a C++ compiler (apt install g++, dnf install gcc-c++, conda install -c conda-forge cxx-compiler, "
    "brew install gcc or xcode-select --install), or set CXX"
)
# templates say which multiply-adds are fused: left to a compiler, a row's bits would depend on the tile it falls into
_FLAGS = ("-std=c++17", "-O2", "-ffp-contract=off", "-fPIC", "-pipe", "-Wno-psabi")
_ARCH_FLAGS = {"avx512": ("-march=x86-64-v4",), "avx2": ("-march=x86-64-v3",), "neon": (), "generic": ()}
_X86 = ("generic", "avx2", "avx512")  # each runs what stands before it


@dataclass(frozen=True, slots=True)
class Compiler:
    """A command, and what it calls itself."""

    command: tuple[str, ...]
    version: str

    @property
    def identity(self) -> str:
        return f"{shlex.join(self.command)}: {self.version}"


@lru_cache(maxsize=1)
def compiler() -> Compiler:
    """CXX, else the first of the usual ones that runs. Raises CompileError: a CXX that does not run is no hint to take
    another."""
    asked = config().cxx
    found = [_asked(words) for words in ([_words(asked)] if asked.strip() else [[name] for name in USUAL])]
    for one in found:
        if isinstance(one, Compiler):
            return one
    why = "; ".join(str(one) for one in found)
    raise CompileError("a C++ compiler", why, "set CXX to one that runs, or unset it" if asked else HOW_TO_GET)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return [command]  # a quote that never ends: looked for as it stands


def _asked(words: list[str]) -> Compiler | str:
    """The compiler behind a command, or why there is none."""
    path = shutil.which(words[0])
    if path is None:
        return f"{words[0]} is not found"
    command = (path, *words[1:])
    try:
        done = subprocess.run(
            [*command, "--version"], capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{path} does not run ({error})"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return f"{path} --version ends with {done.returncode}"
    return Compiler(command, lines[0])


@lru_cache(maxsize=1)
def cpu_features() -> str:
    """What -march=native depends on, as the system tells it."""
    machine = f"{sys.platform} {platform.machine()}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{machine} {platform.processor()} {_sysctl()}"
    told = {line for line in lines if line.split(":")[0].strip() in ("flags", "Features", "isa", "CPU part")}
    return f"{machine} {sorted(told)}"


def _sysctl() -> str:
    """The name of a Mac's processor, which settles its features; empty elsewhere."""
    try:
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def arch_flags(arch: str, local: str | None = None) -> tuple[str, ...]:
    """The flags for `arch`, a row of the device table or "native". Where it is this machine's (`local`), every feature
    that it has is used, unless PyTorch was told to use no more than such a row's. Raises CompileError for code that
    would not run here."""
    machine = platform.machine().lower()
    local = local or local_arch()
    if arch in ("native", local):
        if config().aten_cpu_capability and local in _X86:
            return _ARCH_FLAGS[local]
        if machine in ("aarch64", "arm64"):
            return ("-mcpu=native",)
        return ("-march=native",) if machine in ("x86_64", "amd64") else ()
    if arch in _X86 and local in _X86 and _X86.index(arch) < _X86.index(local):
        return _ARCH_FLAGS[arch]
    raise CompileError(f"a kernel for {arch}", f"this machine is {local}", "see its assembly instead, or plan for auto")


def portable_flags(arch: str) -> tuple[str, ...]:
    """The flags for any CPU of a row of the device table. Raises CompileError for what is no such row."""
    if arch not in _ARCH_FLAGS:
        raise CompileError(f"code for {arch}", "not a CPU of the table", f"use one of {', '.join(_ARCH_FLAGS)}")
    return (*_FLAGS, *_ARCH_FLAGS[arch])


def shared_library(source: Source, flags: tuple[str, ...]) -> Path:
    """The compiled source, from the cache where it is there and whole. Raises CompileError."""
    key, flags = _key(source, flags)
    try:
        return binaries.find(source.name, key) or binaries.add(source.name, key, build(source, (*flags, "-shared")))
    except OSError as error:
        raise _unwritable(source, error) from error


def kept(source: Source, flags: tuple[str, ...]) -> Path | None:
    """The compiled source where the cache has it. Raises CompileError where there is no compiler whose it could be."""
    return binaries.find(source.name, _key(source, flags)[0])


def _key(source: Source, flags: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The key of a binary, and all flags that it is compiled with."""
    tool, flags = compiler(), (*_FLAGS, *flags)
    return sha256("\n".join((source.text, tool.identity, *flags, cpu_features())).encode()).hexdigest()[:16], flags


def _unwritable(source: Source, error: OSError) -> CompileError:
    return CompileError(
        f"the kernel {source.name}",
        f"its files cannot be written ({error.strerror or error})",
        "free space, or set M2GEN_CACHE_DIR to a folder with some",
    )


def build(source: Source, flags: tuple[str, ...], tool: Compiler | None = None) -> bytes:
    """What the compiler makes of the source with all of `flags`. Raises CompileError, or OSError for files."""
    tool = tool or compiler()
    text = store.put(source.name, source.digest, source.text, ".cpp")
    with binaries.build_folder() as folder:
        made = folder / "made"
        command = [*tool.command, *flags, "-o", str(made), str(text)]
        why = _run(command, folder)
        if why is None and made.is_file():
            return made.read_bytes()
        raise CompileError(
            f"the kernel {source.name} with {tool.identity}",
            why or "it says nothing and makes nothing",
            f"try {shlex.join(command[:-3])} {text}, or set CXX to another compiler",
        )


def _run(command: list[str], folder: Path) -> str | None:
    """None, or why the command failed. Its whole process group ends with it, whatever happens."""
    with (folder / "output").open("w+b") as output:
        environment = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
        try:
            child = subprocess.Popen(command, cwd=folder, start_new_session=True, **environment)  # type: ignore[call-overload]
        except OSError as error:
            return f"it does not start ({error})"
        try:
            status = child.wait(SECONDS)
        except subprocess.TimeoutExpired:
            return f"it was stopped after {SECONDS:.0f} s"
        finally:
            _end(child)
        if status == 0:
            return None
        output.seek(0)
        said = output.read(2000).decode(errors="replace").strip()
    return f"it ended with {'signal ' if status < 0 else 'status '}{abs(status)}: {said or 'nothing said'}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a compiler and of the processes that it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)  # its session's leader, so the group is its own
        child.wait()


def portable(source: Source, arch: str, kind: str = "-shared") -> bytes:
    """A library, or with kind "-S" the assembly, for any CPU of that row of the device table. Raises CompileError."""
    try:
        return build(source, (*portable_flags(arch), kind), compiler_for(arch))
    except OSError as error:
        raise _unwritable(source, error) from error


def compiler_for(arch: str) -> Compiler:
    """A compiler that makes code for `arch`: this machine's own, or GCC's usual cross compiler."""
    here = "neon" if platform.machine().lower() in ("aarch64", "arm64") else "avx2"
    if arch == "generic" or (arch == "neon") == (here == "neon"):
        return compiler()
    prefix = "aarch64" if arch == "neon" else "x86_64"
    found = _asked([f"{prefix}-linux-gnu-g++"])
    if isinstance(found, Compiler):
        return found
    raise CompileError(f"code for {arch}", found, f"install g++-{prefix.replace('_', '-')}-linux-gnu")

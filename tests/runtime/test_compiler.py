"""Compilers that fail, hang, lie or are missing; caches damaged, full, shared: right answers or one clear error."""

from __future__ import annotations

import errno
import multiprocessing
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_kernel import SCALED, forget, is_right, scaled

from m2gen import show
from m2gen.cache import binaries, store
from m2gen.codegen.render import Source
from m2gen.config import Config
from m2gen.errors import CompileError, ConfigError, M2GenError
from m2gen.kernels.dispatch import DispatchSpec
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.shortconv_cpp import ShortconvCppSpec
from m2gen.runtime.build import compiler, cpp_kernel

FRESH = multiprocessing.get_context("forkserver")  # processes that know nothing of this one, PyTorch loaded once
FRESH.set_forkserver_preload(["m2gen.runtime.build.cpp_kernel"])
X86 = platform.machine().lower() in ("x86_64", "amd64")


def names(folder: Path) -> list[str]:
    return sorted(path.suffix if path.suffix else path.name for path in folder.iterdir())


def test_a_kernel_is_compiled_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_right(scaled(cpp_kernel.load_source(SCALED))[0])
    assert names(folder) == [".cpp", ".sha256", ".so"]
    monkeypatch.setattr(compiler, "build", None)  # from here on nothing is compiled
    assert is_right(scaled(cpp_kernel.load_source(SCALED))[0])


def test_what_a_binary_depends_on_is_in_its_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {compiler.shared_library(SCALED, ())}
    paths.add(compiler.shared_library(SCALED, ("-g0",)))
    paths.add(compiler.shared_library(Source("scaled", SCALED.text + "// another"), ()))
    monkeypatch.setattr(compiler, "cpu_features", lambda: "another CPU")
    paths.add(compiler.shared_library(SCALED, ()))
    tool = compiler.compiler()
    monkeypatch.setattr(compiler, "compiler", lambda: compiler.Compiler(tool.command, "another version"))
    paths.add(compiler.shared_library(SCALED, ()))
    assert len(paths) == 5


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'cannot do that'; exit 1", r"scaled with .*fake 1\.0: it ended with status 1: cannot do that\. Try "),
        ("exit 0", "it says nothing and makes nothing"),
        ("kill -9 $$", "it ended with signal 9: nothing said"),
        ("printf '\\377\\376'; exit 4", "it ended with status 4"),
        ("echo nonsense > $out", r"it cannot be loaded \(.*file too short|it cannot be loaded"),
        ("head -c 20000 /dev/urandom > $out", "it cannot be loaded"),
    ],
)
def test_a_compiler_that_fails(fake: Callable[..., Path], script: str, message: str) -> None:
    fake(script)
    with pytest.raises(CompileError, match=message):
        cpp_kernel.load_source(SCALED)
    assert not list(store.source_folder().glob(".*")), "nothing half-made stays"
    assert "m2gen_dispatch" in str(cpp_kernel.available())


def test_a_compiler_that_hangs_is_stopped_with_its_children(
    fake: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Popen(subprocess.Popen[bytes]):
        """Its time is up as soon as its child runs, however long that takes here."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout != compiler.SECONDS:
                return super().wait(timeout)
            while not (tmp_path / "child").exists():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    fake(f"sleep 3600 & echo $! > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/child; wait")
    with pytest.raises(CompileError, match="it was stopped after"):
        cpp_kernel.load_source(SCALED)
    state = Path(f"/proc/{int((tmp_path / 'child').read_text())}/stat")
    while state.exists() and state.read_text().split(")")[1].split()[0] != "Z":  # a signal may take a moment
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("cxx", "message"),
    [
        ("no-such-compiler -x", "no-such-compiler is not found. Set CXX to one that runs, or unset it"),
        ("'never ends", "'never ends is not found"),
    ],
)
def test_a_compiler_that_is_missing(folder: Path, configure: Callable[..., None], cxx: str, message: str) -> None:
    configure(cache_dir=str(folder.parent), cxx=cxx)
    with pytest.raises(CompileError, match=message):
        cpp_kernel.load_source(SCALED)
    assert message in str(cpp_kernel.available())


def test_no_compiler_at_all_says_how_to_get_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "USUAL", ("no-g++", "no-clang++"))
    forget()
    why = str(cpp_kernel.available())
    assert "no-g++ is not found; no-clang++ is not found" in why and "apt install g++" in why


def test_a_compiler_without_a_version_is_none(fake: Callable[..., Path]) -> None:
    fake("", version="exit 3")
    assert "--version ends with 3" in str(cpp_kernel.available())


def test_arguments_in_cxx(folder: Path, configure: Callable[..., None]) -> None:
    configure(cache_dir=str(folder.parent), cxx="g++ -DTWICE=2")
    text = SCALED.text.replace("ints[0] * sum", "TWICE * ints[0] * sum")
    assert is_right(scaled(cpp_kernel.load_source(Source("scaled", text)))[0], 6)


@pytest.mark.parametrize("kept", [0, 1, 1000, -1])
def test_a_cut_binary_is_compiled_again(folder: Path, kept: int) -> None:
    path = compiler.shared_library(SCALED, ())
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    assert is_right(scaled(cpp_kernel.CppKernel("scaled", cpp_kernel._open(SCALED, ())))[0])
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damage", ["binary", "digest", "not a digest", "no text", "another's path"])
def test_what_does_not_match_its_digest_is_never_loaded(folder: Path, damage: str) -> None:
    path = compiler.shared_library(SCALED, ())
    (pointer,) = folder.glob("*.sha256")
    whole, digest = path.read_bytes(), pointer.read_text()
    if damage == "binary":
        path.write_bytes(whole[:5000] + b"x" + whole[5001:])
    else:
        bad = {"digest": digest[::-1], "not a digest": "zz", "another's path": "/../" * 16}.get(damage)
        pointer.write_bytes(b"\xff\xfe" if bad is None else bad.encode())
    assert binaries.find("scaled", pointer.stem.split("-")[1]) is None
    assert compiler.shared_library(SCALED, ()).read_bytes() == whole and pointer.read_text() == digest


def test_a_folder_that_others_write_to_is_refused(folder: Path) -> None:
    cpp_kernel.load_source(SCALED)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="others could change kernels"):
        cpp_kernel.load_source(SCALED)
    assert "others could change kernels" in str(cpp_kernel.available())


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path: Path, configure: Callable[..., None]) -> None:
    (tmp_path / "file").write_text("not a folder")
    configure(cache_dir=str(tmp_path / "file"))
    assert is_right(scaled(cpp_kernel.load_source(SCALED))[0])


def test_a_relative_folder(tmp_path: Path, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    configure(cache_dir="cache")
    path = compiler.shared_library(SCALED, ())
    monkeypatch.chdir("/")
    assert path == compiler.shared_library(SCALED, ()) and tmp_path in path.parents


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_folder_that_stops_being_written(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(CompileError, match=rf"{os.strerror(code)}.*M2GEN_CACHE_DIR"):
        cpp_kernel.load_source(SCALED)
    assert not list(folder.iterdir()), "nothing half-written stays"
    monkeypatch.undo()


def _limited(cache: str, size: int) -> None:
    """Load the kernel where no file may grow beyond `size` bytes."""
    store.config = compiler.config = lambda: Config(cache_dir=cache)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        cpp_kernel.load_source(SCALED)
    except CompileError:
        sys.exit(7)


@pytest.mark.parametrize("size", [100, 4000])
def test_a_disk_that_takes_no_more(folder: Path, size: int) -> None:
    """Files end at a limit, as on a full disk: of the source (100 bytes), of the binary (4000)."""
    process = FRESH.Process(target=_limited, args=(str(folder.parent), size))
    process.start()
    process.join()
    assert process.exitcode == 7
    assert not list(folder.glob(".*")) and not list(folder.glob("*.so"))
    assert is_right(scaled(cpp_kernel.load_source(SCALED))[0])


def test_a_killed_compilation_leaves_nothing_that_matters(fake: Callable[..., Path], tmp_path: Path) -> None:
    path = fake(f"echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/started; exec sleep 600")
    code = (
        "from m2gen.cache import store; from m2gen.config import Config; from m2gen.runtime.build import compiler;"
        f"store.config = compiler.config = lambda: Config(cache_dir={str(tmp_path / 'cache')!r}, cxx={str(path)!r});"
        "from m2gen.codegen.render import Source; compiler.shared_library(Source('scaled', ''), ())"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "started").exists():
        time.sleep(0.05)
    process.kill()
    process.wait()
    folder = store.source_folder()
    (left,) = folder.glob(".build-*")
    os.kill(int((tmp_path / "started").read_text()), signal.SIGKILL)
    os.utime(left, (0, 0))
    path.write_text('#!/bin/sh\nexec g++ "$@"\n')
    forget()
    assert is_right(scaled(cpp_kernel.load_source(SCALED))[0])
    assert not left.exists(), "what is left goes after a day"


def _load_and_run(cache: str) -> None:
    store.config = compiler.config = lambda: Config(cache_dir=cache)
    sys.exit(0 if is_right(scaled(cpp_kernel.load_source(SCALED))[0]) else 1)


def test_eight_processes_at_once(folder: Path) -> None:
    processes = [FRESH.Process(target=_load_and_run, args=(str(folder.parent),)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    assert set(names(folder)) == {".cpp", ".sha256", ".so"}


@pytest.mark.skipif(not X86, reason="these are x86's vector registers")
@pytest.mark.parametrize(("arch", "register"), [("avx512", "%zmm"), ("avx2", "%ymm"), ("generic", "%xmm")])
def test_assembly_for_another_cpu(folder: Path, arch: str, register: str) -> None:
    vector = "typedef float vec __attribute__((vector_size(64)));"
    source = Source("sums", f"{vector} void f(vec *x, vec *y) {{ for (int i = 0; i < 256; i++) y[i] += 2 * x[i]; }}")
    text = compiler.portable(source, arch, "-S").decode()
    wider = {"%zmm", "%ymm", "%xmm"} - {register} if register == "%xmm" else {"%zmm"} - {register}
    assert (register in text or arch == "avx512") and not any(other in text for other in wider)
    assert "m2gen_dispatch" in cpp_kernel.compile_text(DispatchSpec(), arch)


@pytest.mark.skipif(not X86, reason="these are x86's vector registers")
def test_show_has_the_assembly_of_cpu_kernels_only(folder: Path) -> None:
    spec = ShortconvCppSpec(part="fwd", layout="BLH", width=3, dtype="fp32", vector_bytes=32)
    assert "vfmadd" in show.assembly(spec, "avx2")
    gpu = FftConvSpec(part="fwd", ring="causal", n1=16, n2=16, dtype="fp16", compute="fp16")
    with pytest.raises(M2GenError, match=r"it is a GPU kernel, for sm90\. Use --ptx"):
        show.assembly(gpu, "sm90")


def test_code_that_would_not_run_here_is_refused() -> None:
    with pytest.raises(CompileError, match="a kernel for avx512: this machine is avx2"):
        compiler.arch_flags("avx512", local="avx2")
    assert compiler.arch_flags("avx2", local="avx512") == ("-march=x86-64-v3",)
    with pytest.raises(CompileError, match="this machine is"):
        compiler.arch_flags("sm90")
    with pytest.raises(CompileError, match="Use one of avx512"):
        compiler.portable(SCALED, "sm90")


@pytest.mark.skipif(not X86, reason="PyTorch's names of x86's instruction sets")
@pytest.mark.parametrize(("capability", "local"), [("avx2", "avx2"), ("default", "generic")])
def test_a_cpu_held_to_fewer_instructions(
    capability: str, local: str, tmp_path: Path, configure: Callable[..., None]
) -> None:
    """It gets code of a CPU that has no more, not of this one; in the same folder neither is taken for the other."""
    found = []
    for told, wanted in ((capability, compiler.portable_flags(local)), ("", (*compiler._FLAGS, "-march=native"))):
        configure(cache_dir=str(tmp_path), aten_cpu_capability=told)
        flags = compiler.arch_flags("native", local=local)
        assert (*compiler._FLAGS, *flags) == wanted
        found.append(compiler.shared_library(SCALED, flags))
    assert found[0].parent == found[1].parent and found[0] != found[1]

"""A cache folder of the test's own, and compilers of its own making."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_kernel import forget

from m2gen.cache import store
from m2gen.config import Config
from m2gen.device.limits import target
from m2gen.errors import CompileError
from m2gen.runtime import binding, executor
from m2gen.runtime.bindings import blockdiag, gate, monarch, shortconv
from m2gen.runtime.build import compiler, cpp_kernel


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set the configuration, and forget what was found out under another one."""

    def set_to(**fields: str) -> None:
        for module in (store, compiler):
            monkeypatch.setattr(module, "config", lambda: Config(**fields))
        forget()

    yield set_to
    forget()


@pytest.fixture
def folder(tmp_path: Path, configure: Callable[..., None]) -> Path:
    """The (empty) cache folder in force."""
    configure(cache_dir=str(tmp_path / "cache"))
    return store.source_folder()


@pytest.fixture
def fake(tmp_path: Path, configure: Callable[..., None]) -> Callable[[str], Path]:
    """Put a shell script in the compiler's place: $out is the file to make. It answers --version first."""

    def make(script: str, version: str = "echo fake 1.0; exit 0") -> Path:
        path = tmp_path / "fake-c++"
        path.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && {{ {version}; }}\n'
            'while [ $# -gt 0 ]; do [ "$1" = -o ] && out=$2; shift; done\n' + script
        )
        path.chmod(0o755)
        configure(cache_dir=str(tmp_path / "cache"), cxx=str(path))
        return path

    return make


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have products, gates and short convolutions generated for another row of the device table: its vectors, tiles and
    instructions. Skips what this machine does not run."""
    modules: tuple[Any, ...] = (blockdiag, gate, monarch, shortconv)

    def forget_kernels() -> None:
        for cache in (*vars(executor).values(), binding.kernel_of):
            if hasattr(cache, "cache_clear"):
                cache.cache_clear()

    def become(arch: str) -> None:
        try:
            compiler.arch_flags(arch)
        except CompileError as error:
            pytest.skip(str(error))
        forget_kernels()
        monkeypatch.setattr(executor, "live", lambda device: target(arch))
        for module in modules:
            monkeypatch.setattr(module, "load", lambda spec: cpp_kernel.load(replace(spec, arch=arch)))

    yield become
    forget_kernels()

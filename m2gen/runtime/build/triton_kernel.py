"""A spec to a kernel that can be launched: render, store, import. The only importer of triton."""

from __future__ import annotations

import importlib.util
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch

from m2gen.cache import store
from m2gen.codegen.render import render
from m2gen.config import config
from m2gen.errors import M2GenError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spec import KernelSpec, TritonSpec

S = TypeVar("S", bound="FftConvSpec | TritonSpec")
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def emulated(dtype: torch.dtype) -> bool:
    """Whether Triton's interpreter runs the kernels and its bfloat16 arithmetic, which is wrong, must be avoided."""
    return config().triton_interpret and dtype == torch.bfloat16


@lru_cache(maxsize=1024)
def load(spec: KernelSpec) -> Any:
    """The kernel of a spec, from its source file: triton reads the text behind a function."""
    source = render(spec)
    path = store.put(source.name, source.digest, source.text)
    found = importlib.util.spec_from_file_location(f"m2gen_generated.{source.name}", path)
    if found is None or found.loader is None:
        raise M2GenError(f"the kernel {source.name}", f"python finds no loader for {path}", "report this as a bug")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return getattr(module, source.name)


def launch(spec: FftConvSpec | TritonSpec, programs: int, *arguments: Any) -> None:
    """Run `programs` programs of the kernel, on the current stream of the first argument's device."""
    kernel = _quick.get(id(spec))
    if kernel is None:
        kernel = launcher(spec)
    device = arguments[0].get_device()  # -1 of a CPU
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel.run(device, programs, arguments)
    else:
        kernel.run(device, programs, arguments)


class Launcher:
    """A kernel, and what was compiled of it.

    What Triton compiles depends on dtypes, on addresses that are multiples of 16 and on sizes: a call that is like an
    earlier one in all of these goes straight to what was compiled for it, past Triton's own look at every argument.
    """

    MOST = 1024  # calls that are remembered

    def __init__(self, spec: FftConvSpec | TritonSpec) -> None:
        self.spec = spec
        self._known: dict[tuple[Any, ...], Any] = {}

    def run(self, device: int, programs: int, arguments: tuple[Any, ...]) -> None:
        """Launch it on the current device, which is `device`."""
        key = (device, *[a if a.__class__ is int else (a.dtype, a.data_ptr() & 15) for a in arguments])
        compiled = self._known.get(key)
        if compiled is not None:
            compiled[programs, 1, 1](*arguments)
            return
        spec = self.spec
        compiled = load(spec)[(programs,)](*arguments, num_warps=spec.num_warps, num_stages=spec.num_stages)
        if compiled is not None:  # the interpreter compiles nothing
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[key] = compiled


_quick: dict[int, Launcher] = {}  # by the identity of their specs, which they keep alive


@cache
def launcher(spec: FftConvSpec | TritonSpec) -> Launcher:
    """What launches the kernel of a spec."""
    made = Launcher(spec)
    _quick[id(spec)] = made
    return made


def interned(spec: S) -> S:
    """The one of equal specs that is launched at once: a spec's hash takes as long as a quarter of a launch."""
    return launcher(spec).spec  # type: ignore[return-value]

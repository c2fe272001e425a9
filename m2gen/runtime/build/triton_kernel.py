"""A spec to a kernel that can be launched: render, store, import. The only importer of triton."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import torch

from m2gen.cache import store
from m2gen.codegen.render import render
from m2gen.config import config
from m2gen.errors import M2GenError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spec import KernelSpec, TritonSpec

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
    """Run `programs` programs of the kernel, on the current stream of the first argument's device.

    What Triton compiles depends on dtypes, on addresses that are multiples of 16 and on sizes: a call that is like an
    earlier one in all of these goes straight to what was compiled for it, past Triton's own look at every argument.
    """
    device = arguments[0].device.index
    if device is not None and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _launch(spec, programs, device, arguments)
    return _launch(spec, programs, device, arguments)


def _launch(spec: FftConvSpec | TritonSpec, programs: int, device: int | None, arguments: tuple[Any, ...]) -> None:
    known = _launched(spec)
    key = (device, *[a if a.__class__ is int else (a.dtype, a.data_ptr() & 15) for a in arguments])
    compiled = known.get(key)
    if compiled is not None:
        compiled[programs, 1, 1](*arguments)
        return
    compiled = load(spec)[(programs,)](*arguments, num_warps=spec.num_warps, num_stages=spec.num_stages)
    if compiled is not None:  # the interpreter compiles nothing
        if len(known) >= _MOST:
            known.clear()
        known[key] = compiled


_MOST = 1024  # calls of a kernel that are remembered


@lru_cache(maxsize=1024)
def _launched(spec: KernelSpec) -> dict[tuple[Any, ...], Any]:
    """What was compiled of a kernel, by what a call is like."""
    return {}

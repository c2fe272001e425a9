"""A spec to a kernel that can be launched."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

import torch

from m2gen.config import config
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.runtime.build import beforehand
from m2gen.runtime.build.launched import note
from m2gen.runtime.build.triton_source import load

S = TypeVar("S", bound="FftConvSpec | TritonSpec")
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


def emulated(dtype: torch.dtype) -> bool:
    """Whether Triton's interpreter runs the kernels and its bfloat16 arithmetic, which is wrong, must be avoided."""
    return config().triton_interpret and dtype == torch.bfloat16


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
        compiled = self._first(device, programs, arguments)
        if compiled is not None:  # the interpreter compiles nothing
            if len(self._known) >= self.MOST:
                self._known.clear()
            self._known[key] = compiled

    def _first(self, device: int, programs: int, arguments: tuple[Any, ...]) -> Any:
        """The same by way of Triton, which compiles where its cache has nothing; what was launched."""
        spec = self.spec
        if arguments[0].is_meta:
            note(spec, arguments)
            return None
        if device >= 0:
            beforehand.before(spec, device, arguments)
        try:
            return load(spec)[(programs,)](*arguments, num_warps=spec.num_warps, num_stages=spec.num_stages)
        except RuntimeError as error:
            told = beforehand.captured(spec, error)
            if told is None:
                raise
            raise told from error


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

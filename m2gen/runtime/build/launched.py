"""A launch of a Triton kernel as far as what is compiled depends on it, read off the call that would make it.

Triton compiles for dtypes, for addresses and integers that are multiples of 16, for integers that are 1 and for those
that do not fit 32 bits. So calls on tensors without memory (PyTorch's "meta" device) say all of it: while `recording`,
they are written down and nothing is launched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m2gen.kernels.fftconv import FftConvSpec
    from m2gen.kernels.spec import TritonSpec

_LONG = 2**32  # a number of 64 bits, and a multiple of 16
_MOST = 2**31 - 1  # the largest of 32 bits, and the last byte of what AMD's buffer operations reach


@dataclass(frozen=True, slots=True)
class Pointer:
    """A tensor as Triton's binder sees it: anything with these attributes is one."""

    dtype: str  # such as "torch.float16"
    aligned: bool = True
    near: bool = True  # all of its memory is within 2 GiB, which AMD's compiler asks for

    def data_ptr(self) -> int:
        return 0 if self.aligned else 8

    def ptr_range(self) -> int:
        return 0 if self.near else _LONG


Argument = int | Pointer


@dataclass(frozen=True, slots=True)
class Launched:
    """A kernel and the arguments that it is launched with, one for all that Triton takes for equal."""

    spec: FftConvSpec | TritonSpec
    arguments: tuple[Argument, ...]

    def on(self, arch: str) -> Launched:
        """The same where it does not matter how much memory a tensor has: everywhere but on AMD's devices."""
        if arch.startswith("gfx") or all(isinstance(a, int) or a.near for a in self.arguments):
            return self
        return replace(
            self, arguments=tuple(a if isinstance(a, int) else replace(a, near=True) for a in self.arguments)
        )


def launched(spec: Any, arguments: Iterable[Any]) -> Launched:
    """What a launch on tensors and integers is to Triton."""
    return Launched(spec, tuple([_number(a) if isinstance(a, int) else pointer(a) for a in arguments]))


def _number(value: int) -> int:
    """The least of those that are compiled for alike."""
    if value == 1:
        return 1
    rest = 0 if value % 16 == 0 else 3
    return rest if -_MOST - 1 <= value <= _MOST else _LONG + rest


def pointer(x: Any) -> Pointer:
    """What a tensor is to Triton. PyTorch's allocators align: without memory, the offset in it decides."""
    first = x.storage_offset() * x.element_size() if x.is_meta else x.data_ptr()
    return Pointer(str(x.dtype), first % 16 == 0, x.untyped_storage().nbytes() <= _MOST)


_recorded: ContextVar[dict[Launched, None] | None] = ContextVar("recorded", default=None)


@contextmanager
def recording() -> Iterator[dict[Launched, None]]:
    """Inside, launches on tensors without memory are written down in the order of the first of each."""
    found: dict[Launched, None] = {}
    token = _recorded.set(found)
    try:
        yield found
    finally:
        _recorded.reset(token)


def note(spec: Any, arguments: Iterable[Any]) -> None:
    """Write a launch on tensors without memory down, where someone asks for it."""
    found = _recorded.get()
    if found is not None:
        found[launched(spec, arguments)] = None

"""What every kernel spec is: a frozen value whose fields are the knobs, and all that a template sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Generic, Protocol, TypeVar


@dataclass(frozen=True, slots=True)
class Resources:
    """What a kernel needs of the device, by formula; the compile audit holds it against the compiler."""

    shared_bytes: int  # per block
    threads: int  # per block


class KernelSpec(Protocol):
    """One specialised kernel."""

    def __hash__(self) -> int: ...

    @property
    def name(self) -> str:
        """Every field spelled out; what a profiler shows and what a source file is called."""

    @property
    def template(self) -> str:
        """The template's path below templates/."""

    def resources(self) -> Resources: ...


class TritonSpec(KernelSpec, Protocol):
    """One that is launched: beside its fields, what a launch takes."""

    @property
    def dtype(self) -> str: ...

    @property
    def num_warps(self) -> int: ...

    @property
    def num_stages(self) -> int: ...

    @property
    def loops(self) -> tuple[int, ...]:
        """Turns of the loops inside one tile, for counting instructions; () where there are none."""

    def launched(self) -> Mapping[str, str]:
        """Arguments as a launch on dense tensors has them, where that differs from the rule: a pointer is to `dtype`,
        a stride and a size are multiples of 16. "1" is a stride of 1, "any" a number that need not be a multiple, and
        anything else what a pointer is to."""


S = TypeVar("S", bound=KernelSpec)


def recast(spec: Any, family: type[S]) -> S:
    """The same knobs in another family, which takes the same calls."""
    if type(spec) is family:
        return spec
    return family(**{one.name: getattr(spec, one.name) for one in fields(spec)})


@dataclass(frozen=True, slots=True)
class Candidate(Generic[S]):
    """A kernel that would do, with what it should cost. Estimated, never measured."""

    spec: S
    seconds: float
    bytes: float  # moved between memory and the kernel
    parts: int = 1  # of a sum over rows, which are added in their order

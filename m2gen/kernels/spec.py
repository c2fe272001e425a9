"""What every kernel spec is: a frozen value whose fields are the knobs, and all that a template sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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

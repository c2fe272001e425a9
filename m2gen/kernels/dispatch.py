"""The C++ function that spreads a kernel's items over the threads of PyTorch's own pool."""

from __future__ import annotations

from dataclasses import dataclass

from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True)
class DispatchSpec:
    """Nothing to choose: one text for every kernel."""

    name: str = "m2gen_dispatch"
    template: str = "cpp/dispatch/run.cpp.jinja"

    def resources(self) -> Resources:
        return Resources(shared_bytes=0, threads=1)

"""The solvers of each op, in one explicit table: what is not listed here does not exist."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from m2gen.device.limits import DeviceLimits
from m2gen.planner.blockdiag import fused as blockdiag_fused
from m2gen.planner.blockdiag import library as blockdiag_library
from m2gen.planner.blockdiag import native as blockdiag_native
from m2gen.planner.fftconv.composed import Composed
from m2gen.planner.fftconv.fused import Fused
from m2gen.planner.fftconv.library import Library
from m2gen.planner.fftconv.native import Native
from m2gen.planner.monarch import solvers as monarch
from m2gen.planner.plan import Plan


class Solver(Protocol):
    """One way of doing the problems of its op. Pure: it never times anything and never asks a device."""

    @property
    def name(self) -> str:
        """As it is printed in plans."""

    def reject(self, problem: Any, limits: DeviceLimits) -> str | None:
        """Why it cannot do the problem on the device, or None where it can. Legality, never taste."""

    def candidates(self, problem: Any, limits: DeviceLimits) -> Iterator[Plan]:
        """Legal plans; called only where nothing was rejected."""

    def left_out(self, problem: Any, limits: DeviceLimits) -> Iterable[tuple[str, str]]:
        """(kernel, reason) of what would fit and must not run."""


SOLVERS: dict[str, tuple[Solver, ...]] = {
    "fftconv": (Library(), Composed(), Fused(), Native()),
    "blockdiag": (blockdiag_library.Library(), blockdiag_fused.Fused(), blockdiag_native.Native()),
    "monarch": (monarch.Staged(), monarch.Native()),
}

"""One generated Triton kernel for a GPU: products of a tile of rows and outputs, bias, activation, gate, residual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.spec import Candidate, recast
from m2gen.planner.blockdiag import tiles
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import FusedProduct
from m2gen.planner.blockdiag.tiles import Part, sizes_of
from m2gen.planner.languages import no_triton
from m2gen.planner.plan import Plan
from m2gen.planner.step import Estimate

_MOST = 8  # tiles worth a measurement
_PARTS: dict[str, Part] = {"dz": "dz", "dx": "fwd", "dw": "dw"}  # kernels of the gradients


@dataclass(frozen=True, slots=True)
class Fused:
    """`family`: of kernels that take the calls of `BlockdiagSpec`'s."""

    name: str = "fused"
    family: type[BlockdiagSpec] = BlockdiagSpec

    def reject(self, problem: BlockDiagProblem, limits: DeviceLimits) -> str | None:
        if why := no_triton(limits):
            return why
        if problem.dtype == "fp64":
            return "its products are of 16 or 32 bits, not fp64"
        if next(self._found(problem, limits), None) is None:
            return f"no tile fits the {limits.shared_bytes} bytes of shared memory and the registers"
        return None

    def left_out(self, problem: BlockDiagProblem, limits: DeviceLimits) -> tuple[tuple[str, str], ...]:
        return ()

    def _found(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[FusedProduct]:
        behind = problem.glu or problem.activation is not None
        dz, dx, dw = (self._first(problem, limits, part) for part in ("dz", "dx", "dw"))
        if dx is None or dw is None or (behind and dz is None):
            return
        of_x = replace(dx.spec, turned=True)
        of_z = recast(dz.spec, self.family) if behind and dz is not None else None
        for one in tiles.candidates(sizes_of(problem), limits, "fwd")[:_MOST]:
            moved = one.bytes + problem.bias * problem.n_out * DTYPES[problem.dtype].bytes
            estimate = Estimate(problem.flop, moved, 1, moved, one.seconds)
            specs = recast(one.spec, self.family), of_z, recast(of_x, self.family), recast(dw.spec, self.family)
            yield FusedProduct(estimate, *specs, dw.parts)

    @staticmethod
    def _first(problem: BlockDiagProblem, limits: DeviceLimits, gradient: str) -> Candidate[BlockdiagSpec] | None:
        """The quickest kernel of one of the gradients."""
        return next(iter(tiles.candidates(sizes_of(problem, gradient), limits, _PARTS[gradient])), None)

    def candidates(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for step in self._found(problem, limits):
            yield Plan(problem, limits.arch, self.name, (step,))

"""One generated Triton kernel for a GPU: products of a tile of rows and outputs, bias, activation, gate, residual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.spec import recast
from m2gen.planner.blockdiag import tiles
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import FusedProduct
from m2gen.planner.blockdiag.tiles import BlockdiagSizes
from m2gen.planner.languages import no_triton
from m2gen.planner.plan import Plan
from m2gen.planner.step import Estimate

_MOST = 8  # tiles worth a measurement


def sizes_of(problem: BlockDiagProblem) -> BlockdiagSizes:
    """The problem as the kernels' tiles are chosen by."""
    return BlockdiagSizes(
        rows=problem.rows,
        blocks=problem.blocks,
        depth=problem.block_in,
        width=problem.block_out,
        dtype=problem.dtype,
        bias=problem.bias,
        activation=problem.activation,
        glu=problem.glu,
        residual=problem.residual,
    )


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
        sizes = sizes_of(problem)
        # the gradient in the weight stands behind that of what follows the product
        bare = replace(sizes, activation=None, glu=False, bias=False, residual=False)
        of_weight = next(iter(tiles.candidates(bare, limits, "dw")), None)
        for one in tiles.candidates(sizes, limits, "fwd")[:_MOST]:
            if of_weight is not None:
                moved = one.bytes + problem.bias * problem.n_out * DTYPES[problem.dtype].bytes
                estimate = Estimate(problem.flop, moved, 1, moved, one.seconds)
                specs = recast(one.spec, self.family), recast(of_weight.spec, self.family)
                yield FusedProduct(estimate, *specs, of_weight.parts)

    def candidates(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[Plan]:
        for step in self._found(problem, limits):
            yield Plan(problem, limits.arch, self.name, (step,))

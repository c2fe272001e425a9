"""Three ways of multiplying by a block-diagonal weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.blockdiag_mm import BlockdiagMmSpec
from m2gen.kernels.gate import GateSpec
from m2gen.planner.blockdiag import cost, launches
from m2gen.planner.blockdiag.formulas import LEGEND, NOTES, library, native
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.gate.steps import NativeGate
from m2gen.planner.step import UNTRIED, Body, Estimate, Launch, Terms


@dataclass(frozen=True, slots=True)
class Product(Body[BlockDiagProblem]):
    """The product and what is done to its result; gradients go with it."""

    legend: ClassVar = LEGEND
    notes: ClassVar = NOTES

    @property
    def own_gradients(self) -> bool:
        """Whether one call gives all gradients of operands and result alone, what stood in between computed again;
        where not, they are composed of steps that keep it."""
        return False

    def estimated(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Estimate:
        """What it costs on a device."""
        raise NotImplementedError

    def expected(self, problem: BlockDiagProblem, limits: DeviceLimits) -> float:
        return self.estimated(problem, limits).seconds

    def lines(self, problem: BlockDiagProblem) -> list[str]:
        of, dense = problem, problem.n_out * problem.n_in
        found = [
            f"blocks    {of.blocks} x {of.block_out} x {of.block_in}   (nblocks x out x in)",
            f"weight    {of.weights} numbers, a {dense // of.weights}th of a dense one's {dense}",
        ]
        behind = [*["bias"] * of.bias, *([of.activation] if of.activation else []), *["gate"] * of.glu]
        behind += ["residual"] * of.residual
        epilogue = [f"behind it {', '.join(behind)}"] if behind else []
        return [*found, *epilogue, self._who()]

    def _who(self) -> str:
        """The line that says what computes."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class LibraryProduct(Product):
    """PyTorch's batched product, and its elementwise operators behind it; on a CPU a generated kernel does the `gate`
    of a gated linear unit."""

    blocks: int
    gate: NativeGate | None

    @property
    def choice(self) -> str:
        return "bmm" if self.blocks > 1 else "gemm"

    @property
    def style(self) -> str:
        return self.choice

    @property
    def what(self) -> str:
        return f"a product of PyTorch's for {self.blocks} blocks"

    @property
    def row(self) -> tuple[str, ...]:
        return self.choice, "the library's", "as it lies"

    def _who(self) -> str:
        return f"library   {self.choice}"

    def kernels(self, problem: BlockDiagProblem, gradients: bool = True) -> tuple[GateSpec, ...]:
        return () if self.gate is None else (self.gate.spec,)

    def terms(self, problem: BlockDiagProblem, body: Body[BlockDiagProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.library_values(problem, limits), library)

    def estimated(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Estimate:
        return cost.library_estimate(problem, limits)

    def launches(self, problem: BlockDiagProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        return launches.of_library(problem, limits, self.gate is not None, gradients)

    def __str__(self) -> str:
        return f"(library-product {self.choice})"


@dataclass(frozen=True, slots=True)
class FusedProduct(Product):
    """One generated Triton kernel, `spec`, and three for the gradients: `dz` in front of what follows the product (None
    where nothing does), `dx`, and `dw`, which sums the weight's and the bias's over `parts_of_rows` parts of the rows,
    which are added in their order. Its estimate is that of its tiles (planner/blockdiag/tiles.py)."""

    spec: BlockdiagSpec
    dz: BlockdiagSpec | None
    dx: BlockdiagSpec
    dw: BlockdiagSpec
    parts_of_rows: int

    @property
    def own_gradients(self) -> bool:
        return True

    @property
    def untried(self) -> str:
        return UNTRIED

    @property
    def choice(self) -> str:
        return self.spec.name

    @property
    def style(self) -> str:
        spec = self.spec
        return f"tiles {spec.block_r}x{spec.block_n}x{spec.block_k}, {spec.blocks} blocks, {spec.num_warps} warps"

    @property
    def what(self) -> str:
        return f"tiles of {self.spec.block_r} rows x {self.spec.block_n} columns of {self.spec.blocks} blocks"

    @property
    def row(self) -> tuple[str, ...]:
        return f"{self.spec.blocks} at once", f"{self.spec.block_r} x {self.spec.block_n}", "as it lies"

    def _who(self) -> str:
        return f"kernel    {self.spec.name}, {self.what}"

    def parts(self, problem: BlockDiagProblem) -> dict[str, BlockdiagSpec]:
        """The product "fwd", and its gradients "dz" in front of what follows it, "dx" and "dw"."""
        found = {"fwd": self.spec, "dz": self.dz, "dx": self.dx, "dw": self.dw}
        return {part: spec for part, spec in found.items() if spec is not None}

    def kernels(self, problem: BlockDiagProblem, gradients: bool = True) -> tuple[BlockdiagSpec, ...]:
        return tuple(dict.fromkeys(self.parts(problem).values())) if gradients else (self.spec,)

    def estimated(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Estimate:
        return self.estimate

    def launches(self, problem: BlockDiagProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        of = self.estimate
        forward = Launch(self.spec.name, of.bytes, of.seconds, of.flop)
        found = launches.of_kernels(problem, limits, (self.dz, self.dx, self.dw), self.parts_of_rows)
        return (forward, *found) if gradients else (forward,)

    def __str__(self) -> str:
        return f"(fused-product {self.choice})"


@dataclass(frozen=True, slots=True)
class NativeProduct(Product):
    """Generated C++ kernels: `spec` multiplies, `pack` puts the weight into the order of its tiles before, or it does
    so itself panel by panel where there is none; `outer` is the weight's gradient, of PyTorch where there is none.

    `pieces`: how many the rows are split into. `items`: pieces of work for each thread, at least; a thread alone does
    what is not `parallel`. `outer_rows`: rows of a block that a piece of work of `outer` has.
    """

    spec: BlockdiagMmSpec
    pack: BlockdiagMmSpec | None
    outer: BlockdiagMmSpec | None
    pieces: int
    items: int
    outer_rows: int
    parallel: bool
    parallel_pack: bool
    parallel_outer: bool

    @property
    def choice(self) -> str:
        return f"{self.style}, {self.spec.name}"

    @property
    def style(self) -> str:
        return f"tiles of {self.spec.columns} vectors, weight packed {'before' if self.pack else 'panel by panel'}"

    @property
    def what(self) -> str:
        return f"tiles of {self.spec.rows} rows x {self.spec.width} columns"

    @property
    def row(self) -> tuple[str, ...]:
        tile = f"{self.spec.rows} x {self.spec.width}"
        return "tiles", tile, "packed before" if self.pack else "packed panel by panel"

    def _who(self) -> str:
        return f"kernel    {self.spec.name}, {self.what}"

    def panels(self, problem: BlockDiagProblem) -> int:
        """Tiles side by side in a block."""
        return -(-problem.block_out // self.spec.width)

    def work(self, problem: BlockDiagProblem, threads: int) -> tuple[int, int]:
        """Pieces of work of the product, and panels of a block in each: as many as leave every thread its items."""
        panels, groups = self.panels(problem), self.pieces * problem.result_blocks
        wanted = self.items * threads if self.parallel else 1
        together = max(1, panels * groups // max(wanted, groups))
        return groups * -(-panels // together), together

    def outer_work(self, problem: BlockDiagProblem) -> int:
        """Pieces of work of the weight's gradient."""
        return problem.blocks * -(-problem.block_out // self.outer_rows)

    def parts(self, problem: BlockDiagProblem) -> dict[str, BlockdiagMmSpec]:
        """The product "fwd", the order of its weight "pack", and the weight's gradient "dw"."""
        found = {"fwd": self.spec, "pack": self.pack, "dw": self.outer}
        return {part: spec for part, spec in found.items() if spec is not None}

    def kernels(self, problem: BlockDiagProblem, gradients: bool = True) -> tuple[BlockdiagMmSpec, ...]:
        return tuple(spec for spec in (self.spec, self.pack, self.outer if gradients else None) if spec is not None)

    def terms(self, problem: BlockDiagProblem, body: Body[BlockDiagProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.native_values(problem, self.spec, self.pack is not None, limits), native)

    def estimated(self, problem: BlockDiagProblem, limits: DeviceLimits) -> Estimate:
        return cost.native_estimate(problem, self.spec, self.pack is not None, limits)

    def launches(self, problem: BlockDiagProblem, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        return launches.of_native(problem, limits, self.spec, self.pack is not None, gradients)

    def __str__(self) -> str:
        return f"(native-product {self.choice})"

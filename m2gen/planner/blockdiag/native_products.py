"""Generated C++ for a CPU: tiles of results in registers while the columns of a block pass.

The weight is packed anew at every call, in a twentieth of the time of the product from some hundred rows on: a packed
one that was kept would go stale in silence where somebody writes through `weight.data`. Where rows are few, each panel
is packed in cache right before it is used, so that the weight is read from memory once. Bits do not depend on any
of these choices: a result is one chain of fused multiply-adds. Tensors of 16 bits are widened and the result rounded
once: on a CPU without units for them that is many times as fast as the library.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag_mm import TILE_ROWS, BlockdiagMmSpec
from m2gen.planner.blockdiag.cost import native_estimate, slower
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.blockdiag.steps import NativeProduct
from m2gen.planner.languages import no_cpp

LEAST_VECTOR = 16  # bytes; narrower units are given such vectors by the compiler
_PART = 64  # rows of a piece of work: with the columns of a block they stay in a second-level cache
_PACKED = 2 * _PART  # rows from which on the weight is packed before
_PACKING = 8  # rows whose product takes as long as packing the weight
_ALONE = 2**19  # multiplications below which a second thread costs more than it does
_ITEMS = 4  # pieces of work for each thread, at least
_OUTER_TILES = 12  # tiles of a weight's gradient that share a panel of x, one above the other


def unable(problem: BlockDiagProblem, limits: DeviceLimits) -> str | None:
    """Why no generated C++ can do it; None where it can."""
    return no_cpp(limits)


def native_products(problem: BlockDiagProblem, limits: DeviceLimits) -> Iterator[NativeProduct]:
    """Tiles of every width, the one that should be the fastest first; no other differs in anything but speed."""
    best = _spec(problem, limits, columns_for(problem.block_out, *_unit(problem, limits)))
    for columns in dict.fromkeys((best.columns, *TILE_ROWS[best.registers])):
        yield _step(problem, limits, replace(best, columns=columns))


def columns_for(outputs: int, vector: int, registers: int) -> int:
    """Vectors of a tile for blocks of `outputs` columns: whole tiles are computed, some faster than others."""

    def cost(columns: int) -> float:
        return -(-outputs // (columns * vector)) * columns * slower(columns, registers)

    return min(TILE_ROWS[registers], key=cost)


def _unit(problem: BlockDiagProblem, limits: DeviceLimits) -> tuple[int, int]:
    """Numbers in a vector, and registers."""
    vector_bytes = max(LEAST_VECTOR, limits.vector_bytes)
    registers = 32 if vector_bytes == 64 or limits.arch == "neon" else 16
    return vector_bytes // (8 if problem.dtype == "fp64" else 4), registers


def _spec(problem: BlockDiagProblem, limits: DeviceLimits, columns: int) -> BlockdiagMmSpec:
    return BlockdiagMmSpec(
        part="fwd",
        columns=columns,
        dtype=DTYPES[problem.dtype].compute,
        glu=problem.glu,
        activation=problem.activation,
        vector_bytes=max(LEAST_VECTOR, limits.vector_bytes),
        registers=_unit(problem, limits)[1],
    )


def _step(problem: BlockDiagProblem, limits: DeviceLimits, spec: BlockdiagMmSpec) -> NativeProduct:
    plain = replace(spec, glu=False, activation=None)
    packed = problem.rows >= _PACKED
    outer = replace(plain, part="outer", columns=columns_for(problem.block_in, *_unit(problem, limits)))
    work = problem.rows * problem.weights
    return NativeProduct(
        native_estimate(problem, spec, packed, limits),
        spec,
        pack=replace(plain, part="pack") if packed else None,
        outer=outer,
        pieces=max(1, problem.rows // _PART),
        items=_ITEMS,
        outer_rows=_OUTER_TILES * outer.rows,
        parallel=max(problem.rows, _PACKING) * problem.weights >= _ALONE,
        parallel_pack=problem.weights >= _ALONE,
        parallel_outer=work >= _ALONE,
    )

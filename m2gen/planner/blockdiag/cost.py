"""The numbers of formulas.py for a problem on a device."""

from __future__ import annotations

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag_mm import BlockdiagMmSpec
from m2gen.planner.blockdiag.formulas import Values, library, native
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.step import NUMBERS, Estimate

# by registers: what a tile of so many vectors takes, beside the best one. 16: measured 2026-11-28, one core of an AMD
# EPYC (Zen 3), g++ 12.2, 512 to 4096 rows, 1.2 to 1.4 and 1.1 to 1.3
_SLOWER = {16: {3: 1.3, 1: 1.2}}


def slower(columns: int, registers: int) -> float:
    """Times that a product by tiles of so many vectors takes, beside one by the best tiles."""
    return _SLOWER.get(registers, {}).get(columns, 1.0)


def library_values(problem: BlockDiagProblem, limits: DeviceLimits) -> Values:
    """The numbers of PyTorch's product."""
    wide = limits.matrix32 * (limits.fp64_ratio if problem.dtype == "fp64" else 1.0)
    small = min(1.0, min(problem.block_in, problem.block_out) / limits.matrix_unit)
    temporaries = problem.rows * problem.n_out * DTYPES[problem.dtype].bytes
    return Values(
        R=problem.rows,
        k=problem.block_in,
        n=problem.block_out,
        b=problem.blocks,
        e=DTYPES[problem.dtype].bytes,
        u=problem.results,
        A=int(problem.bias) + int(problem.activation is not None and not problem.glu),
        G=int(problem.glu),
        c=int(problem.blocks > 1),
        M=(limits.matrix16 if DTYPES[problem.dtype].bytes == 2 else wide) * small,
        D=limits.dram_bandwidth,
        W=limits.elementwise * limits.bandwidth(2 * temporaries),
        t=limits.call_seconds,
        B=int(problem.bias),
        S=int(problem.residual),
    )


def native_values(problem: BlockDiagProblem, spec: BlockdiagMmSpec, packed: bool, limits: DeviceLimits) -> Values:
    """The numbers of a generated kernel."""
    return library_values(problem, limits)._replace(
        M=limits.matrix32
        * (limits.fp64_ratio if problem.dtype == "fp64" else 1.0)
        / slower(spec.columns, spec.registers),
        D=limits.native_stream(problem.least_bytes),
        t=limits.native_call or limits.call_seconds,
        w=spec.width,
        P=int(packed),
        N=limits.native_numbers,
        Z=spec.real_bytes if DTYPES[problem.dtype].bytes == 2 else 0,
    )


def library_estimate(problem: BlockDiagProblem, limits: DeviceLimits) -> Estimate:
    return Estimate(*map(float, library(library_values(problem, limits), NUMBERS)))


def native_estimate(problem: BlockDiagProblem, spec: BlockdiagMmSpec, packed: bool, limits: DeviceLimits) -> Estimate:
    return Estimate(*map(float, native(native_values(problem, spec, packed, limits), NUMBERS)))

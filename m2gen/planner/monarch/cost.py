"""The numbers of formulas.py for factors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.monarch_cpp import MonarchCppSpec
from m2gen.planner.blockdiag.steps import Product
from m2gen.planner.monarch.formulas import Values, native, staged
from m2gen.planner.monarch.problem import MonarchProblem, Shape, parameters
from m2gen.planner.monarch.run import MonarchRun
from m2gen.planner.step import NUMBERS, Estimate

_EDGE = 4  # entries of a block's side that cost as much as beginning and storing its sums


def _sizes(problem: MonarchProblem, factors: Sequence[Shape]) -> Values:
    return Values(
        R=problem.rows,
        Q=problem.rows,
        P=parameters(factors),
        V=sum(count * (out + into) for count, out, into in factors),
        I=problem.n_in,
        O=problem.n_out,
        e=DTYPES[problem.dtype].bytes,
    )


def native_values(
    problem: MonarchProblem, factors: tuple[Shape, ...], spec: MonarchCppSpec, run: MonarchRun, limits: DeviceLimits
) -> Values:
    """The numbers of the kernel that does all stages."""
    numbers = parameters(factors)
    share = sum(prod(f) * (1 + _EDGE / f[1]) * (1 + _EDGE / f[2]) for f in factors) / numbers
    wide = limits.matrix32 * (limits.fp64_ratio if problem.dtype == "fp64" else 1.0)
    of = _sizes(problem, factors)
    return of._replace(
        Q=-(-problem.rows // spec.vector) * spec.vector,
        X=wide / share,
        W=max(limits.bandwidth(numbers * spec.real_bytes), limits.native_stream(numbers * spec.real_bytes)),  # in cache
        # of more rows at once the weights are read less often, but the rows from more pages
        L=min(run.lanes, spec.tiles[0][0] * spec.vector),
        N=limits.native_numbers,
        t=limits.native_call or limits.call_seconds,
        Z=spec.real_bytes if of.e == 2 else 0,
        D=limits.bandwidth(spec.real_bytes * (problem.rows * (of.I + of.O) + numbers)),
    )


def native_estimate(
    problem: MonarchProblem, factors: tuple[Shape, ...], spec: MonarchCppSpec, run: MonarchRun, limits: DeviceLimits
) -> Estimate:
    return Estimate(*map(float, native(native_values(problem, factors, spec, run, limits), NUMBERS)))


def staged_values(
    problem: MonarchProblem, factors: tuple[Shape, ...], stages: Sequence[Product], limits: DeviceLimits
) -> Values:
    """The numbers of a product for each factor; one factor alone is not permuted."""
    of = _sizes(problem, factors)
    copy = problem.rows * of.V * of.e / len(factors)  # bytes, of a factor's two
    return of._replace(
        C=int(len(factors) > 1),
        N=limits.permuted_numbers or limits.bandwidth(copy) / (2 * of.e),
        t=(2 * len(factors) if len(factors) > 1 else 1) * limits.call_seconds,
        S=sum(stage.estimate.seconds for stage in stages),
    )


def staged_estimate(
    problem: MonarchProblem, factors: tuple[Shape, ...], stages: Sequence[Product], limits: DeviceLimits
) -> Estimate:
    return Estimate(*map(float, staged(staged_values(problem, factors, stages, limits), NUMBERS)))

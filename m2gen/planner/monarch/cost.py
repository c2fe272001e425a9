"""The numbers of formulas.py for factors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.monarch_cpp import MonarchCppSpec
from m2gen.planner.blockdiag import cost as products
from m2gen.planner.blockdiag.native_products import native_products, unable
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.monarch.formulas import Values, native, staged
from m2gen.planner.monarch.problem import MonarchProblem, Shape, parameters
from m2gen.planner.monarch.run import forward_run
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
    problem: MonarchProblem, factors: tuple[Shape, ...], spec: MonarchCppSpec, limits: DeviceLimits
) -> Values:
    """The numbers of the kernel that does all stages."""
    numbers = parameters(factors)
    share = sum(prod(f) * (1 + _EDGE / f[1]) * (1 + _EDGE / f[2]) for f in factors) / numbers
    wide = limits.matrix32 * (limits.fp64_ratio if problem.dtype == "fp64" else 1.0)
    of = _sizes(problem, factors)
    return of._replace(
        Q=-(-problem.rows // spec.vector) * spec.vector,
        X=wide / share,
        W=limits.bandwidth(numbers * of.e),
        L=forward_run(problem.rows, factors, spec).lanes,
        N=limits.native_numbers,
        t=limits.native_call or limits.call_seconds,
    )


def native_estimate(
    problem: MonarchProblem, factors: tuple[Shape, ...], spec: MonarchCppSpec, limits: DeviceLimits
) -> Estimate:
    return Estimate(*map(float, native(native_values(problem, factors, spec, limits), NUMBERS)))


def staged_values(problem: MonarchProblem, factors: tuple[Shape, ...], limits: DeviceLimits) -> Values:
    """The numbers of a product for each factor; one factor alone is not permuted."""
    of = _sizes(problem, factors)
    copy = problem.rows * of.V * of.e / len(factors)  # bytes, of a factor's two
    return of._replace(
        C=int(len(factors) > 1),
        N=limits.permuted_numbers or limits.bandwidth(copy) / (2 * of.e),
        t=(2 * len(factors) if len(factors) > 1 else 1) * limits.call_seconds,
        S=sum(_product(shape, problem.rows, problem.dtype, limits) for shape in factors),
    )


def staged_estimate(problem: MonarchProblem, factors: tuple[Shape, ...], limits: DeviceLimits) -> Estimate:
    return Estimate(*map(float, staged(staged_values(problem, factors, limits), NUMBERS)))


@lru_cache(maxsize=4096)
def _product(shape: Shape, rows: int, dtype: str, limits: DeviceLimits) -> float:
    """Seconds of the product with one factor, by the library or by generated C++."""
    count, out, into = shape
    problem = BlockDiagProblem(n_in=count * into, n_out=count * out, blocks=count, rows=rows, dtype=dtype)
    if unable(problem, limits) is None:
        return next(native_products(problem, limits)).estimate.seconds
    return products.library_estimate(problem, limits).seconds

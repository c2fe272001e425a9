"""The cost model: what a step costs, as sympy expressions that print, and as compiled functions that plan.

Symbols: B batch, H channels, n sequence, N transform size, C channels a chunk, e and c bytes of a user's and of a
computed real number, G gates, K 1 with a skip, p order, r a radix, T FLOP of the library's real transform.
Device constants: F FFT rate, M matrix rate, U matrix unit, W bandwidth of temporaries (at the working set), D
bandwidth of the user's tensors, t cost of a call, P memory passes of the library's FFT.

Monarch. One complex transform is p stages of N/r blocks r x r: 8 N r FLOP a stage, 6 N per twiddle between two. With
equal real blocks r = N^(1/p) that is the 2 p N^(1+1/p) FLOP of Monarch matrices times 4 for complex numbers. A block
smaller than the matrix unit gets r/U of its rate: the shape of FlashFFTConv's cost model (equation 2; remembered,
not checked against the paper; its constants are not used).
Library. A real transform of an even size is 5/2 N log2 N FLOP (a complex one of half the size), of an odd one a
complex one of all N. Where a prime passes 13, Bluestein: that complex transform as three of m points, a power of two.
Every figure is an estimate; none has been fitted on a device but those whose row in device/limits.py says measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log

import sympy as sp

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.planner.factor import largest_prime
from m2gen.planner.plan import Estimate, Transform
from m2gen.planner.problem import Problem

BLUESTEIN_ABOVE = 13  # libraries have kernels for the primes up to this; beyond, three longer transforms
QUANTITIES = ("flop", "bytes", "launches", "working_set", "seconds")

B, H, n, N, C, e, c, G, K, p, r, T = sp.symbols("B H n N C e c G K p r T", positive=True)
F, M, U, W, D, t, P, R2 = sp.symbols("F M U W D t P R2", positive=True)
SYMBOLS = (B, H, n, N, C, e, c, G, K, p, T, F, M, U, W, D, t, P, R2)


@dataclass(frozen=True)
class Formulas:
    """A step's cost: `whole` per quantity, plus for every radix `stage` per quantity."""

    whole: Mapping[str, sp.Expr]
    stage: Mapping[str, sp.Expr]


def _formulas(whole: dict[str, sp.Expr], stage: dict[str, sp.Expr] | None = None) -> Formulas:
    return Formulas(whole, stage or {name: sp.Integer(0) for name in QUANTITIES})


_chunks = sp.ceiling(H / C)
_rows = B * H
_user = _rows * n * e * (2 + G)  # u, gates and y, once each


def _library_filter() -> Formulas:
    return _formulas(
        {
            "flop": H * T,
            "bytes": H * c * N * (2 + 2 * P),
            "launches": 3 * _chunks,
            "working_set": C * 3 * c * N,
            "seconds": sp.Max(H * T / F, 2 * H * c * N * P / W) + 2 * H * c * N / W + 3 * _chunks * t,
        }
    )


def _library_conv() -> Formulas:
    elementwise = _rows * c * (3 * N + n * (4 + 2 * G + 2 * K)) + H * N * c
    launches = _chunks * (7 + G + 2 * K)
    return _formulas(
        {
            "flop": _rows * (2 * T + 3 * N + n * (G + 2 * K)),
            "bytes": _user + elementwise + 4 * _rows * c * N * P,
            "launches": launches,
            "working_set": C * c * N * (3 * B + 1),
            "seconds": sp.Max(2 * _rows * T / F, 4 * _rows * c * N * P / W)
            + elementwise / W
            + _user / D
            + launches * t,
        }
    )


def _monarch(transforms: sp.Expr, calls: sp.Expr) -> Formulas:
    """`transforms` complex Monarch transforms of N points, done in `calls` batched calls of each kind."""
    between = 4 * c * N * (p - 1) * transforms  # bytes: every twiddle product reads and writes; nothing is permuted
    launches = calls * (p - 1)
    return _formulas(
        {
            "flop": 6 * N * (p - 1) * transforms,
            "bytes": between,
            "launches": launches,
            "working_set": sp.Integer(0),
            "seconds": between / W + launches * t,
        },
        {
            "flop": 8 * N * r * transforms,
            "bytes": 4 * c * N * transforms,
            "launches": calls,
            "working_set": sp.Integer(0),
            "seconds": transforms * sp.Max(8 * N * r / (M * sp.Min(1, r / U)), 4 * c * N / W) + calls * t,
        },
    )


_TABLES = 2 * c * (R2 + N * (p - 1))  # DFT matrices (R2 = sum of r^2) and twiddles


def _plus(formulas: Formulas, more: dict[str, sp.Expr]) -> Formulas:
    return Formulas({name: formulas.whole[name] + more[name] for name in QUANTITIES}, formulas.stage)


def _composed_filter() -> Formulas:
    copies = H * c * N * 3
    return _plus(
        _monarch(H, _chunks),
        {
            "flop": sp.Integer(0),
            "bytes": copies,
            "launches": 3 * _chunks,
            "working_set": 6 * C * c * N + _TABLES,
            "seconds": copies / W + 3 * _chunks * t,
        },
    )


def _composed_conv() -> Formulas:
    elementwise = _rows * c * (7 * N + n * (4 + 2 * G + 2 * K)) + 2 * H * N * c
    launches = _chunks * (8 + G + 2 * K)
    return _plus(
        _monarch(2 * _rows, 2 * _chunks),
        {
            "flop": _rows * (6 * N + n * (G + 2 * K)),
            "bytes": _user + elementwise,
            "launches": launches,
            "working_set": C * c * N * (6 * B + 2) + _TABLES,
            "seconds": elementwise / W + _user / D + launches * t,
        },
    )


@lru_cache(maxsize=1)
def models() -> dict[tuple[str, str], Formulas]:
    """The formulas of every (transform kind, step)."""
    return {
        ("fft", "filter"): _library_filter(),
        ("fft", "conv"): _library_conv(),
        ("monarch", "filter"): _composed_filter(),
        ("monarch", "conv"): _composed_conv(),
    }


@lru_cache(maxsize=1)
def transform_work() -> dict[str, sp.Expr]:
    """T, the FLOP of the library's real transform; for Bluestein N is the longer transform's size m."""
    return {
        "even": sp.Rational(5, 2) * N * sp.log(N, 2),
        "odd": 5 * N * sp.log(N, 2),
        "bluestein": 15 * N * sp.log(N, 2),
    }


@lru_cache(maxsize=8)
def _compiled(kind: str, step: str) -> tuple[Callable[..., list[float]], Callable[..., list[float]]]:
    formulas = models()[kind, step]
    whole = sp.lambdify(SYMBOLS, [formulas.whole[name] for name in QUANTITIES], modules="math", cse=True)
    stage = sp.lambdify((*SYMBOLS, r), [formulas.stage[name] for name in QUANTITIES], modules="math", cse=True)
    return whole, stage


@lru_cache(maxsize=4)
def _compiled_work(case: str) -> Callable[[float], float]:
    compiled: Callable[[float], float] = sp.lambdify((N,), transform_work()[case], modules="math")
    return compiled


def work_case(size: int) -> tuple[str, int]:
    """Which formula T follows for `size`, and the size to put in it."""
    if largest_prime(size) <= BLUESTEIN_ABOVE:
        return ("odd" if size % 2 else "even"), size
    points = size if size % 2 else size // 2  # of the complex transform
    return "bluestein", 1 << (2 * points - 2).bit_length()


@lru_cache(maxsize=4096)
def _library_work(size: int) -> float:
    case, points = work_case(size)
    return float(_compiled_work(case)(float(points)))


def working_set(problem: Problem, transform: Transform, channels: int) -> float:
    """Bytes in use while `channels` channels of the whole batch are convolved."""
    per_channel, fixed = _working_set_terms(problem, transform)
    return channels * per_channel + fixed


@lru_cache(maxsize=4096)
def _working_set_terms(problem: Problem, transform: Transform) -> tuple[float, float]:
    """The working set is linear in the channels: (bytes a channel, bytes besides)."""
    whole, _ = _compiled(transform.kind, "conv")
    zero, one = (
        whole(*_sizes(problem, transform, channels), *[1.0] * 7, _squares(transform))[3] for channels in (0.5, 1)
    )
    return 2 * (one - zero), one - 2 * (one - zero)


def _squares(transform: Transform) -> float:
    return float(sum(radix * radix for radix in transform.radices))


def _sizes(problem: Problem, transform: Transform, channels: float) -> tuple[float, ...]:
    """The values of B to T, in the order of SYMBOLS."""
    dtype = DTYPES[problem.dtype]
    work = _library_work(transform.size) if transform.kind == "fft" else 0.0
    return (
        problem.b,
        problem.h,
        problem.n,
        transform.size,
        channels,
        dtype.bytes,
        DTYPES[dtype.compute].bytes,
        problem.gates,
        int(problem.skip),
        transform.order,
        work,
    )


def substitutions(
    problem: Problem, transform: Transform, channels: int, limits: DeviceLimits, step: str
) -> tuple[float, ...]:
    """The numbers for SYMBOLS, in their order; only F differs between the steps "filter" and "conv"."""
    slower = limits.fp64_ratio if DTYPES[problem.dtype].compute == "fp64" else 1.0
    points = work_case(transform.size)[1] if transform.kind == "fft" else transform.size
    rows = channels if step == "filter" else channels * problem.b
    return (
        *_sizes(problem, transform, channels),
        limits.fft_rate(points, rows) * slower,
        limits.matrix32 * slower,
        limits.matrix_unit,
        limits.bandwidth(working_set(problem, transform, channels)),
        limits.dram_bandwidth,
        limits.call_seconds,
        ceil(log(max(points, 2)) / log(limits.fft_pass_points)),
        _squares(transform),
    )


def estimate(problem: Problem, transform: Transform, channels: int, limits: DeviceLimits, step: str) -> Estimate:
    """What the filter's spectrum (step "filter") or the convolution (step "conv") costs."""
    return _evaluate(step, transform, substitutions(problem, transform, channels, limits, step))


def _evaluate(step: str, transform: Transform, values: tuple[float, ...]) -> Estimate:
    whole, stage = _compiled(transform.kind, step)
    total = list(whole(*values))
    if transform.kind == "monarch":
        for radix in set(transform.radices):
            count = transform.radices.count(radix)
            total = [sum_ + count * term for sum_, term in zip(total, stage(*values, radix), strict=True)]
    return Estimate(*map(float, total))

"""The cost model: what a step costs, as formulas that print and plan alike.

A formula is a function of `Values` and an `Arithmetic`. On numbers it plans, in microseconds; on sympy's symbols
(explain.py) the same function is the expression that `explain` prints.

Symbols: B batch, H channels, n sequence, N transform size, C channels a chunk, e and c bytes of a user's and of a
computed real number, G gates, K 1 with a skip, E 1 where something is added, p order, r a radix, R2 the sum of r^2, T
FLOP of the library's real transform. Device constants: F FFT rate, M matrix rate, U matrix unit, W bandwidth of
temporaries (at the working set), D bandwidth of the user's tensors, t cost of a call, P memory passes of the library's
FFT. Of a fused kernel: n1 and n2 its radices, n0 that of an outer stage through memory (S 1 with one, else 0), R batch
rows in a tile, s transforms stacked in a product, Q bytes of its operand, X rate of its products, V vector rate, A
threads of a block, I instructions that a warp issues for a tile (one that spills counts as several), f seconds from one
to the next, l seconds that a tile waits for memory, products and scratch, m multiprocessors, O blocks that each holds
at once, q programs, u tiles that one does, o seconds that it takes to begin and end, a the share of scratch that no
cache keeps, w bytes of a number of tensors that were turned, as input and as result. Of a native kernel: J operations
for each point of a transform, what a pass costs beyond its FLOP among them, X rate of them, L 1 where the user's
numbers are gathered into rows (another dtype, a gate, something added, or channels as neighbours), Y numbers gathered a
second.

Monarch. One complex transform is p stages of N/r blocks r x r: 8 N r FLOP a stage, 6 N per twiddle between two. With
equal real blocks r = N^(1/p) that is the 2 p N^(1+1/p) FLOP of Monarch matrices times 4 for complex numbers. A block
smaller than the matrix unit gets r/U of its rate: the shape of FlashFFTConv's cost model (equation 2; remembered,
not checked against the paper; its constants are not used).
Library. A real transform of an even size is 5/2 N log2 N FLOP (a complex one of half the size), of an odd one a
complex one of all N. Where a prime passes 13, Bluestein: that complex transform as three of m points, a power of two.
Every figure is an estimate; none was fitted on a device but those of rows in device/ that say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from m2gen.planner.fftconv.launch_cost import Together, together
from m2gen.planner.step import Arithmetic, Cost

# as `explain` prints them below the formulas
LEGEND = (
    "B batch, H channels, n sequence, N transform size, C channels a chunk, e and c bytes of a user's and a computed "
    "number, G gates, K skip, E 1 where something is added, p order, r radix, R2 sum of r^2, T FLOP of a real FFT, F "
    "FFT rate, M matrix rate, U matrix unit, W bandwidth of temporaries, D of the user's tensors, t cost of a call, P "
    "passes of the FFT, n0, n1, n2 a fused kernel's radices, S 1 with an outer stage, R batch rows in a tile, s "
    "transforms stacked, Q bytes of an operand, X rate of its products, V vector rate, A threads of a block, I "
    "instructions that a warp issues for a tile, f seconds from one to the next, l seconds that a tile waits for "
    "memory, products and scratch, m multiprocessors, O blocks that each holds at once, q programs, u tiles that one "
    "does, o seconds that it takes to begin and end, a share of scratch that no cache keeps, w bytes of a turned "
    "number read and written, J operations a point of a native transform, X their rate, L 1 where numbers are "
    "gathered into rows, Y numbers a second"
)
NOTES = (
    "Every figure is an estimate of the cost model. A block smaller than the matrix unit gets r/U of its rate: the "
    "shape of FlashFFTConv's cost model, remembered and not checked against the paper; its constants are not used. "
    "With equal radices, 8 N sum(r) is four times the 2 p N^(1 + 1/p) of an order-p Monarch matrix of real blocks."
)

BLUESTEIN_ABOVE = 13  # libraries have kernels for the primes up to this; beyond, three longer transforms


class Values(NamedTuple):
    """The symbols above, in one order: numbers to plan with, or sympy symbols to print."""

    B: Any
    H: Any
    n: Any
    N: Any
    C: Any
    e: Any
    c: Any
    G: Any
    K: Any
    E: Any
    p: Any
    R2: Any
    T: Any
    F: Any = 1.0
    M: Any = 1.0
    U: Any = 1.0
    W: Any = 1.0
    D: Any = 1.0
    t: Any = 1.0
    P: Any = 1.0
    n1: Any = 0
    n2: Any = 0
    n0: Any = 0
    S: Any = 0
    R: Any = 1
    s: Any = 1
    Q: Any = 0
    X: Any = 1.0
    V: Any = 1.0
    A: Any = 0
    J: Any = 0
    I: Any = 0  # noqa: E741
    l: Any = 0  # noqa: E741
    m: Any = 1
    O: Any = 1  # noqa: E741
    L: Any = 0
    Y: Any = 1.0
    f: Any = 0.0
    q: Any = 1
    u: Any = 1
    o: Any = 0.0
    a: Any = 0.0
    w: Any = 0


def user_bytes(v: Values) -> Any:
    """u, gates, what is added and y, once each."""
    return v.B * v.H * v.n * v.e * (2 + v.G + v.E)


def table_bytes(v: Values) -> Any:
    """DFT matrices and twiddles."""
    return 2 * v.c * (v.R2 + v.N * (v.p - 1))


def library_set(v: Values, channels: Any) -> Any:
    """Bytes in use while `channels` channels are convolved by the library."""
    return channels * v.c * v.N * (3 * v.B + 1)


def monarch_set(v: Values, channels: Any) -> Any:
    """The same, by Monarch matrices."""
    return channels * v.c * v.N * (6 * v.B + 2) + table_bytes(v)


def library_filter(v: Values, a: Arithmetic) -> Cost:
    launches = 3 * a.ceiling(v.H / v.C)
    return Cost(
        flop=v.H * v.T,
        bytes=v.H * v.c * v.N * (2 + 2 * v.P),
        launches=launches,
        working_set=3 * v.C * v.c * v.N,
        seconds=a.maximum(v.H * v.T / v.F, 2 * v.H * v.c * v.N * v.P / v.W)
        + 2 * v.H * v.c * v.N / v.W
        + launches * v.t,
    )


def library_conv(v: Values, a: Arithmetic) -> Cost:
    rows = v.B * v.H
    elementwise = rows * v.c * (3 * v.N + v.n * (4 + 2 * v.G + 2 * v.K + 2 * v.E)) + v.H * v.N * v.c
    passes = 4 * rows * v.c * v.N * v.P
    launches = a.ceiling(v.H / v.C) * (7 + v.G + 2 * v.K + v.E)
    return Cost(
        flop=rows * (2 * v.T + 3 * v.N + v.n * (v.G + 2 * v.K + v.E)),
        bytes=user_bytes(v) + elementwise + passes,
        launches=launches,
        working_set=library_set(v, v.C),
        seconds=a.maximum(2 * rows * v.T / v.F, passes / v.W)
        + elementwise / v.W
        + user_bytes(v) / v.D
        + launches * v.t
        + v.o,  # of the last launch; those before it end while others are called
    )


def monarch_filter(v: Values, a: Arithmetic) -> Cost:
    calls = a.ceiling(v.H / v.C)
    copies = 3 * v.H * v.c * v.N
    return Cost(
        bytes=copies,
        launches=3 * calls,
        working_set=6 * v.C * v.c * v.N + table_bytes(v),
        seconds=copies / v.W + 3 * calls * v.t,
    ).plus(_twiddles(v, v.H, calls))


def monarch_conv(v: Values, a: Arithmetic) -> Cost:
    rows, calls = v.B * v.H, a.ceiling(v.H / v.C)
    elementwise = rows * v.c * (7 * v.N + v.n * (4 + 2 * v.G + 2 * v.K + 2 * v.E)) + 2 * v.H * v.N * v.c
    launches = calls * (8 + v.G + 2 * v.K + v.E)
    return Cost(
        flop=rows * (6 * v.N + v.n * (v.G + 2 * v.K + v.E)),
        bytes=user_bytes(v) + elementwise,
        launches=launches,
        working_set=monarch_set(v, v.C),
        seconds=elementwise / v.W + user_bytes(v) / v.D + launches * v.t + v.o,
    ).plus(_twiddles(v, 2 * rows, 2 * calls))


def _twiddles(v: Values, transforms: Any, calls: Any) -> Cost:
    """The products between the stages of `transforms` transforms, in `calls` batched calls; nothing is permuted."""
    moved = 4 * v.c * v.N * (v.p - 1) * transforms
    launches = calls * (v.p - 1)
    return Cost(
        flop=6 * v.N * (v.p - 1) * transforms, bytes=moved, launches=launches, seconds=moved / v.W + launches * v.t
    )


def monarch_stage(v: Values, a: Arithmetic, r: Any, step: str) -> Cost:
    """One stage of radix r of all transforms of the step: N/r blocks of r x r each."""
    once = step == "filter"
    transforms = v.H if once else 2 * v.B * v.H
    calls = a.ceiling(v.H / v.C) * (1 if once else 2)
    product = a.maximum(8 * v.N * r / (v.M * a.minimum(1, r / v.U)), 4 * v.c * v.N / v.W)
    return Cost(
        flop=8 * v.N * r * transforms,
        bytes=4 * v.c * v.N * transforms,
        launches=calls,
        seconds=transforms * product + calls * v.t,
    )


def fused_filter(v: Values, a: Arithmetic) -> Cost:
    """One library FFT of every filter, the copies that place its taps before and put it into the kernel's order and
    dtype behind, and what finds its largest bin."""
    moved = v.H * v.N * (9 * 8 + 2 * v.Q)
    return Cost(
        flop=10 * v.H * v.N * a.log2(v.N) / 2,
        bytes=moved,
        launches=8 + v.K,
        working_set=v.H * v.N * (3 * 8 + 2 * v.Q),
        seconds=moved / v.W + (8 + v.K) * v.t,
    )


def fused_conv(v: Values, a: Arithmetic) -> Cost:
    """One launch, on the user's tensors."""
    return _fused(v, a, user_bytes(v) + 2 * v.H * v.N * v.Q)


def fused_dk(v: Values, a: Arithmetic) -> Cost:
    """The launch of the filter's gradient: it reads u, dy and the gates, and writes float32 sums of bins, on chip each
    program its own. Two analyses side by side are as many products as an analysis and its inverse."""
    sums = 8 * v.N * ((1 - v.S) * v.q * v.s + v.S * v.H)
    return _fused(v, a, user_bytes(v) + sums)


def turned_conv(v: Values, a: Arithmetic) -> Cost:
    """The same launch on tensors that were turned, so that times are neighbours in memory: w bytes of input and result
    for each number. A turn in front of it multiplies by the first gate, one behind it by the second, and adds."""
    own = v.B * v.H * v.n * v.w
    turns = user_bytes(v) + own
    return _fused(v, a, own + 2 * v.H * v.N * v.Q).plus(
        Cost(bytes=turns, launches=2, working_set=own, seconds=turns / v.D + 2 * v.t)
    )


def _fused(v: Values, a: Arithmetic, moved: Any) -> Cost:
    """One launch that moves `moved` bytes of sequences and spectra.

    A tile of s N points is 2 products with A1, block-diagonal but done whole, and 2 with B2: 8 R s^2 N n1 + 16 s N n2
    FLOP. With an outer stage A1 acts on complex rows, A0 takes 8 R N n0 more, and scratch is written twice and read
    twice, or the filter's gradient's, which is twice as much, once. Seconds: launch_cost.py.
    """
    tiles = v.H * a.ceiling(v.B / v.R)
    on_chip = (1 - v.S) * v.s * (8 * v.R * v.n1 + 16 * v.n2)
    flop = tiles * v.N * (on_chip + v.S * (8 * v.R * v.n0 + 16 * v.s * v.n1 + 16 * v.n2))
    scratch = v.S * tiles * v.N * 8 * v.Q
    launch = Together(
        moved=moved + v.a * scratch,
        flop=flop,
        instructions=v.I,
        tiles=tiles,
        own=v.u,
        programs=v.q,
        threads=v.A,
        follow=v.f,
        waits=v.l,
        begins=v.o,
        bandwidth=v.D,
        matrix=v.X,
        vector=v.V,
        cores=v.m,
        held=v.O,
        call=v.t,
    )
    return Cost(
        flop=flop,
        bytes=moved + scratch,
        launches=1,
        working_set=v.Q * (2 * v.R * v.s * v.n1 * v.n1 + 4 * v.n2 * v.n2),  # the matrices A1 and B2
        seconds=together(launch, a),
    )


def native_filter(v: Values, a: Arithmetic) -> Cost:
    """Every filter transformed, in the scratch of its channel."""
    flop = v.H * v.N * v.J
    return Cost(flop=flop, bytes=v.H * v.n * v.c, working_set=2 * v.C * v.c * v.N, seconds=flop / v.X)


def native_conv(v: Values, a: Arithmetic) -> Cost:
    """One call; a row is transformed, multiplied and transformed back in cache. Memory is read ahead, and felt
    where no cache has it."""
    flop = v.B * v.H * (2 * v.N * v.J + 6 * v.N)
    gathered = v.B * v.H * v.n * (2 + v.G + v.E) * v.L
    moved = user_bytes(v)
    return Cost(
        flop=flop,
        bytes=moved,
        launches=1,
        working_set=2 * v.c * v.N * (1 + v.C),
        seconds=flop / v.X + gathered / v.Y + moved / v.D + v.t,
    )


FORMULAS: dict[tuple[str, str], Callable[[Values, Arithmetic], Cost]] = {
    ("fft", "filter"): library_filter,
    ("fft", "conv"): library_conv,
    ("monarch", "filter"): monarch_filter,
    ("monarch", "conv"): monarch_conv,
    ("fused", "filter"): fused_filter,
    ("fused", "conv"): fused_conv,
    ("fused", "dk"): fused_dk,
    ("turned", "filter"): fused_filter,
    ("turned", "conv"): turned_conv,
    ("native", "filter"): native_filter,
    ("native", "conv"): native_conv,
}
WORKING_SETS: dict[str, Callable[[Values, Any], Any]] = {"fft": library_set, "monarch": monarch_set}


def transform_work(case: str, points: Any, a: Arithmetic) -> Any:
    """T, the FLOP of the library's real transform; for Bluestein `points` is the longer transform's size m."""
    return {"even": 5, "odd": 10, "bluestein": 30}[case] * points * a.log2(points) / 2

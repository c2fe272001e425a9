"""What a Monarch product costs: formulas that print and plan alike (as in planner/fftconv/formulas.py).

A factor of c blocks, out x in, is 2 c out in FLOP a row: with p equal blocks of r = n^(1/p) that is 2 p n^(1 + 1/p)
(Monarch Mixer, arXiv 2310.12109, section 3). Seconds are FLOP / rate + bytes / bandwidth + calls. Every figure is an
estimate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.planner.step import Arithmetic, Cost

LEGEND = (
    "R rows, Q rows computed, P numbers of all factors, V numbers of a row that stages read and write, I and O "
    "numbers of a row of x and of y, e bytes of a number, X rate of products of such blocks, W bandwidth of "
    "temporaries, L rows of a group, which reads all factors, N numbers turned or permuted a second, t cost of calls, "
    "S seconds of all stages' products, C 1 where there are permutations between them, Z bytes of a number that 16-bit "
    "tensors are widened to, which are written and read at D bytes a second"
)
NOTES = (
    "Every figure is an estimate of the cost model. A block of the native kernel gets out/(out + 4) in/(in + 4) of the "
    "rate: tiles of sums are begun and stored. The order decides how many parameters the matrix has, not only its time."
)


class Values(NamedTuple):
    """The symbols of LEGEND: numbers to plan with, or sympy symbols to print."""

    R: Any
    Q: Any
    P: Any
    V: Any
    I: Any  # noqa: E741
    O: Any  # noqa: E741
    e: Any
    X: Any = 1.0
    W: Any = 1.0
    L: Any = 1
    N: Any = 1.0
    t: Any = 1.0
    S: Any = 0
    C: Any = 0
    Z: Any = 0
    D: Any = 1.0


def native(v: Values, a: Arithmetic) -> Cost:
    """One kernel: rows are turned in cache, stages multiply them, the result is turned back. Tensors of 16 bits are
    widened before, and the result rounded once."""
    flop = 2 * v.Q * v.P
    users = v.e * (v.R * (v.I + v.O) + v.P)
    widened = 2 * v.Z * (v.R * (v.I + v.O) + v.P)
    inside = a.maximum(v.e, v.Z) * (v.Q * v.V + v.P * v.Q / v.L)
    seconds = flop / v.X + v.Q * (v.I + v.O) / v.N + inside / v.W + widened / v.D + v.t
    return Cost(flop, users + widened + inside, 1, users + widened, seconds)


def staged(v: Values, a: Arithmetic) -> Cost:
    """A product for each factor, planned by itself, and between them permutations that are copies."""
    copied = v.C * v.R * v.V  # numbers
    moved = v.e * (v.R * v.V + v.P + 2 * copied)
    return Cost(2 * v.R * v.P, moved, 1 + v.C, moved, v.S + copied / v.N + v.t)

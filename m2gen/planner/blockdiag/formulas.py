"""What a product with a block-diagonal weight costs: formulas that print and plan alike.

A formula is a function of `Values` and an `Arithmetic`: on numbers it plans, on symbols `explain` prints it (as in
planner/fftconv/formulas.py). Seconds are FLOP / rate + bytes / bandwidth + calls: a roofline whose two parts do not
overlap. Every figure is an estimate; the rates are those of the rows in m2gen/device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.planner.step import Arithmetic, Cost

LEGEND = (
    "R rows, k and n columns and rows of a block, b blocks, e bytes of a number, u results of a row, A passes over "
    "the result behind the product (bias, activation), G 1 with a gated linear unit, c 1 where blocks are copied "
    "apart, M rate of products, D memory bandwidth, W bandwidth of temporaries, t cost of a call, w columns of a tile, "
    "P 1 where the weight is packed before, N numbers that a packing turns a second, Z bytes of a number that 16-bit "
    "tensors are widened to (0: they are not), B 1 with a bias, S 1 with a residual that is added at the end"
)
NOTES = (
    "Every figure is an estimate of the cost model. A native kernel computes whole tiles: n is rounded up to tiles of "
    "w columns."
)


class Values(NamedTuple):
    """The symbols of LEGEND, in one order: numbers to plan with, or sympy symbols to print."""

    R: Any
    k: Any
    n: Any
    b: Any
    e: Any
    u: Any
    A: Any
    G: Any
    c: Any
    M: Any
    D: Any
    W: Any
    t: Any
    w: Any = 1
    P: Any = 0
    N: Any = 1.0
    Z: Any = 0
    B: Any = 0
    S: Any = 0


def library(v: Values, a: Arithmetic) -> Cost:
    """A product of PyTorch's, and elementwise operators for what comes behind; blocks stand side by side in a row, so
    results of several are copied to where they belong."""
    result = v.R * v.b * v.n
    flop = 2 * v.R * v.b * v.k * v.n
    behind = v.e * (2 * v.c * result + 2 * v.A * result + v.G * (result + v.R * v.u) + 2 * v.S * v.R * v.u)
    moved = v.e * (v.R * v.b * v.k + v.b * v.k * v.n + result + v.B * v.b * v.n + v.S * v.R * v.u) + behind
    calls = 1 + v.c + v.A + v.G + v.S
    seconds = flop / v.M + (moved - behind) / v.D + behind / v.W + calls * v.t
    return Cost(flop, moved, calls, moved, seconds)


def native(v: Values, a: Arithmetic) -> Cost:
    """One generated kernel, and one before it that packs the weight where rows are many."""
    tiles = a.ceiling(v.n / v.w) * v.w
    flop = 2 * v.R * v.b * v.k * tiles
    weight = v.b * v.k * tiles
    tensors = v.R * v.b * v.k + v.b * v.k * v.n + (1 + v.S) * v.R * v.u
    own = v.e * (tensors + v.B * v.b * v.n) + 2 * v.P * weight * a.maximum(v.e, v.Z)
    widened = 2 * v.Z * tensors
    calls = 1 + v.P + a.minimum(v.Z, 3 + v.S)
    seconds = flop / v.M + own / v.D + widened / v.W + weight / v.N + calls * v.t
    return Cost(flop, own + widened, calls, own + widened, seconds)

"""What a convolution in passes over memory costs, and the memory that it works in.

A pass reads or writes sequences on one side and scratch on the other, at the bandwidth of memory; between the passes
the rows' own convolutions are a fused convolution of as many channels, whose cost is that of `fused_estimates`. Scratch
holds complex rings in the products' dtype, a pair of batch rows each on the cyclic ring, one on the causal.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.survey import held
from m2gen.planner.fftconv.backward import of_launch, transforms_of
from m2gen.planner.fftconv.cost import fused_values
from m2gen.planner.fftconv.formulas import FORMULAS
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.step import NUMBERS, Arithmetic, Cost, Estimate

LEGEND = (
    "B batch, H channels, n sequence, N points of the ring, e bytes of a user's number, Q of one in scratch, G gates, "
    "K skip, E 1 where something is added, T complex rows of a channel, c chunks, v outer stages, y times of a copy "
    "that their passes take, r sum of their radices, X rate of products, D bandwidth of memory, t cost of a call, f, b "
    "and j FLOP, bytes and seconds of the convolutions between the passes, w bytes of a number of tensors that were "
    "turned, as input and as result (0: none are)"
)
# Times that a pass with radix n0 takes which a copy of the same bytes takes: prototypes on an H100, 2026-11-26, 402 M
# numbers of 16 bits with a gate: 0.81 and 0.85 ms with 32, 0.85 and 1.00 with 64, 1.40 and 1.73 with 128, of 0.83.
SLOWER = {16: 1.0, 32: 1.0, 64: 1.11, 128: 1.9}
# Times of a copy of its bytes that the library's way to a spectrum takes: 1.2 ms at 32 K points of 768 channels, the
# longest measured (H100, 2026-11-26), where a copy takes 0.63.
_LIBRARY = 1.9
_WAVES = 2  # times the programs that all multiprocessors hold at once


class PassValues(NamedTuple):
    """The symbols of LEGEND."""

    B: Any
    H: Any
    n: Any
    N: Any
    e: Any
    Q: Any
    G: Any
    K: Any
    E: Any
    T: Any
    c: Any
    v: Any
    y: Any
    r: Any
    X: Any
    D: Any
    t: Any
    f: Any
    b: Any
    j: Any
    w: Any = 0


def passes_filter(v: PassValues, a: Arithmetic) -> Cost:
    """As of a fused kernel, chunk by chunk: placed, transformed by the library, scaled, put into the kernel's order."""
    moved = v.H * v.N * (9 * 8 + 2 * v.Q)
    return Cost(
        flop=10 * v.H * v.N * a.log2(v.N) / 2,
        bytes=moved,
        launches=(8 + v.K) * v.c,
        working_set=v.H / v.c * filter_bytes(v.N, v.Q),
        seconds=_LIBRARY * moved / v.D + (8 + v.K) * v.c * v.t,
    )


def passes_conv(v: PassValues, a: Arithmetic) -> Cost:
    """Two passes a stage, the outermost on the user's tensors."""
    return _passes(v, a, _users(v))


def turned_passes(v: PassValues, a: Arithmetic) -> Cost:
    """The same on tensors that were turned, so that times are neighbours in memory: w bytes of input and result for
    each number. A turn in front multiplies by the first gate, one behind by the second, and adds."""
    own = v.B * v.H * v.n * v.w
    turns = _users(v) + own
    return _passes(v, a, own).plus(Cost(bytes=turns, launches=2, working_set=own, seconds=turns / v.D + 2 * v.t))


def _users(v: PassValues) -> Any:
    """Bytes of the user's tensors."""
    return v.B * v.H * v.n * v.e * (2 + v.G + v.E)


def _passes(v: PassValues, a: Arithmetic, own: Any) -> Cost:
    """Passes, the outermost on `own` bytes of sequences."""
    scratch = 2 * v.T * v.H * v.N * v.Q
    moved = own + 2 * scratch + 4 * (v.v - 1) * scratch
    flop = 16 * v.T * v.H * v.N * v.r
    launches = (2 * v.v + 1) * v.c
    return Cost(
        flop=flop + v.f,
        bytes=moved + v.b,
        launches=launches,
        working_set=v.H / v.c * forward_bytes(v.N, v.Q, v.T),
        seconds=a.maximum(v.y * moved / v.D, flop / v.X) + v.j + launches * v.t,
    )


def filter_bytes(points: Any, operand: Any, library: bool = True) -> Any:
    """Bytes a channel while its filter is transformed: by the library taps, their transform and its scratch, by
    generated kernels rows in place; and the spectrum."""
    return points * ((3 if library else 1) * 8 + 2 * operand)


def forward_bytes(points: Any, operand: Any, tiles: Any) -> Any:
    """Bytes a channel of a forward pass: the filter's spectrum and scratch."""
    return points * (2 * operand + 2 * operand * tiles)


def backward_bytes(points: int, operand: int, tiles: int) -> int:
    """Bytes a channel at most of a backward pass: two scratch and the filter gradient's sums, or those transformed."""
    return points * max(2 * operand + 4 * operand * tiles + 2 * 8, 4 * 8)


def at_once(spec: FftConvSpec, limits: DeviceLimits, waves: int = _WAVES) -> int:
    """Programs of a launch."""
    return waves * limits.cores * held(spec, limits)


def rows_estimate(
    size: int, channels: int, batch: int, spec: FftConvSpec, limits: DeviceLimits, programs: int = 0
) -> Estimate:
    """What a launch between the passes costs on rings of `size` points, `batch` rows of scratch to each of `channels`
    spectra: as on chip, but that programs go on from one channel to the next."""
    if spec.part == "bwd":
        return _of_several(channels, -(-batch // spec.batch_rows), spec, limits, programs)
    of = FftConvProblem(n=size, h=channels, b=batch, dtype=spec.dtype, mode="circular")
    tiles = -(-batch // spec.batch_rows)
    shared = tiles if spec.part == "dk" else 1  # which one program does
    count = min(channels * tiles // shared, at_once(spec, limits))
    most = -(-channels * tiles // shared // count) * shared
    numbers = fused_values(of, spec, limits, count=channels)._replace(q=count, u=most)
    return Estimate(*map(float, FORMULAS["fused", "dk" if spec.part == "dk" else "conv"](numbers, NUMBERS)))


def _of_several(channels: int, tiles: int, spec: FftConvSpec, limits: DeviceLimits, programs: int) -> Estimate:
    """A launch of several gradients, `tiles` tiles to each of `channels` spectra, which one program does: what is given
    is written over what is read."""
    operand, size = COMPUTE_BYTES[spec.compute], spec.size
    scratch = 2 * operand * channels * tiles * size
    sums = 8 * channels * size if "dk" in spec.results else 0
    spectra = 2 * operand * channels * size if {"conv", "du"} & set(spec.results) else 0
    moved = transforms_of(spec) * scratch + spectra + sums
    count = min(channels, programs or at_once(spec, limits))
    own = -(-channels // count) * tiles
    return of_launch(
        spec, limits, moved=moved, tiles=channels * tiles, programs=count, blocks=held(spec, limits), own=own
    )

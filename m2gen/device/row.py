"""A row of the device table: the limits of one architecture, and the constants that its cost model needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, log
from typing import Any, Literal

KIB, MIB, GIB = 2**10, 2**20, 2**30

# the constants of a CPU's row that measurements can be fitted to: figures, curves of (at, figure), a pair
SCALARS = ("native_numbers", "native_across", "native_call", "call_seconds", "matrix32")
CURVES = ("native_shares", "native_passes", "native_streams", "fft_rates", "fft_rows", "bandwidths")
PAIRS = ("fft_mixed",)
# those of a GPU's row, beside what is in the formulas for all (planner/fftconv/launch_cost.py)
LATENCIES = (
    "follow_seconds",
    "product_seconds",
    "fetch_seconds",
    "unpiped_seconds",
    "program_seconds",
    "scratch_seconds",
    "strided_seconds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimits:
    """The limits of one architecture, and the constants its cost model needs."""

    arch: str
    kind: Literal["gpu", "cpu"]
    description: str  # the product that the row describes
    cores: int  # streaming multiprocessors, compute units; 1 for a CPU
    matrix16: float  # matrix rate, 16-bit operands and 32-bit sums
    matrix32: float  # matrix rate in full float32 (no TF32): what a complex64 product gets
    vector32: float  # elementwise float32 rate
    fp64_ratio: float  # float64 rate / float32 rate
    matrix_unit: int  # inner size below which a product wastes the unit: r/unit of the rate
    dram_bandwidth: float  # streaming tensors that exist already
    bandwidths: tuple[tuple[int, float], ...]  # temporaries: (working set in bytes, bytes/s), between points by log
    fft_rates: tuple[tuple[int, float], ...]  # the FFT library: (points, FLOP/s of 2.5 N log2 N), between points by log
    fft_rows: tuple[tuple[int, float], ...]  # (rows in one call, share of that rate), between points by log
    fft_mixed: tuple[float, float]  # share of that rate at (even, odd) sizes that are no power of two
    fft_pass_points: int  # points the library's FFT does in one pass over memory
    chunk_bytes: int  # working set to aim for when channels are done in chunks
    call_seconds: float  # fixed cost of one library call or kernel launch
    memory_bytes: int
    elementwise: float = 1.0  # share of a bandwidth that the library's elementwise kernels reach
    shared_bytes: int = 0  # per block (GPU)
    registers: int = 0  # 32-bit registers per multiprocessor (GPU)
    l1_bytes: int = 0  # of a multiprocessor, shared memory's part of it among them (GPU)
    l2_halves: int = 1  # parts of the L2 cache, each of which keeps what its own multiprocessors use (GPU)
    # seconds of a generated kernel's programs (GPU), planner/fftconv/launch_cost.py:
    follow_seconds: float = 0.0  # from an instruction of a warp to the next
    product_seconds: float = 0.0  # that a product takes to go through shared memory, its barriers among them
    fetch_seconds: float = 0.0  # that a tile waits for its data
    unpiped_seconds: float = 0.0  # more where nothing is fetched ahead
    program_seconds: float = 0.0  # that a program takes to begin and end
    scratch_seconds: float = 0.0  # that a thread takes for each byte which it writes to memory and reads again
    strided_seconds: float = 0.0  # that a thread takes for each number whose neighbours in memory are others'
    vector_bytes: int = 0  # vector register (CPU)
    native_rate: float = 0.0  # operations/s of generated C++ transforms in float32 (CPU)
    native_shares: tuple[tuple[int, float], ...] = ((1, 1.0),)  # (points of a ring, share of that rate), between by log
    native_passes: tuple[tuple[int, float], ...] = ()  # (radix, operations for each point beyond the FLOP of its pass)
    native_streams: tuple[tuple[int, float], ...] = ((1, 1e10),)  # (bytes a call, bytes/s of the user's tensors)
    native_numbers: float = 1e9  # numbers/s that are converted, gated and copied into rows and back
    native_across: float = 1e9  # the same, where channels are neighbours in memory
    permuted_numbers: float = 0.0  # numbers/s of PyTorch's copies that permute small blocks; 0: as the bandwidth lets
    native_call: float = 0.0  # seconds of one call; 0: call_seconds
    languages: tuple[str, ...] = ("cpp",)  # that generated kernels can be written in for it
    sources: tuple[tuple[str, str], ...] = ()  # (fields, where the figure is from)
    exact: str = ""  # the architecture of the device at hand where it is another than the row's: code is made for it

    @property
    def compiled_for(self) -> str:
        """The architecture that compilers are told."""
        return self.exact or self.arch

    def __hash__(self) -> int:
        """Of what differs between devices: it is asked at every call."""
        return hash((self.arch, self.description, self.cores, self.memory_bytes, self.languages))

    def bandwidth(self, working_set: float) -> float:
        """Bytes/s for temporaries where `working_set` bytes are in use."""
        return _between(self.bandwidths, working_set)

    def fft_rate(self, points: int, rows: int) -> float:
        """FLOP/s of the FFT library on `rows` rows of `points` points a call."""
        shape = 1.0 if points.bit_count() == 1 else self.fft_mixed[points % 2]
        return _between(self.fft_rates, points) * _between(self.fft_rows, rows) * shape

    def native_share(self, points: int) -> float:
        """The share of `native_rate` that a ring of `points` points reaches."""
        return _between(self.native_shares, points)

    def native_stream(self, moved: float) -> float:
        """Bytes/s at which a native kernel's call reads and writes `moved` bytes of the user's tensors."""
        return _between(self.native_streams, moved)


def _between(curve: tuple[tuple[int, float], ...], at: float) -> float:
    """The curve's value at `at`: constant outside its points, a straight line in log-log between them."""
    right = bisect_right(curve, (at, float("inf")))
    if right == 0 or right == len(curve):
        return curve[min(right, len(curve) - 1)][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    share = log(at / x0) / log(x1 / x0)
    return float(y0 * (y1 / y0) ** share)


def refitted(row: DeviceLimits, constants: Mapping[str, Any]) -> DeviceLimits:
    """The row with other constants. ValueError unless each is of the fitted ones, and like the row's own: a positive
    number, or a curve of them at the same points."""
    changed: dict[str, Any] = {}
    for name, value in constants.items():
        own = getattr(row, name, None)
        if name in SCALARS or (row.kind == "gpu" and name in LATENCIES):
            changed[name] = _positive(name, value)
        elif name in CURVES and [at for at, _ in value] == [at for at, _ in own or ()]:
            changed[name] = tuple((int(at), _positive(name, figure)) for at, figure in value)
        elif name in PAIRS and len(value) == len(own or ()):
            changed[name] = tuple(_positive(name, figure) for figure in value)
        else:
            raise ValueError(f"{name} is no constant that is fitted, or has other points")
    return replace(row, **changed)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (isfinite(value) and value > 0):
        raise ValueError(f"{name} has the value {value!r}")
    return float(value)

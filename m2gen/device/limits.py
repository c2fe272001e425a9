"""What the planner knows of a device: one frozen row per architecture, the source of every figure beside it.

Rates are FLOP/s (a multiply-add counts two), bandwidths bytes/s, times seconds, sizes bytes. GPU rows describe the
whole device, CPU rows ONE core. GPU rates are data-sheet peaks without sparsity, CPU rates what PyTorch was seen to
reach. Data sheets were read as public pages quote them; "[unverified]" marks a figure that was found in none.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from math import log
from typing import Literal

from m2gen.errors import PlanError

KIB, MIB, GIB = 2**10, 2**20, 2**30


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
    shared_bytes: int = 0  # per block (GPU)
    registers: int = 0  # 32-bit registers per multiprocessor (GPU)
    vector_bytes: int = 0  # vector register (CPU)
    native_rate: float = 0.0  # operations/s of generated C++ transforms in float32 (CPU)
    native_shares: tuple[tuple[int, float], ...] = ((1, 1.0),)  # (points of a ring, share of that rate), between by log
    native_pass: float = 0.0  # operations for each point that a pass costs beyond its FLOP
    native_numbers: float = 1e9  # numbers/s that are converted, gated and copied into rows and back
    native_across: float = 1e9  # the same, where channels are neighbours in memory
    native_call: float = 0.0  # seconds of one call; 0: call_seconds
    languages: tuple[str, ...] = ("cpp",)  # that generated kernels can be written in for it
    sources: tuple[tuple[str, str], ...] = ()  # (fields, where the figure is from)

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


def _between(curve: tuple[tuple[int, float], ...], at: float) -> float:
    """The curve's value at `at`: constant outside its points, a straight line in log-log between them."""
    right = bisect_right(curve, (at, float("inf")))
    if right == 0 or right == len(curve):
        return curve[min(right, len(curve) - 1)][1]
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    share = log(at / x0) / log(x1 / x0)
    return float(y0 * (y1 / y0) ** share)


_CUDA = "CUDA programming guide, technical specifications per compute capability [unverified]"
_GPU_RULES = (
    (
        "fft_rates, fft_pass_points",
        "estimated: memory binds a batched FFT; a quarter of vector32, a pass per 8192 points",
    ),
    ("chunk_bytes", "chosen: 2 GiB or a sixteenth of memory, the less, to bound the temporaries"),
    ("call_seconds", "estimated: a PyTorch call with its launch"),
)


def _gpu(
    arch: str,
    description: str,
    *,
    cores: int,
    matrix16: float,
    vector32: float,
    fp64_ratio: float,
    dram_bandwidth: float,
    l2: tuple[int, float],
    memory_bytes: int,
    shared_bytes: int,
    sources: tuple[tuple[str, str], ...],
    registers: int = 65536,
    on_chip: str = _CUDA,
    matrix32: float | None = None,
) -> DeviceLimits:
    """A GPU's row: the figures of its data sheet, and the rules that hold for every GPU filled in."""
    l2_bytes, l2_bandwidth = l2
    return DeviceLimits(
        arch=arch,
        kind="gpu",
        languages=("triton",),
        description=description,
        cores=cores,
        matrix16=matrix16,
        matrix32=vector32 if matrix32 is None else matrix32,
        vector32=vector32,
        fp64_ratio=fp64_ratio,
        matrix_unit=16,
        dram_bandwidth=dram_bandwidth,
        bandwidths=((l2_bytes, l2_bandwidth), (2 * l2_bytes, dram_bandwidth)),
        fft_rates=((1, vector32 / 4),),
        fft_rows=((1, 1.0),),
        fft_mixed=(0.8, 0.5),
        fft_pass_points=8192,
        chunk_bytes=min(2 * GIB, memory_bytes // 16),
        call_seconds=5e-6,
        memory_bytes=memory_bytes,
        shared_bytes=shared_bytes,
        registers=registers,
        sources=(*sources, ("shared_bytes, registers", on_chip), *_GPU_RULES),
    )


_GPUS = (
    _gpu(
        "sm80",
        "NVIDIA A100 SXM 80 GB",
        cores=108,
        matrix16=312e12,
        vector32=19.5e12,
        fp64_ratio=9.7 / 19.5,
        dram_bandwidth=2.039e12,
        l2=(40 * MIB, 5e12),
        memory_bytes=80 * 10**9,
        shared_bytes=163 * KIB,
        sources=(
            ("cores, matrix16, vector32, fp64_ratio, dram_bandwidth, memory_bytes", "NVIDIA A100 data sheet"),
            ("L2 size; L2 bandwidth", "NVIDIA Ampere white paper; estimated, 2.5 times DRAM"),
        ),
    ),
    _gpu(
        "sm86",
        "NVIDIA GeForce RTX 3090",
        cores=82,
        matrix16=71.2e12,
        vector32=35.6e12,
        fp64_ratio=1 / 64,
        dram_bandwidth=936e9,
        l2=(6 * MIB, 2e12),
        memory_bytes=24 * GIB,
        shared_bytes=99 * KIB,
        sources=(
            ("vector32, L2 size", "NVIDIA GA102 white paper"),
            (
                "cores, matrix16 (32-bit sums), fp64_ratio, dram_bandwidth, memory_bytes",
                "NVIDIA GA102 white paper [unverified]",
            ),
            ("L2 bandwidth", "estimated"),
        ),
    ),
    _gpu(
        "sm89",
        "NVIDIA GeForce RTX 4090",
        cores=128,
        matrix16=165.2e12,
        vector32=82.6e12,
        fp64_ratio=1 / 64,
        dram_bandwidth=1008e9,
        l2=(72 * MIB, 4e12),
        memory_bytes=24 * GIB,
        shared_bytes=99 * KIB,
        sources=(
            (
                "cores, matrix16 (32-bit sums), vector32, fp64_ratio, dram_bandwidth, memory_bytes",
                "NVIDIA Ada white paper",
            ),
            ("L2 size; L2 bandwidth", "NVIDIA Ada white paper; estimated, 4 times DRAM"),
        ),
    ),
    _gpu(
        "sm90",
        "NVIDIA H100 SXM5 80 GB",
        cores=132,
        matrix16=989.4e12,
        vector32=66.9e12,
        fp64_ratio=0.5,
        dram_bandwidth=3.35e12,
        l2=(50 * MIB, 5.5e12),
        memory_bytes=80 * 10**9,
        shared_bytes=227 * KIB,
        sources=(
            ("cores, matrix16, vector32, fp64_ratio, dram_bandwidth, memory_bytes, L2 size", "NVIDIA H100 data sheet"),
            ("L2 bandwidth", "estimated"),
        ),
    ),
    _gpu(
        "sm100",
        "NVIDIA B200 (HGX, 1000 W)",
        cores=148,
        matrix16=2250e12,
        vector32=80e12,
        fp64_ratio=0.5,
        dram_bandwidth=7.7e12,
        l2=(96 * MIB, 15e12),
        memory_bytes=180 * 10**9,
        shared_bytes=227 * KIB,
        sources=(
            ("matrix16, vector32, fp64_ratio", "NVIDIA Blackwell architecture brief, HGX B200"),
            ("cores, dram_bandwidth", "third-party specification pages; the data sheet says 8e12 at most"),
            ("memory_bytes, L2 size", "[unverified]: pages disagree (180 to 192 GB; 65 to 96 MB)"),
            ("L2 bandwidth", "estimated"),
        ),
    ),
    _gpu(
        "sm120",
        "NVIDIA GeForce RTX 5090",
        cores=170,
        matrix16=209.6e12,
        vector32=104.8e12,
        fp64_ratio=1 / 64,
        dram_bandwidth=1792e9,
        l2=(96 * MIB, 7e12),
        memory_bytes=32 * GIB,
        shared_bytes=99 * KIB,
        sources=(
            ("cores, vector32, dram_bandwidth, memory_bytes, L2 size", "NVIDIA GeForce RTX 5090 specifications"),
            (
                "matrix16 (32-bit sums), fp64_ratio",
                "estimated: a quarter of the 838e12 quoted sparse; 1/64 [unverified]",
            ),
            ("L2 bandwidth", "estimated, 4 times DRAM"),
        ),
    ),
    _gpu(
        "gfx942",
        "AMD Instinct MI300X",
        cores=304,
        matrix16=1307e12,
        vector32=163.4e12,
        fp64_ratio=0.5,
        dram_bandwidth=5.3e12,
        l2=(256 * MIB, 10e12),
        memory_bytes=192 * 10**9,
        shared_bytes=64 * KIB,
        registers=131072,
        on_chip="AMD CDNA 3 documents [unverified]",
        sources=(
            ("cores, dram_bandwidth, memory_bytes", "AMD MI300X data sheet and ROCm architecture pages"),
            (
                "matrix16, vector32, fp64_ratio",
                "AMD MI300X data sheet [unverified]; a page quotes 2615e12 with sparsity",
            ),
            ("l2 (the shared Infinity Cache, behind 4 MiB L2 a die)", "[unverified]; bandwidth estimated"),
        ),
    ),
)

_AVX2_MEASURED = "measured 2026-11-23, one core of an AMD EPYC (Zen 3), PyTorch 2.13 with MKL, float32"
_CPUS = (
    DeviceLimits(
        arch="avx2",
        kind="cpu",
        description="one core of an AMD EPYC (Zen 3)",
        cores=1,
        matrix16=1.5e9,
        matrix32=72e9,
        vector32=7e9,
        fp64_ratio=0.43,
        matrix_unit=16,
        dram_bandwidth=11e9,
        bandwidths=((8 * MIB, 42e9), (16 * MIB, 11e9), (48 * MIB, 11e9), (64 * MIB, 2.5e9)),
        fft_rates=(
            (64, 17e9),
            (256, 22e9),
            (2048, 24e9),
            (16384, 15e9),
            (65536, 13.5e9),
            (2**19, 11e9),
            (2**20, 7e9),
            (2**21, 4.5e9),
        ),
        fft_rows=((1, 0.2), (2, 0.75), (4, 1.0)),
        fft_mixed=(0.8, 0.5),
        fft_pass_points=2**40,
        chunk_bytes=4 * MIB,
        call_seconds=20e-6,
        memory_bytes=64 * GIB,
        vector_bytes=32,
        native_rate=80e9,
        sources=(
            (
                "matrix32",
                f"{_AVX2_MEASURED}: GEMM 512 to 2048 65 to 76e9, complex products of radix 16 and up 52 to 81e9",
            ),
            ("matrix16", f"{_AVX2_MEASURED}: bfloat16 GEMM 1.4 to 2.1e9, emulated"),
            ("matrix_unit", f"{_AVX2_MEASURED}: complex products of radix 4 reach 7 to 15e9, of 8 38 to 46e9"),
            ("vector32", f"{_AVX2_MEASURED}: elementwise products in cache, 12 bytes each, 62 to 82e9 bytes/s"),
            ("fp64_ratio", f"{_AVX2_MEASURED}: GEMM 29 to 32e9"),
            ("dram_bandwidth, bandwidths", f"{_AVX2_MEASURED}: copies; past 64 MiB each temporary is fresh memory"),
            ("fft_rates", f"{_AVX2_MEASURED}: rfft and irfft, rows in about 2 MiB, 4 rows from 65536 points on"),
            ("fft_rows", f"{_AVX2_MEASURED}: from 16384 points on a lone row 2.0 to 3.0e9 where two reach 5 to 10e9"),
            (
                "fft_mixed",
                f"{_AVX2_MEASURED}: 5120 to 24576 points 14 to 20e9; odd sizes 4 to 5e9 of 5/2 N log2 N, so twice that",
            ),
            ("fft_pass_points", "unused: fft_rates fall with the size instead"),
            ("native_rate", "estimated: half of avx512, by the vector's width"),
            ("chunk_bytes, call_seconds", "measured there: chunks of 2 to 4 MiB best; a chunk costs 0.17 to 0.25 ms"),
            ("memory_bytes", "assumed; the live device's own replaces it"),
        ),
    ),
    DeviceLimits(
        arch="avx512",
        kind="cpu",
        description="one core of an AMD Zen 5",
        cores=1,
        matrix16=390e9,
        matrix32=96e9,
        vector32=10e9,
        fp64_ratio=0.5,
        matrix_unit=16,
        dram_bandwidth=20e9,
        bandwidths=((16 * MIB, 75e9), (50 * MIB, 20e9), (100 * MIB, 4.5e9)),
        fft_rates=((1024, 30e9), (16384, 32e9), (65536, 29e9), (2**19, 22e9), (2**21, 10e9)),
        fft_rows=((1, 0.2), (2, 0.75), (4, 1.0)),
        fft_mixed=(0.8, 0.5),
        fft_pass_points=2**40,
        chunk_bytes=4 * MIB,
        call_seconds=10e-6,
        memory_bytes=64 * GIB,
        vector_bytes=64,
        native_rate=170e9,
        sources=(
            ("matrix32", "measured, Zen 5: float32 GEMM through PyTorch 94 to 99e9 (oneDNN 144 to 174e9)"),
            ("matrix16", "measured, Zen 5: oneDNN bfloat16 333 to 450e9"),
            ("bandwidths", "measured, Zen 5: a copy of 25 MB takes 1.3 ms, of 50 MB 22 ms; the middle estimated"),
            ("fft_rates", "estimated from a measured chunked convolution: 768 rows of 8192, causal, in 33.9 ms"),
            ("fft_rows, larger fft_rates, dram_bandwidth, vector32, fp64_ratio, matrix_unit", "estimated, after avx2"),
            ("chunk_bytes, call_seconds", "estimated: chunks of 16 rows of 8192 were best there"),
            ("native_rate", "measured, Zen 5: 768 channels of 1024 to 32768, causal, 160 to 180e9 with g++ 12"),
            ("memory_bytes", "assumed; the live device's own replaces it"),
        ),
    ),
    DeviceLimits(
        arch="neon",
        kind="cpu",
        description="one core of a 64-bit Arm server, nothing measured",
        cores=1,
        matrix16=35e9,
        matrix32=35e9,
        vector32=4e9,
        fp64_ratio=0.5,
        matrix_unit=16,
        dram_bandwidth=10e9,
        bandwidths=((8 * MIB, 30e9), (32 * MIB, 10e9), (64 * MIB, 3e9)),
        fft_rates=((1024, 8e9), (65536, 5e9), (2**20, 2e9)),
        fft_rows=((1, 1.0),),
        fft_mixed=(0.8, 0.5),
        fft_pass_points=2**40,
        chunk_bytes=2 * MIB,
        call_seconds=15e-6,
        memory_bytes=64 * GIB,
        vector_bytes=16,
        native_rate=25e9,
        sources=(("all", "estimated: half of avx2, by the vector's width"),),
    ),
    DeviceLimits(
        arch="generic",
        kind="cpu",
        description="one core of any other CPU, nothing measured",
        cores=1,
        matrix16=8e9,
        matrix32=8e9,
        vector32=1e9,
        fp64_ratio=0.5,
        matrix_unit=8,
        dram_bandwidth=8e9,
        bandwidths=((4 * MIB, 16e9), (16 * MIB, 8e9), (64 * MIB, 2.5e9)),
        fft_rates=((1024, 3e9), (65536, 2e9), (2**20, 1e9)),
        fft_rows=((1, 1.0),),
        fft_mixed=(0.8, 0.5),
        fft_pass_points=2**40,
        chunk_bytes=2 * MIB,
        call_seconds=20e-6,
        memory_bytes=16 * GIB,
        vector_bytes=8,
        native_rate=8e9,
        sources=(("all", "estimated: scalar code at a tenth of avx2"),),
    ),
)

LIMITS: dict[str, DeviceLimits] = {row.arch: row for row in (*_GPUS, *_CPUS)}


def target(name: str) -> DeviceLimits:
    """The row of architecture `name`."""
    if name not in LIMITS:
        raise PlanError(f"target {name!r}", "no such architecture in the table", f"use one of {', '.join(LIMITS)}")
    return LIMITS[name]

"""The GPU rows of the device table: whole devices, from data sheets."""

from __future__ import annotations

from typing import Any

from m2gen.device.row import GIB, KIB, MIB, DeviceLimits

_CUDA = "CUDA programming guide, technical specifications per compute capability [unverified]"
_GPU_RULES = (
    (
        "fft_rates, fft_pass_points",
        "estimated: memory binds a batched FFT; a quarter of vector32, a pass per 8192 points",
    ),
    ("chunk_bytes", "chosen: 2 GiB or a sixteenth of memory, the less, to bound the temporaries"),
    ("call_seconds", "estimated: a PyTorch call with its launch"),
    (
        "elementwise",
        "fitted to 12 layers of M2-BERT on an H100, 2026-11-26, torch 2.11: 46 ms; taken for all",
    ),
    (
        "follow_seconds, product_seconds",
        "fitted to 99 launches of kernels on an H100, 2026-11-26, Triton 3.6; of others as many cycles, not fitted",
    ),
    (
        "fetch_seconds, unpiped_seconds, program_seconds, scratch_seconds, strided_seconds",
        "fitted to the same; taken for all, not fitted there",
    ),
    ("l1_bytes", _CUDA),
    ("l2_halves", "NVIDIA Ampere and Hopper white papers; one where nothing is known of parts"),
)
# m2gen tune --fit --from bench/results/2026-11-26-gpu-kernels-h100.json \
#     --from bench/results/2026-11-26-gpu-profile-h100.json --target sm90
_H100 = {
    "follow_seconds": 6.89e-10,
    "product_seconds": 1.05e-07,
    "fetch_seconds": 1.95e-06,
    "unpiped_seconds": 4.44e-07,
    "program_seconds": 6.64e-06,
    "scratch_seconds": 2.06e-08,
    "strided_seconds": 1.59e-07,
}
_CYCLES, _H100_CLOCK = ("follow_seconds", "product_seconds"), 1.98e9  # what goes with the clock


def _latencies(clock: float) -> dict[str, Any]:
    """Those of an H100, in a device of another clock."""
    return {name: value * (_H100_CLOCK / clock if name in _CYCLES else 1) for name, value in _H100.items()}


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
    clock: float,
    l1_bytes: int,
    l2_halves: int = 1,
    sources: tuple[tuple[str, str], ...],
    registers: int = 65536,
    on_chip: str = _CUDA,
    matrix32: float | None = None,
) -> DeviceLimits:
    """A GPU's row: the figures of its data sheet, and the rules that hold for every GPU filled in. `clock` is the boost
    clock that vector32 counts with."""
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
        elementwise=0.45,
        l1_bytes=l1_bytes,
        l2_halves=l2_halves,
        **_latencies(clock),
        shared_bytes=shared_bytes,
        registers=registers,
        sources=(*sources, ("shared_bytes, registers", on_chip), *_GPU_RULES),
    )


GPUS = (
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
        clock=1.41e9,
        l1_bytes=192 * KIB,
        l2_halves=2,
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
        clock=1.695e9,
        l1_bytes=128 * KIB,
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
        clock=2.52e9,
        l1_bytes=128 * KIB,
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
        clock=1.98e9,
        l1_bytes=256 * KIB,
        l2_halves=2,
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
        clock=2.1e9,
        l1_bytes=256 * KIB,
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
        clock=2.41e9,
        l1_bytes=128 * KIB,
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
        clock=2.1e9,
        l1_bytes=96 * KIB,
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

# other names of rows: the GPUs that they are of, and others of their architectures, whose memory and rates differ
CARDS = {"a100": "sm80", "3090": "sm86", "4090": "sm89", "h100": "sm90", "b200": "sm100", "5090": "sm120"}
CARDS |= {"mi300x": "gfx942"}
NEAR = {"a10": "sm86", "a40": "sm86", "l4": "sm89", "l40s": "sm89", "h200": "sm90", "gh200": "sm90", "gb200": "sm100"}
NEAR |= {"mi300a": "gfx942", "mi325x": "gfx942"}

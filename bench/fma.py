"""What one core reaches, measured: fused multiply-adds and copies. What a share of the roofline is a share of."""

from __future__ import annotations

import time

import torch

from m2gen.codegen.render import Source

CHAINS = 24  # independent ones, enough to hide the latency of two units
TEXT = """
#include <cstdint>
typedef float vec __attribute__((vector_size({bytes})));
extern "C" int64_t fma_peak_scratch(const int64_t *) {{ return 0; }}
extern "C" void fma_peak(void *const *ptrs, const int64_t *ints, void *, int64_t, int64_t) {{
    vec *out = (vec *)ptrs[0];
    vec scale = vec{{}} + 0.999f, shift = vec{{}} + 0.001f;
    vec {names};
    for (int64_t i = 0; i < ints[0]; i++) {{
        {steps}
    }}
    *out = {total};
}}
"""


def peak_gflops(turns: int = 4_000_000) -> float:
    """GFLOP/s of float32 on one core, a multiply-add counted as two; the best of five."""
    from m2gen.runtime.build.cpp_kernel import load_source

    wide = torch.backends.cpu.get_cpu_capability().upper().startswith("AVX512")
    size = 64 if wide else 32
    names = [f"x{i}" for i in range(CHAINS if wide else 12)]
    text = TEXT.format(
        bytes=size,
        names=", ".join(f"{name} = shift * {i}.0f" for i, name in enumerate(names)),
        steps=" ".join(f"{name} = {name} * scale + shift;" for name in names),
        total=" + ".join(names),
    )
    kernel = load_source(Source("fma_peak", text))
    out = torch.zeros(32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        kernel.run([out.data_ptr()], [turns], 1)
        best = min(best, time.perf_counter() - start)
    return 2 * len(names) * size / 4 * turns / best / 1e9


def copy_gbs(mib: int = 256) -> float:
    """GB/s of copying float32 that lies in memory to memory touched before, bytes read and bytes written counted; the
    best of five."""
    source, target = torch.zeros(mib * 2**18), torch.zeros(mib * 2**18)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - start)
    return 2 * mib * 2**20 / best / 1e9

"""What the compilers make of the generated kernels, one line for each kernel and architecture.

    python tests/kernels/audit.py > tests/kernels/audit.txt

A minute on two cores.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.runtime.cross_compile import TARGETS, Compiled, Job, compile_all


def spec(text: str) -> FftConvSpec:
    """A spec from words: part, ring, radices, dtype/compute, w and s, flags."""
    part, ring, radices, dtypes, warps, stages, *flags = text.split()
    *outer, n1, n2 = map(int, radices.split("x"))
    dtype, compute = dtypes.split("/")
    return FftConvSpec(
        part="dk" if part == "dk" else "fwd",
        ring="causal" if ring == "causal" else "cyclic",
        n0=outer[0] if outer else 1,
        n1=n1,
        n2=n2,
        dtype=dtype,
        compute=compute,
        pre_gate="gated" in flags,
        post_gate="gated" in flags,
        reverse="reverse" in flags,
        wrap="wrap" in flags,
        num_warps=int(warps[1:]),
        num_stages=int(stages[1:]),
    )


EVERYWHERE = (
    "fwd cyclic 16x16 fp16/fp16 w4 s2",
    "fwd causal 32x32 bf16/fp16 w4 s1 gated",
    "dk causal 16x32 fp16/fp16 w4 s1 gated",
    "fwd causal 64x32 fp16/fp16 w4 s1",
)
FAMILIES = (  # of architectures with the same matrix instructions: the first of each
    "fwd cyclic 16x32 fp16/fp16 w4 s1 wrap gated",
    "fwd cyclic 16x32 fp16/fp16 w4 s1 wrap reverse",
    "dk cyclic 32x32 bf16/fp16 w8 s1",
)
LARGE = (
    "fwd cyclic 64x64 fp16/fp16 w4 s2 gated",
    "fwd causal 64x64 bf16/fp16 w8 s2 gated",
    "fwd causal 32x32x16 fp16/fp16 w8 s1 gated",
    "fwd cyclic 32x32x32 fp16/fp16 w8 s2 gated",
    "dk cyclic 32x16x16 bf16/fp16 w4 s2",
)
ON = {
    "sm80": ("fwd causal 32x32 fp32/fp32 w8 s1",),
    "sm90": (
        "fwd causal 32x32 fp32/fp32 w8 s1",
        "fwd cyclic 64x64 fp16/bf16 w4 s1",
        "dk cyclic 64x64 fp16/fp16 w8 s1",
        "dk causal 64x64 fp16/fp16 w8 s1 gated",
        "fwd causal 64x64 fp16/fp16 w8 s1 gated reverse",
        "fwd cyclic 128x64 fp16/fp16 w8 s1 gated",
        "fwd causal 128x64 fp16/fp16 w8 s1 gated",
    ),
    "gfx942": (*FAMILIES, "fwd causal 64x64 fp16/fp16 w4 s1 gated", "dk cyclic 64x64 fp16/fp16 w4 s1"),
}


def jobs() -> Iterator[tuple[str, Job]]:
    """The committed list: (words, job)."""
    for arch in TARGETS:
        words = EVERYWHERE + (FAMILIES + LARGE if arch in ("sm80", "sm90", "sm100") else ()) + ON.get(arch, ())
        yield from ((text, Job(spec(text), arch)) for text in words)


def line(text: str, compiled: Compiled) -> str:
    """One line of the table."""
    if compiled.error:
        return f"{compiled.arch:<7} {text:<52} {compiled.error.splitlines()[0][:60]}"
    return (
        f"{compiled.arch:<7} {text:<52} shared {compiled.shared_bytes:>6} registers {compiled.registers:>3} "
        f"stack {compiled.stack_bytes:>4} {compiled.matrix_unit}{' TRAP' if compiled.traps else ''}"
    )


def header() -> str:
    return f"# Triton {triton.__version__}: bytes of shared memory a block, registers and stack bytes a thread"


def main() -> None:
    print(header())
    asked = list(jobs())
    for (text, _), compiled in zip(asked, compile_all([job for _, job in asked]), strict=True):
        print(line(text, compiled), flush=True)


if __name__ == "__main__":
    main()

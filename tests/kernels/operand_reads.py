"""Whether each surveyed kernel's matrix instructions on Hopper read what they should, one line for each.

    python tests/kernels/operand_reads.py > tests/kernels/operand_reads.txt

Compiled as surveyed: both gates, operands of the tensors' own type. The better part of an hour on two cores.
"""

from __future__ import annotations

import sys
from pathlib import Path

import survey
import triton

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.runtime.cross_compile import Compiled, Job, compile_all
from m2gen.runtime.operand_reads import misread

ARCH = "sm90"
COMMITTED = Path(__file__).with_name("operand_reads.txt")
RIGHT = "right"


def specs() -> list[FftConvSpec]:
    return [one for arch, spec in survey.kernels() if arch == ARCH for one in survey.variants(spec)]


def line(spec: FftConvSpec, compiled: Compiled) -> str:
    """The kernel and the verdict; the compiler's own error where there is no kernel."""
    if compiled.error:
        return f"{spec.name}: not compiled: {compiled.error.splitlines()[0][:60]}"
    texts = compiled.texts
    return f"{spec.name}: {misread(texts['ptx'], texts['sass'], compiled.shared_bytes, spec.num_warps) or RIGHT}"


def header(looked_at: int) -> str:
    return (
        f"# Triton {triton.__version__}, {ARCH}: whether a kernel's matrix instructions read the shared memory PTX "
        f"asks for, and PTX asks for what the block has; {looked_at} of {len(specs())} surveyed kernels"
    )


def main() -> None:
    lines = []
    for spec, compiled in zip(specs(), compile_all([Job(one, ARCH) for one in specs()], timeout=60), strict=True):
        lines.append(line(spec, compiled))
        print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join([header(len(lines)), *sorted(lines)]))


if __name__ == "__main__":
    main()

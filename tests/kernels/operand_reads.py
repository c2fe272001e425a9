"""Whether each surveyed kernel's matrix instructions on Hopper read what they should, one line for each.

    python tests/kernels/operand_reads.py [SECONDS]

writes operand_reads.txt. It goes on where the file ends, if the same Triton wrote it; delete the file to begin anew.
All of them take the better part of an hour on two cores. Compiled as surveyed: both gates, operands of the tensors' own
type.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import survey
import triton

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.runtime.build.cross_compile import Compiled, Job, compile_all
from m2gen.runtime.machine_code.operand_reads import misread

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


def main(seconds: float) -> None:
    began, lines = time.monotonic(), []
    if COMMITTED.exists() and COMMITTED.read_text().startswith(f"# Triton {triton.__version__},"):
        lines = COMMITTED.read_text().splitlines()[1:]
    known = {one.split(":")[0] for one in lines}
    todo = [spec for spec in specs() if spec.name not in known]
    for spec, compiled in zip(todo, compile_all([Job(one, ARCH) for one in todo], timeout=60), strict=True):
        lines.append(line(spec, compiled))
        print(lines[-1], file=sys.stderr, flush=True)
        COMMITTED.write_text("\n".join([header(len(lines)), *sorted(lines)]) + "\n")
        if time.monotonic() - began > seconds:
            break


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else float("inf"))

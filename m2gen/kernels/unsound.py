"""Kernels of the survey that must not run: their machine code reads shared memory that it should not.

On Hopper a wgmma reads operands in shared memory by descriptors. ptxas 12.8.93, which Triton 3.6.0 and 3.7.1 bring,
loses the start of a descriptor in some kernels: its register is overwritten while other descriptors still
have to be made from it, and the product reads where data points. Its victims have an outer stage, one stage and
n2 below 64, where one tile is read in two swizzles: with one stage every descriptor is constant and stands in front of
the loops, and there are more of them than uniform registers.

Proved in the compiled code (m2gen/runtime/machine_code/operand_reads.py, tests/kernels/operand_reads.txt): PTX asks for
the right bytes, the machine code does not. Seen on an H100 (2026-11-26, Triton 3.6.0): all four kernels of that kind
that were tried ended in an invalid read of shared memory. `metadata.shared` and `resources()` count the memory that PTX
asks for, and it lies within that in every kernel compiled: asking for more at launch would make none of these right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m2gen.kernels.fftconv import FftConvSpec

ONE_STAGE = (
    "with an outer stage and one pipeline stage, Hopper's matrix units may read outside their operands: ptxas 12.8 "
    "(in Triton 3.6 and 3.7) loses descriptors of shared memory there"
)


def unsound(spec: FftConvSpec, family: str) -> str | None:
    """Why a kernel must not be planned for architectures of `family`, None where nothing is known against it.

    Every kernel of the kind, also those that the check found right: what it was shown is one compiler's form with both
    gates, and a call may want another form and have another compiler.
    """
    if family != "wgmma":
        return None
    return ONE_STAGE if spec.staged and spec.num_stages == 1 else None

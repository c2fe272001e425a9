"""What the compiler made of the fused convolution on chip: shared memory and spills by radices and launch knobs.

Shared memory is, in operands of the matrix products, the matrices A1 and B2 and `tiles` times n1 * n2 beside them.
With n1 >= 64 on sm90 and sm100 the forward kernel's data goes through shared memory only as the right operand of a
product: tiles = 2. Its second stage adds the input's buffers (2 for each batch row of the transform) and, from 4096
points on, the spectrum's (2). Elsewhere data is laid out anew between products, in as many tiles as the compiler likes,
and on gfx942 matrices stay in registers, so that tiles may be negative. Hence a table, `surveyed.py`: the greater of
the plain and the gated kernel, which reversal and wrapping do not exceed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.surveyed import SURVEYED, Entry

if TYPE_CHECKING:
    from m2gen.kernels.fftconv import FftConvSpec

KNOBS = ((4, 1), (4, 2), (8, 1), (8, 2))  # (warps, stages), the order of each row of the table
FAMILIES = {  # architectures for which the compiler chooses the same layouts
    **dict.fromkeys(("sm80", "sm86", "sm89", "sm120"), "mma"),
    "sm90": "wgmma",
    "sm100": "tcgen05",
    "gfx942": "mfma",
}
MOST_TILES = {2: 18, 4: 38}  # in the whole table, by the bytes of an operand: where the table has no entry
STAGED_TILES = {2: 8, 4: 12}  # a stage, outer or inner tiles: a bound from a sample of the kernels with an outer stage
BARRIERS = {"sm100": 64}  # bytes at most, of the tensor cores' own barriers
_ROOM = 1024  # bytes that the driver keeps of each block's shared memory


class Found(NamedTuple):
    """One kernel as compiled: tiles in shared memory, registers and bytes of spilled registers a thread."""

    tiles: float
    registers: int
    stack: int


def found(spec: FftConvSpec, arch: str) -> Found | None:
    """The table's entry; None where there is none, or where the compiler gave no kernel that runs."""
    row = _row(spec, arch)
    entry = row[KNOBS.index((spec.num_warps, spec.num_stages))] if row else None
    return None if entry is None else Found(*entry)


def compiles(spec: FftConvSpec, arch: str) -> bool:
    """False where the compiler is known to give no kernel that runs: an error, or code that is one trap."""
    if FAMILIES[arch] == "mfma" and spec.compute == "fp32":
        return False  # three TF32 products in one are NVIDIA's
    return _row(spec, arch) is None or found(spec, arch) is not None


def operands_beside(spec: FftConvSpec, arch: str) -> float:
    """Operands in shared memory beside the matrices: the table's, or the most that any kernel in it takes."""
    if spec.staged:
        tile = max(spec.n0 * spec.columns, spec.n1 * spec.n2)
        return tile * STAGED_TILES[_operand(spec)] * spec.num_stages
    entry = found(spec, arch)
    return spec.n1 * spec.n2 * (MOST_TILES[_operand(spec)] if entry is None else entry.tiles)


def _row(spec: FftConvSpec, arch: str) -> tuple[Entry, ...] | None:
    if spec.staged or (spec.num_warps, spec.num_stages) not in KNOBS:
        return None
    key = (FAMILIES[arch], _operand(spec), spec.part, spec.ring)
    return SURVEYED.get(key, {}).get((spec.n1, spec.n2))


def _operand(spec: FftConvSpec) -> int:
    return 2 if spec.compute in ("fp16", "bf16") else 4


def best_knobs(spec: FftConvSpec, limits: DeviceLimits) -> FftConvSpec | None:
    """`spec` with the warps and stages that spill least and then put most blocks on a multiprocessor; None if no choice
    of them fits or is in the table."""
    specs = [replace(spec, num_warps=warps, num_stages=stages) for warps, stages in KNOBS]
    ranked = [(rank, at) for at, one in enumerate(specs) if (rank := _rank(one, limits)) is not None]
    return specs[min(ranked)[1]] if ranked else None


def _rank(spec: FftConvSpec, limits: DeviceLimits) -> tuple[int, int, int] | None:
    entry, needs = found(spec, limits.arch), spec.resources(limits.arch)
    if entry is None or needs.shared_bytes > limits.shared_bytes:
        return None
    by_registers = limits.registers // (-(-entry.registers // 8) * 8 * needs.threads)
    blocks = min(by_registers, (limits.shared_bytes + _ROOM) // (needs.shared_bytes + _ROOM))
    return entry.stack, -blocks, -spec.num_stages

"""What the compiler made of the fused convolution: shared memory, registers, spills and instructions of each kernel.

A kernel is legal only if it is in the table, `surveyed.py`, and `unsound.py` has nothing against it: compilers lay data
out anew between products in as many
tiles as they like, spill where registers run out, and on some targets give no kernel that runs. Shared memory is, in
operands of the products, the matrices and `tiles` times a tile beside them; on gfx942 matrices stay in registers, so
that tiles may be negative. Kernels with both gates (and, of the filter's gradient, with the skip's) are surveyed; the
others need no more shared memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.surveyed import SURVEYED
from m2gen.kernels.surveyed_bwd import SURVEYED_BWD
from m2gen.kernels.unsound import unsound

if TYPE_CHECKING:
    from m2gen.kernels.fftconv import FftConvSpec

KNOBS = tuple(product((1, 2, 4, 8), (1, 2)))  # (warps, stages), the order of each row of the table
GATELESS = (("du", "dk"), ("du", "conv", "dk"))  # results of "bwd" kernels that are surveyed without gates
TOGETHER = (
    *GATELESS,
    ("du", "dpre"),
    ("du", "dpre", "dk"),
    ("du", "dpre", "dpost"),
    ("du", "dpre", "dpost", "dk"),
)
FAMILIES = {  # architectures for which the compiler chooses the same layouts
    **dict.fromkeys(("sm80", "sm86", "sm89", "sm120"), "mma"),
    "sm90": "wgmma",
    "sm100": "tcgen05",
    "gfx942": "mfma",
}
HIDDEN = 24  # instructions that spill, as in the largest kernels on chip, and are not felt on an H100
BARRIERS = {"sm100": 64}  # bytes at most, of the tensor cores' own barriers
_OVER = 1.5  # times the L2 cache that scratch may take
ROOM = 1024  # bytes that the driver keeps of each block's shared memory
_MOST_WARPS, _MOST_BLOCKS = 64, 32  # on a multiprocessor


class Found(NamedTuple):
    """One kernel as compiled."""

    tiles: float  # in shared memory, beside the matrices
    registers: int  # a thread
    spills: int  # instructions that write or read spilled registers
    instructions: int  # that a warp issues for one tile of the batch


def found(spec: FftConvSpec, arch: str) -> Found | None:
    """The table's entry; None where there is none, or where the compiler gave no kernel that runs."""
    knobs = (spec.num_warps, spec.num_stages)
    width = 2 if spec.compute in ("fp16", "bf16") else 4
    table = SURVEYED_BWD if spec.part == "bwd" else SURVEYED
    for part in surveyed_as(spec):
        row = table.get((FAMILIES[arch], width, part, spec.ring), {}).get((spec.stack, *spec.radices))
        entry = row[KNOBS.index(knobs)] if row and knobs in KNOBS else None
        if entry is not None:
            return Found(*entry)
    return None


def surveyed_as(spec: FftConvSpec) -> Iterator[str]:
    """The names of its part in the table, the nearest first: with "bwd", of results with its own among them."""
    if spec.part != "bwd" or spec.surveyed.startswith("rows"):
        yield spec.surveyed
        return
    gated = spec.pre_gate or spec.post_gate
    for results in TOGETHER:
        own = spec.results if "conv" in results else [one.replace("conv", "dpost") for one in spec.results]
        if set(own) <= set(results) and not (gated and results in GATELESS):
            yield " ".join(results)


def tile(spec: FftConvSpec) -> int:
    """Points of the largest tile that a block holds at once."""
    return max(spec.n0 * spec.columns if spec.staged else 0, spec.held * spec.n2)


def operands_beside(spec: FftConvSpec, arch: str) -> float | None:
    """Operands in shared memory beside the matrices; None for a kernel that is not in the table."""
    entry = found(spec, arch)
    if entry is None:
        return None
    # with one warp, a gradient that is scaled on its way to the product passes through a tile of its own
    scaled = spec.rows if spec.scales and spec.part == "dk" and spec.num_warps == 1 else 0
    return tile(spec) * (entry.tiles + scaled)


def spills(spec: FftConvSpec, limits: DeviceLimits) -> bool:
    """Whether a surveyed kernel spills more than it can hide: by the kernel with both gates, which spills most."""
    entry = found(spec, limits.arch)
    return entry is not None and entry.spills > HIDDEN


def variants(spec: FftConvSpec, limits: DeviceLimits) -> Iterator[FftConvSpec]:
    """`spec` with every choice of warps and stages that gave a right kernel and that fits the device."""
    return (one for one in _fitting(spec, limits) if unsound(one, FAMILIES[limits.arch]) is None)


def left_out(spec: FftConvSpec, limits: DeviceLimits) -> Iterator[tuple[FftConvSpec, str]]:
    """The kernels that would fit and must not run, each with the reason."""
    for one in _fitting(spec, limits):
        why = unsound(one, FAMILIES[limits.arch])
        if why is not None:
            yield one, why


def _fitting(spec: FftConvSpec, limits: DeviceLimits) -> tuple[FftConvSpec, ...]:
    return _that_fit(spec, limits.arch, limits.shared_bytes)


@lru_cache(maxsize=8192)
def _that_fit(spec: FftConvSpec, arch: str, shared_bytes: int) -> tuple[FftConvSpec, ...]:
    knobs = (replace(spec, num_warps=warps, num_stages=stages) for warps, stages in KNOBS)
    return tuple(
        one for one in knobs if found(one, arch) is not None and one.resources(arch).shared_bytes <= shared_bytes
    )


def held(spec: FftConvSpec, limits: DeviceLimits) -> int:
    """Blocks of a surveyed kernel that a multiprocessor holds at once."""
    return _held(spec, limits.arch, limits.registers, limits.shared_bytes)


@lru_cache(maxsize=16384)
def _held(spec: FftConvSpec, arch: str, registers: int, shared_bytes: int) -> int:
    entry, needs = found(spec, arch), spec.resources(arch)
    if entry is None:
        return 1
    by_registers = registers // (-(-entry.registers // 8) * 8 * needs.threads)
    by_shared = (shared_bytes + ROOM) // (needs.shared_bytes + ROOM)
    return max(1, min(by_registers, by_shared, _MOST_WARPS // spec.num_warps, _MOST_BLOCKS))


def blocks(spec: FftConvSpec, limits: DeviceLimits) -> int:
    """How many of them are to be there: with an outer stage only those whose scratch the L2 cache holds, but for a
    third. (H100, 2026-11-26: a filter's gradient with 69 MB of it beside 50 MB of cache, two blocks, took 0.7 times
    what one with half as much took.)"""
    if not spec.staged:
        return held(spec, limits)
    by_l2 = int(_OVER * limits.bandwidths[0][0]) // (limits.cores * spec.scratch_bytes)
    return max(1, min(held(spec, limits), by_l2))

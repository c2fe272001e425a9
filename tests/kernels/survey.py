"""Write the table behind `FftConvSpec.resources`: every choice of radices and knobs that planning may want, compiled.

    python tests/kernels/survey.py > surveyed.py && mv surveyed.py m2gen/kernels/surveyed.py
    python tests/kernels/survey.py bwd > surveyed.py && mv surveyed.py m2gen/kernels/surveyed_bwd.py

    python tests/kernels/survey.py rows sm90 > surveyed.py && mv surveyed.py m2gen/kernels/surveyed_bwd.py

The better part of an hour on two cores, the first two. The second is of the kernels of several gradients, the third of
those on the rows of a large ring; architectures behind "bwd" and "rows" are compiled anew, the others and the rest stay
as they are in the table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import triton

from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.rows import RowsSpec
from m2gen.kernels.survey import BARRIERS, FAMILIES, GATELESS, KNOBS, TOGETHER, tile
from m2gen.kernels.surveyed_bwd import SURVEYED_BWD
from m2gen.runtime.build.cross_compile import Compiled, Job, compile_all

ARCHS = ("sm80", "sm90", "sm100", "gfx942")  # the first of each family
ON_CHIP = ((16, 16), (16, 32), (32, 16), (32, 32), (64, 32), (64, 64))
LARGE = {"sm90": ((32, 64), (128, 64), (64, 128)), "sm100": ((128, 64),)}
INNER = ((16, 16), (16, 32), (32, 16), (32, 32), (64, 16), (64, 32), (32, 64))
Key = tuple[str, int, str, str]
Entry = tuple[float, int, int, int] | None
Table = dict[Key, dict[tuple[int, ...], list[Entry]]]


def kernels() -> Iterator[tuple[str, FftConvSpec]]:
    """(architecture, kernel with the default knobs)."""
    for arch, operand in product(ARCHS, ("fp16", "fp32")):
        if operand == "fp32" and arch in ("sm100", "gfx942"):
            continue  # three TF32 products in one: not there, or to no gain
        for (n0, n1, n2, stack), ring, part in product(shapes(arch, operand), ("cyclic", "causal"), ("fwd", "dk")):
            yield (
                arch,
                FftConvSpec(
                    part=part,  # type: ignore[arg-type]
                    ring=ring,  # type: ignore[arg-type]
                    n0=n0,
                    n1=n1,
                    n2=n2,
                    stack=stack,
                    dtype=operand,
                    compute=operand,
                    pre_gate=True,
                    post_gate=True,
                    skip=part == "dk",
                ),
            )


def together(archs: Collection[str]) -> Iterator[tuple[str, FftConvSpec]]:
    """The same for several gradients at once, operands of 16 bits."""
    for arch, ring, results in product(archs, ("cyclic", "causal"), TOGETHER):
        if ring == "causal" and results in (("du", "conv", "dk"), ("du", "dpre", "dk")):
            continue  # of which cyclic rings have more use: there those of all gradients stand for them
        for n1, n2, stack in shapes_together(arch, results):
            gated = results not in GATELESS
            yield (
                arch,
                FftConvSpec(
                    part="bwd",
                    results=results,
                    ring=ring,  # type: ignore[arg-type]
                    n1=n1,
                    n2=n2,
                    stack=stack,
                    dtype="fp16",
                    compute="fp16",
                    pre_gate=gated,
                    post_gate=gated,
                    skip="dk" in results,
                ),
            )


def on_rows(archs: Collection[str]) -> Iterator[tuple[str, FftConvSpec]]:
    """The same on the rows of a large ring, between its passes."""
    for arch, results, (n1, n2) in product(archs, GATELESS, ON_CHIP[:-1]):
        like = {"ring": "cyclic", "dtype": "fp16", "compute": "fp16", "full": True}
        yield arch, RowsSpec(part="bwd", results=results, n1=n1, n2=n2, **like)  # type: ignore[arg-type]


def shapes_together(arch: str, results: tuple[str, ...]) -> Iterator[tuple[int, int, int]]:
    """With sums of the filter's gradient in registers up to 2048 points; beyond, those that they leave room for."""
    if "dk" in results:
        for n1, n2 in ON_CHIP[:-1]:
            yield from ((n1, n2, stack) for stack in sorted({1, 64 // n1}))
    else:
        yield 64, 64, 1
        if arch == "sm90" and results == ("du", "dpre"):
            yield 128, 64, 1


def shapes(arch: str, operand: str) -> Iterator[tuple[int, int, int, int]]:
    """(n0, n1, n2, stack): alone and stacked to 64 rows; with an outer stage only so; float32 is not stacked."""
    for n1, n2 in ON_CHIP[:-1] if operand == "fp32" else ON_CHIP + LARGE.get(arch, ()):
        yield from ((1, n1, n2, stack) for stack in {1, max(1, 64 // n1) if operand == "fp16" else 1})
    for n0, (n1, n2) in product((32, 64), INNER):
        if 2**13 <= n0 * n1 * n2 <= 2**16:
            yield n0, n1, n2, max(1, 64 // n1) if operand == "fp16" else 1


def variants(spec: FftConvSpec) -> Iterator[FftConvSpec]:
    """The knobs worth compiling: a warp for each 256 to 1024 points, about; others spill, or waste what they issue."""
    points = spec.held * spec.n2
    for warps, stages in KNOBS:
        if spec.part == "bwd":
            wanted = min(4, points // 256) <= warps <= (8 if points >= 1024 else 4)
        elif spec.staged and spec.stack == 1 and spec.n1 < 64:
            wanted = warps == 8
        elif spec.held >= 64 and points <= 4096:
            wanted = warps >= 4
        else:
            wanted = points // 1024 <= warps <= max(4, points // 128)
        if wanted:
            yield replace(spec, num_warps=warps, num_stages=stages)


def entry(spec: FftConvSpec, compiled: Compiled) -> Entry:
    """Tiles beside the matrices, rounded up to an eighth, and what else the table has; None where it does not run."""
    if compiled.error or compiled.traps:
        return None
    operands = (compiled.shared_bytes - BARRIERS.get(compiled.arch, 0)) / COMPUTE_BYTES[spec.compute]
    exact = math.ceil((operands - spec.matrices) / tile(spec) * 8) / 8
    tiles = int(exact) if exact == int(exact) else exact
    return tiles, compiled.registers, compiled.spills, compiled.instructions


def survey(wanted: Iterable[tuple[str, FftConvSpec]]) -> Table:
    jobs = [Job(one, arch) for arch, spec in wanted for one in variants(spec)]
    table: Table = {}
    for done, (job, compiled) in enumerate(zip(jobs, compile_all(jobs, timeout=60), strict=True), start=1):
        spec = job.spec
        key = (FAMILIES[job.arch], COMPUTE_BYTES[spec.compute], spec.surveyed, spec.ring)
        row = table.setdefault(key, {}).setdefault((spec.stack, *spec.radices), [None] * len(KNOBS))
        row[KNOBS.index((spec.num_warps, spec.num_stages))] = entry(spec, compiled)
        print(f"{done}/{len(jobs)} {job.arch} {compiled}", file=sys.stderr, flush=True)
    return table


def main() -> None:
    several = sys.argv[1:2] in (["bwd"], ["rows"])
    if several:
        wanted, archs = (on_rows if sys.argv[1] == "rows" else together), sys.argv[2:] or ARCHS
        anew = {(FAMILIES[arch], COMPUTE_BYTES[one.compute], one.surveyed) for arch, one in wanted(archs)}
        kept = {key: rows for key, rows in SURVEYED_BWD.items() if key[:3] not in anew}
        table: Mapping[Key, Any] = {**kept, **survey(wanted(archs))}
    else:
        table = survey(kernels())
    name = "SURVEYED_BWD" if several else "SURVEYED"
    print(f'''"""Written by tests/kernels/survey.py with Triton {triton.__version__}.

(tiles, registers, spills, instructions) of each kernel; None where it was not compiled or compiles to nothing that
runs. Columns: 1, 2, 4 and 8 warps, each with 1 and with 2 stages. What they mean is in survey.py.
"""

from __future__ import annotations

# ruff: noqa: E501
# fmt: off
Entry = tuple[float, int, int, int] | None

{name}: dict[tuple[str, int, str, str], dict[tuple[int, ...], tuple[Entry, ...]]] = {{''')
    for key, rows in sorted(table.items()):
        print(f"    {key!r}: {{".replace("'", '"'))
        for radices, entries in sorted(rows.items()):
            print(f"        {radices}: ({', '.join(map(str, entries))}),")
        print("    },")
    print("}")


if __name__ == "__main__":
    main()

"""Write the table behind `FftConvSpec.resources`: every pair of radices with every choice of knobs, compiled.

    python tests/kernels/survey.py > surveyed.py && mv surveyed.py m2gen/kernels/surveyed.py && ruff format m2gen

A quarter of an hour on two cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import triton

from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.survey import BARRIERS, FAMILIES, KNOBS
from m2gen.runtime.cross_compile import Compiled, Job, compile_all

RADICES = {
    **dict.fromkeys(("sm80", "sm90", "sm100", "gfx942"), ((16, 16), (16, 32), (32, 16), (32, 32), (64, 32), (64, 64))),
    "large": ((32, 64), (128, 64), (64, 128)),
    "fp32": ((16, 16), (16, 32), (32, 16), (32, 32), (64, 32)),
}
Key = tuple[str, int, str, str]
Entry = tuple[float, int, int] | None


def kernels() -> Iterator[tuple[str, FftConvSpec]]:
    """(architecture, plain kernel with the default knobs)."""
    for arch in ("sm80", "sm90", "sm100", "gfx942"):
        large = {"sm90": RADICES["large"], "sm100": ((128, 64),)}.get(arch, ())
        sizes = [("fp16", one) for one in RADICES[arch] + large]
        sizes += [("fp32", one) for one in RADICES["fp32"]] if arch in ("sm80", "sm90") else []
        for (dtype, (n1, n2)), ring, part in product(sizes, ("cyclic", "causal"), ("fwd", "dk")):
            yield arch, FftConvSpec(part=part, ring=ring, n1=n1, n2=n2, dtype=dtype, compute=dtype)  # type: ignore[arg-type]


def variants(spec: FftConvSpec) -> Iterator[FftConvSpec]:
    """Plain and gated with every choice of knobs; at 8192 points four warps are not worth their minutes."""
    for (warps, stages), gated in product(KNOBS, (False, True)):
        if spec.size < 8192 or warps == 8:
            yield replace(spec, pre_gate=gated, post_gate=gated, num_warps=warps, num_stages=stages)


def tiles(spec: FftConvSpec, compiled: Compiled) -> float:
    """Tiles beside the matrices, rounded up to an eighth."""
    operands = (compiled.shared_bytes - BARRIERS.get(compiled.arch, 0)) / COMPUTE_BYTES[spec.compute]
    exact = math.ceil((operands - spec.matrices) / (spec.n1 * spec.n2) * 8) / 8
    return int(exact) if exact == int(exact) else exact


def survey() -> dict[Key, dict[tuple[int, int], list[Entry]]]:
    jobs = [Job(one, arch) for arch, spec in kernels() for one in variants(spec)]
    found: dict[Key, dict[tuple[int, int], list[list[Compiled]]]] = {}
    table: dict[Key, dict[tuple[int, int], list[Entry]]] = {}
    for job, compiled in zip(jobs, compile_all(jobs, timeout=60), strict=True):
        spec = job.spec
        key = (FAMILIES[job.arch], COMPUTE_BYTES[spec.compute], spec.part, spec.ring)
        radices, column = (spec.n1, spec.n2), KNOBS.index((spec.num_warps, spec.num_stages))
        both = found.setdefault(key, {}).setdefault(radices, [[] for _ in KNOBS])[column]
        both.append(compiled)
        table.setdefault(key, {}).setdefault(radices, [None] * len(KNOBS))[column] = worst(spec, both)
    return table


def worst(spec: FftConvSpec, both: list[Compiled]) -> Entry:
    """The greatest need of the kernels; None if one of them does not run."""
    if any(one.error or one.traps for one in both):
        return None
    return (
        max(tiles(spec, one) for one in both),
        max(one.registers for one in both),
        max(one.stack_bytes for one in both),
    )


def main() -> None:
    print(f'''"""Written by tests/kernels/survey.py with Triton {triton.__version__}.

(tiles, registers, stack) of each kernel; None where it was not compiled or compiles to nothing that runs. Columns: 4
warps with 1 and with 2 stages, 8 warps with 1 and with 2. What they mean is in survey.py.
"""

from __future__ import annotations

Entry = tuple[float, int, int] | None

SURVEYED: dict[tuple[str, int, str, str], dict[tuple[int, int], tuple[Entry, ...]]] = {{''')
    for key, rows in sorted(survey().items()):
        print(f"    {key}: {{")
        for radices, entries in sorted(rows.items()):
            print(f"        {radices}: ({', '.join(map(str, entries))}),")
        print("    },")
    print("}")


if __name__ == "__main__":
    main()

"""What the compilers make of the generated kernels, one line for each kernel and architecture.

    python tests/kernels/audit.py > audit.txt && mv audit.txt tests/kernels/audit.txt

With "new" behind it kernels that the table has are not compiled again: for a change of plans, not of templates.

For each architecture: the kernels of the plans of the whole corpus, or why the planner has none, some that no plan
of the corpus wants, and those of the other families (`families.py`). Some minutes on two cores; tests compile
`sample()` again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import families
import triton

from m2gen.device.limits import target
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.filter_pass import FilterPassSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.kernels.rows import RowsSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.kernels.survey import FAMILIES, blocks
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.search import rank
from m2gen.runtime.build.cross_compile import TARGETS, Compiled, Job, compile_all
from m2gen.testing.corpus import corpus

ELSEWHERE = (
    SpectrumSpec,
    OuterSpec,
    RowsSpec,
    FilterPassSpec,
    LargestSpec,
)  # families.py has some of each size


def spec(text: str) -> FftConvSpec:
    """A spec from words: part, with "bwd" and its results, ring, radices, dtype/compute, w and s, flags."""
    part, ring, radices, dtypes, warps, stages, *flags = text.split()
    *outer, n1, n2 = map(int, radices.split("x"))
    dtype, compute = dtypes.split("/")
    return FftConvSpec(
        part="dk" if part == "dk" else "bwd" if part.startswith("bwd") else "fwd",
        results=tuple(part.split(":")[1].split("+")) if ":" in part else (),
        ring="causal" if ring == "causal" else "cyclic",
        n0=outer[0] if outer else 1,
        n1=n1,
        n2=n2,
        stack=max([int(flag.removeprefix("stack")) for flag in flags if flag.startswith("stack")], default=1),
        dtype=dtype,
        compute=compute,
        pre_gate="gated" in flags,
        post_gate="gated" in flags,
        transpose="transpose" in flags,
        skip="skip" in flags,
        wrap="wrap" in flags,
        num_warps=int(warps[1:]),
        num_stages=int(stages[1:]),
    )


EVERYWHERE = (
    "fwd cyclic 16x32 fp16/fp16 w4 s1 wrap gated",
    "fwd cyclic 16x32 fp16/fp16 w4 s1 wrap transpose",
    "dk cyclic 16x16 fp16/fp16 w1 s2 gated skip",
    "dk causal 16x16 fp16/fp16 w1 s2 gated skip",
)
ON_SM90 = (  # family by family: order 2 plain and gated on both rings, the largest on chip, staged
    *(f"fwd {ring} {radices} fp16/fp16 {knobs}{flags}"
      for ring in ("cyclic", "causal")
      for radices, knobs in (("16x16", "w1 s2"), ("32x32", "w4 s2"), ("64x32", "w4 s2"), ("64x64", "w4 s2"))
      for flags in ("", " gated")),
    "fwd cyclic 128x64 fp16/fp16 w8 s1",
    "fwd cyclic 128x64 fp16/fp16 w8 s1 gated",
    "fwd causal 128x64 fp16/fp16 w8 s2",
    "fwd causal 128x64 fp16/fp16 w8 s2 gated",
    "fwd cyclic 32x32x32 fp16/fp16 w4 s2 stack2",
    "fwd cyclic 32x32x32 fp16/fp16 w4 s2 stack2 gated",
    "fwd cyclic 64x64 fp16/bf16 w4 s1",
    "fwd causal 64x64 fp16/fp16 w4 s2 gated transpose",
    *(f"bwd:du+dpre+dpost+dk {ring} {radices} fp16/fp16 w8 s1 gated skip"
      for ring in ("cyclic", "causal") for radices in ("32x32", "64x32")),
    "bwd:du+dpre+dpost cyclic 64x64 fp16/fp16 w4 s1 gated",
    "bwd:du+dpre causal 128x64 fp16/fp16 w8 s1 gated",
    "bwd:du+conv+dk cyclic 32x32 fp16/fp16 w8 s1",
)  # fmt: skip


def corpus_jobs(arch: str) -> Iterator[Job | str]:
    """A job for each different kernel of the corpus; a line for each problem that has none."""
    seen: set[TritonSpec | FftConvSpec] = set()
    for entry in corpus():
        if entry.problem.op != "fftconv":
            continue
        ranking = rank(entry.problem, target(arch))
        best = ranking.best("fused")
        if best is None:
            yield f"{arch:<7} {entry.name:<24} none: {dict(ranking.rejections)['fused']}"
        elif isinstance(best.body, FusedConv):
            on_chip = replace(best.body, back=None)  # what is done there where no filter is trained, too
            for one in on_chip.kernels(entry.problem, "train" in entry.tags):
                if one not in seen and not isinstance(one, ELSEWHERE):
                    seen.add(one)
                    yield Job(one, arch)


def rows() -> Iterator[Job | str]:
    """The committed list, in order."""
    for arch in TARGETS:
        chosen = list(corpus_jobs(arch))
        yield from chosen
        more = [Job(spec(words), arch) for words in EVERYWHERE + (ON_SM90 if arch == "sm90" else ())]
        yield from (job for job in more if job not in chosen)
        yield from families.jobs(arch)


def line(job: Job, compiled: Compiled) -> str:
    """One line of the table."""
    if compiled.error:
        return f"{job.arch:<7} {compiled.name:<74} {compiled.error.splitlines()[0][:60]}"
    fused = isinstance(job.spec, FftConvSpec)
    held = blocks(job.spec, target(job.arch)) if fused else families.blocks(job, compiled)
    return (
        f"{job.arch:<7} {compiled.name:<74} shared {compiled.shared_bytes:>6} registers {compiled.registers:>3} "
        f"spills {compiled.spills:>3} blocks {held:>2} instructions {compiled.instructions:>5} {compiled.matrix_unit}"
        f"{' TRAP' if compiled.traps else ''}{'' if fused else families.reads(job, compiled)}"
    )


def header() -> str:
    return (
        f"# Triton {triton.__version__}: bytes of shared memory a block, registers a thread, instructions that spill, "
        "blocks a multiprocessor, instructions a warp issues for a tile"
    )


def sample() -> list[Job]:
    """The smallest kernel of each part and ring for every architecture, and one with an outer stage for every way of
    laying data out (`FAMILIES`). On sm90 one of each kind of arithmetic in each part, on each ring and with an outer
    stage, too, of float16's each size on chip, and a large staged one. And some other families'."""
    smallest: dict[tuple[object, ...], Job] = {}
    for job in rows():
        if isinstance(job, Job) and type(job.spec) is FftConvSpec:
            one = job.spec
            large = one.staged and one.radices == (32, 32, 32)
            kinds: list[tuple[object, ...]] = [
                (FAMILIES[job.arch], "staged") if one.staged else (job.arch, one.part, one.ring)
            ]
            if job.arch == "sm90":
                kinds += [(one.compute, other) for other in (one.part, one.ring, one.staged)]
                kinds += [(one.staged, other) for other in (one.part, one.ring)]
                fp16 = one.part == "fwd" and one.compute == "fp16"
                kinds += [(one.ring, one.size)] if fp16 and (large or not one.staged) else []
            for kind in kinds:
                if kind not in smallest or one.size < smallest[kind].spec.size:
                    smallest[kind] = job
    return [*dict.fromkeys(smallest.values()), *families.sample()]


def compiled(jobs: list[Job]) -> list[tuple[Job, Compiled]]:
    return list(zip(jobs, compile_all(jobs, timeout=1800), strict=True))


def table(there: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """The whole table; lines that are `there`, by architecture and name, stay."""
    listed = list(rows())
    jobs = [row for row in listed if isinstance(row, Job)]
    lines = {job: there[key] for job in jobs if (key := (job.arch, job.spec.name)) in there}
    lines |= {job: line(job, one) for job, one in compiled([job for job in jobs if job not in lines])}
    yield header()
    yield from (row if isinstance(row, str) else lines[row] for row in listed)


if __name__ == "__main__":
    text = Path(__file__).with_name("audit.txt").read_text().splitlines() if sys.argv[1:] == ["new"] else []
    print("\n".join(table({(arch, name): row for row in text[1:] for arch, name, *_ in [row.split()]})))

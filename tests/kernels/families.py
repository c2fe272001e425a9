"""The kernels of the families beside the long convolution's own that the audit compiles: those planned for some
problems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from m2gen.device.limits import target
from m2gen.device.row import DeviceLimits
from m2gen.kernels.add_parts import AddPartsSpec
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.outer import RADICES, OuterSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.kernels.survey import GATELESS
from m2gen.planner.blockdiag import tiles as blockdiag
from m2gen.planner.blockdiag.tiles import BlockdiagSizes
from m2gen.planner.fftconv import filters, large_filters
from m2gen.planner.fftconv.large_filters import LargeFilterKernels
from m2gen.planner.fftconv.passes import fitting
from m2gen.planner.fftconv.passes_rows import INNER, on_chip, together, with_range
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.monarch.fused import Fused
from m2gen.planner.problems import parse
from m2gen.planner.shortconv import tiles as shortconv
from m2gen.planner.shortconv.tiles import ShortconvSizes
from m2gen.planner.turn import tiles as turn
from m2gen.planner.turn.tiles import TurnSizes
from m2gen.runtime.build.cross_compile import Compiled, Job
from m2gen.runtime.machine_code.operand_reads import misread

monarch = Fused()
GLU = BlockdiagSizes(32768, 4, 192, 1536, "bf16", activation="gelu", glu=True)  # M2-BERT: 768 to 2 x 3072
OUT = BlockdiagSizes(32768, 4, 768, 192, "bf16", bias=True, residual=True)  # and back, with what is added
STAGE = BlockdiagSizes(8192, 64, 64, 64, "bf16", apart_x=True, apart_y=True)  # of a Monarch of order 2, 4096 wide
MIXER = ShortconvSizes(8, 768, 4096, 3, "bf16", bias=True, masked="in", offset=True)  # as W x^T gives its streams
ACROSS = ShortconvSizes(8, 768, 4096, 3, "bf16", bias=True, masked="in", last_in=True)
MONARCHS = (  # one kernel for both factors
    "monarch in=256 out=256 rows=8192 bf16 order=2 blocks=16x16",
    "monarch in=1024 out=1024 rows=8192 bf16 order=2 blocks=32x32",
    "monarch in=256 out=256 rows=8192 fp32 order=2 blocks=16x16",
    "monarch in=60 out=150 rows=1000 fp16 factors=12x10x5,10x15x12",
)
FILTERS = (  # a problem, and the radices of the kernels that read the spectrum and write the sums
    ("fftconv n=4096 h=768 b=64 fp16 circular", (64, 64)),
    ("fftconv n=1000 h=768 b=64 fp16 bidirectional skip", (32, 32)),
    ("fftconv n=8000 h=768 b=64 bf16 same k=255", (128, 64)),
    ("fftconv n=32768 h=768 b=16 fp16 causal skip", (32, 32, 32)),
    ("fftconv n=65536 h=768 b=8 fp16 causal", (64, 32, 32)),
)
LARGE_FILTERS = (  # a problem on a large ring, and radices: of the outer stages, and the last two on chip
    ("fftconv n=1048576 h=192 b=2 fp16 circular", (16, 16, 64, 64)),
    ("fftconv n=131072 h=64 b=4 bf16 same k=4095 skip", (32, 64, 64)),
    ("fftconv n=4194304 h=64 b=1 fp16 causal skip", (64, 64, 32, 32)),
    ("fftconv n=131072 h=64 b=4 bf16 bidirectional", (16, 128, 64)),
)
PASSES = OuterSpec(part="analysis", ring="cyclic", n0=16, columns=0, dtype="fp16", compute="fp16", gate=True)
SAMPLE = (  # what the tests compile again
    ("sm90", "blockdiag_fwd_bf16", "glu"),
    ("sm90", "blockdiag_dw", ""),
    ("sm90", "shortconv_mix", ""),
    ("sm80", "blockdiag_fwd_fp32", ""),
    ("sm100", "blockdiag_fwd_bf16", "residual"),
    ("gfx942", "blockdiag_dz", ""),
    ("sm90", "monarch_fwd_bf16", "c32"),
    ("sm86", "monarch_fwd_fp32", ""),
    ("sm90", "spectrum_fwd_n4096", ""),
    ("sm90", "spectrum_inverse_n4096", ""),
    ("sm80", "spectrum_fwd_n1024", "two_sided"),
    ("sm90", "spectrum_fwd_outer", ""),
    ("sm100", "spectrum_inverse_inner", ""),
    ("gfx942", "spectrum_inverse_outer", "n65536"),
    ("sm90", "outer_analysis_n32", "skip"),
    ("sm90", "outer_synthesis_n128", "second"),
    ("sm90", "outer_analysis_n64", "nested"),
    ("sm90", "outer_synthesis_n32", "ranged"),
    ("sm80", "outer_synthesis_n32", "fp32"),
    ("sm100", "outer_analysis_n64", "nested"),
    ("gfx942", "outer_synthesis_n32", "second"),
    ("sm90", "rows_fwd_n4096", ""),
    ("sm90", "rows_bwd_n256", "conv"),
    ("sm90", "largest_bf16", "gate"),
    ("gfx942", "largest_bf16", "rows2"),
    ("sm90", "filter_pass_fwd", "r64x64"),
    ("sm90", "filter_pass_inverse", "two_sided"),
    ("sm80", "filter_pass_fwd", "nested"),
    ("gfx942", "filter_pass_inverse", "nested"),
)


def specs(limits: DeviceLimits) -> Iterator[TritonSpec | FftConvSpec]:
    """The quickest kernels, by the estimate, of some problems and of all parts."""
    for sizes, part in (
        (GLU, "fwd"),
        (GLU, "dz"),
        (GLU, "dw"),
        (OUT, "fwd"),
        (OUT, "dw"),
        (STAGE, "fwd"),
        (STAGE, "dw"),
    ):
        yield blockdiag.candidates(sizes, limits, part)[0].spec  # type: ignore[arg-type]
    yield blockdiag.candidates(replace(GLU, dtype="fp32"), limits)[0].spec
    yield blockdiag.candidates(replace(GLU, dtype="fp32"), limits, "dw")[0].spec
    yield turn.candidates(TurnSizes(8, 4096, 768, "bf16"), limits)[0].spec
    yield turn.candidates(TurnSizes(8, 4096, 768, "fp32"), limits)[0].spec
    yield shortconv.candidates(MIXER, limits, "mix")[0].spec
    yield shortconv.candidates(MIXER, limits, "mix_bwd")[0].spec
    yield shortconv.candidates(replace(MIXER, masked="no"), limits, "mix")[0].spec
    yield shortconv.candidates(replace(MIXER, masked="no"), limits, "mix_bwd")[0].spec
    yield shortconv.candidates(ACROSS, limits, "mix")[0].spec
    yield shortconv.candidates(ACROSS, limits, "mix_bwd")[0].spec
    yield shortconv.candidates(replace(ACROSS, width=5), limits, "ds")[0].spec
    plain = replace(ACROSS, channels=3 * ACROSS.channels)
    yield shortconv.candidates(replace(plain, last_out=True), limits)[0].spec
    yield shortconv.candidates(replace(plain, last_in=False, masked="out"), limits)[0].spec
    yield shortconv.candidates(replace(plain, last_out=True), limits, "dw")[0].spec
    yield AddPartsSpec(dtype="bf16")
    yield from (LargestSpec(dtype="bf16", gate=gate, rows=rows) for gate, rows in ((True, 1), (False, 2)))
    for text, radices in FILTERS:
        yield from filter_kernels(text, radices, limits)
    for text in MONARCHS:
        yield from (plan.body.whole for plan in monarch.candidates(parse(text), limits) if plan.body.whole is not None)
    yield from passes(limits)
    for text, radices in LARGE_FILTERS:
        of = large_filter_kernels(text, radices, limits)
        yield from (*of.forward, *of.backward)


def passes(limits: DeviceLimits) -> Iterator[OuterSpec | FftConvSpec]:
    """Outer stages of large rings: each radix that fits, forward and backward, one in the other; and of other types.
    And what is between them."""
    for n0 in RADICES:
        first = fitting(replace(PASSES, n0=n0), limits)
        if first is not None:
            yield first
            yield replace(first, pair=True, pair_gate=True, skip=True)
            yield replace(first, part="synthesis", second=True)
            nested = replace(first, gate=False, nested=True)
            yield from (nested, replace(nested, part="synthesis"))
    for more in (
        {"ring": "causal", "dtype": "bf16", "ranged": True},
        {"ring": "causal", "dtype": "fp32", "compute": "fp32"},
        {"wrap": True, "add": True},
    ):
        one = fitting(replace(PASSES, n0=32, **more), limits)  # type: ignore[arg-type]
        if one is not None:
            yield from (replace(one, add=False), replace(one, part="synthesis"))
    for size in INNER:
        spec, dk = (on_chip(size, "fp16", part, limits) for part in ("fwd", "dk"))
        yield from (one for one in (spec, dk) if one is not None)
        if spec is not None and dk is not None:
            several = [together(spec, dk, results, 2**16, 32, limits) for results in GATELESS]
            of_sums = [one.spec for one in several if one is not None]
            yield from (*of_sums, *(with_range(one, True) for one in (*of_sums, dk)))  # of bfloat16 tensors


def filter_kernels(text: str, radices: tuple[int, ...], limits: DeviceLimits) -> tuple[SpectrumSpec, ...]:
    """Those of a filter for kernels with these radices."""
    problem = parse(text)
    assert isinstance(problem, FftConvProblem)
    n0, n1, n2 = radices if len(radices) == 3 else (1, *radices)
    sizes: dict[str, Any] = {"n0": n0, "n1": n1, "n2": n2, "stack": max(1, 64 // n1)}
    ring: Any = "cyclic" if problem.mode == "circular" else "causal"
    spec = FftConvSpec(part="fwd", ring=ring, dtype=problem.dtype, compute="fp16", **sizes)
    of = filters.kernels(problem, spec, replace(spec, part="dk"), limits)
    return *of.forward, *of.back


def large_filter_kernels(text: str, radices: tuple[int, ...], limits: DeviceLimits) -> LargeFilterKernels:
    """Those of a filter on a large ring."""
    problem = parse(text)
    assert isinstance(problem, FftConvProblem)
    *stages, n1, n2 = radices
    ring: Any = "cyclic" if problem.mode == "circular" else "causal"
    outer = tuple(replace(PASSES, ring=ring, n0=n0) for n0 in stages)
    spec = FftConvSpec(part="fwd", ring="cyclic", n1=n1, n2=n2, dtype="fp16", compute="fp16")
    return large_filters.kernels(problem, outer, spec, replace(spec, part="dk"), limits)


def jobs(arch: str) -> list[Job]:
    return [Job(spec, arch) for spec in dict.fromkeys(specs(target(arch)))]


def sample() -> list[Job]:
    return [
        next(job for job in jobs(arch) if job.spec.name.startswith(start) and word in job.spec.name)
        for arch, start, word in SAMPLE
    ]


def blocks(job: Job, compiled: Compiled) -> int:
    """Blocks that a multiprocessor holds at once."""
    limits, threads = target(job.arch), job.spec.resources(job.arch).threads
    by_registers = limits.registers // (-(-max(compiled.registers, 1) // 8) * 8 * threads)
    by_shared = (limits.shared_bytes + 1024) // (compiled.shared_bytes + 1024)  # the driver keeps some of each block's
    return min(by_registers, by_shared, 2048 // threads, 32)


def reads(job: Job, compiled: Compiled) -> str:
    """On Hopper, whether its wgmmas read the shared memory that they should."""
    if compiled.matrix_unit != "wgmma":
        return ""
    why = misread(compiled.texts["ptx"], compiled.texts["sass"], compiled.shared_bytes, job.spec.num_warps)
    return f" reads {why or 'right'}"

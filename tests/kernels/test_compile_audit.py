"""Kernels that the corpus needs, compiled for GPUs that are not here: what they take, and that they would run.

A sample of every kind of kernel and every architecture; all of them by the command in `audit.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import audit
import families
import pytest
import triton

from m2gen.device.limits import target
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.survey import BARRIERS, blocks
from m2gen.runtime.build.cross_compile import TARGETS, Compiled, Job

TABLE = (Path(__file__).parent / "audit.txt").read_text().splitlines()
WRITE_AGAIN = "if the change is meant: python tests/kernels/audit.py > tests/kernels/audit.txt"

Audited = list[tuple[Job, Compiled]]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return audit.compiled(audit.sample())


def test_the_table_has_every_kernel_that_is_planned() -> None:
    wanted = [row if isinstance(row, str) else f"{row.arch:<7} {row.spec.name} " for row in audit.rows()]
    assert len(wanted) == len(TABLE) - 1, WRITE_AGAIN
    assert [line for line, start in zip(TABLE[1:], wanted, strict=True) if not line.startswith(start)] == [], (
        WRITE_AGAIN
    )


def test_the_sample_has_every_architecture_and_kind() -> None:
    jobs = audit.sample()
    assert {job.arch for job in jobs} == set(TARGETS)
    for arch in TARGETS:
        fused = [job.spec for job in jobs if job.arch == arch and isinstance(job.spec, FftConvSpec)]
        assert {(spec.part, spec.ring) for spec in fused} >= {
            (part, ring) for part in ("fwd", "dk") for ring in ("cyclic", "causal")
        }


def convolutions(audited: Audited) -> Audited:
    return [(job, found) for job, found in audited if type(job.spec) is FftConvSpec]  # not of a large ring's rows


def others(audited: Audited) -> Audited:
    return [(job, found) for job, found in audited if type(job.spec) is not FftConvSpec]


@pytest.mark.slow
def test_every_kernel_compiles_to_something_that_runs(audited: Audited) -> None:
    wrong = [(job, found.error or "trap") for job, found in audited if found.error or found.traps]
    assert not wrong


@pytest.mark.slow
def test_the_compilers_do_what_the_table_says(audited: Audited) -> None:
    """With the compiler that wrote the table, to the register. The assembler's count of instructions was seen to differ
    by one of eleven thousand from run to run."""
    if TABLE[0] != audit.header():
        pytest.skip(f"{TABLE[0]}; here is Triton {triton.__version__}")
    now = [audit.line(job, found) for job, found in audited]
    names = {tuple(line.split()[:2]) for line in now}
    then = sorted(line for line in TABLE[1:] if tuple(line.split()[:2]) in names)
    assert sorted(map(without_instructions, now)) == sorted(map(without_instructions, then)), WRITE_AGAIN
    assert instructions(sorted(now)) == pytest.approx(instructions(then), rel=0.01), WRITE_AGAIN


def without_instructions(line: str) -> str:
    return re.sub(r"instructions +\d+", "", line)


def instructions(lines: list[str]) -> list[int]:
    return [int(match[1]) for line in lines if (match := re.search(r"instructions +(\d+)", line))]


@pytest.mark.slow
def test_shared_memory_is_never_less_than_the_compilers(audited: Audited) -> None:
    for job, found in audited:
        assert job.spec.resources(job.arch).shared_bytes >= found.shared_bytes, job


@pytest.mark.slow
def test_shared_memory_is_exact_for_gated_kernels(audited: Audited) -> None:
    """But for the barriers of sm100's tensor cores, of which there are one or two or none, and an eighth of a tile."""
    for job, found in convolutions(audited):
        if job.spec.pre_gate and job.spec.post_gate and job.spec.part == "fwd" and not job.spec.wrap:
            more = job.spec.resources(job.arch).shared_bytes - found.shared_bytes
            assert 0 <= more <= BARRIERS.get(job.arch, 0), job


@pytest.mark.slow
def test_spills_and_occupancy_on_sm90(audited: Audited) -> None:
    """Order 2 up to 4096 points: next to no spills, and two blocks at 4096; staged 32K: at most 24."""
    seen = set()
    for job, found in convolutions(audited):
        spec = job.spec
        if job.arch == "sm90" and spec.part == "fwd" and spec.compute == "fp16" and not spec.staged:
            if spec.size <= 4096:
                assert found.spills <= (8 if spec.ring == "cyclic" else 40), job
                seen.add((spec.ring, spec.size))
            if spec.size == 4096:
                assert blocks(spec, target("sm90")) >= 2, job
        if job.arch == "sm90" and spec.radices == (32, 32, 32) and spec.compute == "fp16" and spec.part == "fwd":
            assert found.spills <= 24, job
            seen.add((spec.ring, spec.size))
    assert seen >= {(ring, size) for ring in ("cyclic", "causal") for size in (256, 1024, 2048, 4096)}
    assert ("cyclic", 32768) in seen


@pytest.mark.slow
def test_products_run_on_the_tensor_cores(audited: Audited) -> None:
    """On sm90 a product of 64 rows or more in four warps or more is a wgmma; on sm100 it runs on the fifth
    generation's."""
    for job, found in convolutions(audited):
        if job.spec.staged:
            assert found.matrix_unit != "none", job
        else:
            assert found.matrix_unit == expected_unit(job.spec, job.arch), job


def expected_unit(spec: FftConvSpec, arch: str) -> str:
    if arch == "gfx942":
        return "mfma"
    large = {"sm90": "wgmma", "sm100": "tcgen05"}.get(arch, "mma")
    if spec.num_warps < 4:
        return "mma"
    by_rows = {16: "mma", 32: large if large == "mma" else f"{large}+mma"}  # the two products have 2 R and R rows
    return by_rows.get(spec.held, large)


@pytest.mark.slow
def test_sequences_are_addressed_in_64_bits(audited: Audited) -> None:
    for job, found in convolutions(audited):
        for name in ("u_ptr", "y_ptr") if job.spec.part == "fwd" else ("u_ptr", "dy_ptr"):
            bases = re.findall(rf"(%\S+) = tt\.splat %{name}\b", found.texts["ttir"])
            offsets = [re.findall(rf"tt\.addptr {base}, .*xi(\d+)>", found.texts["ttir"]) for base in bases]
            assert {width for widths in offsets for width in widths} == {"64"}, (job, name)


@pytest.mark.slow
def test_the_other_families_use_the_matrix_units_without_spills(audited: Audited) -> None:
    """Those of transforms without spills on Hopper, elsewhere next to none. And on Hopper products read what they
    should; everywhere offsets have 64 bits."""
    transforms = {"spectrum", "outer", "rows", "filter"}
    families_seen = {job.spec.name.split("_")[0] for job, _ in others(audited)}
    assert families_seen >= {"blockdiag", "shortconv", "monarch", *transforms}
    for job, found in others(audited):
        units = {"sm90": "wgmma", "sm100": "tcgen05", "gfx942": "mfma"}
        family = job.spec.name.split("_")[0]
        if family == "monarch":  # whose products of many small blocks those two units do not take
            units = {"gfx942": "mfma"}
        if family in transforms:
            assert found.matrix_unit != "none" and found.spills <= (0 if job.arch == "sm90" else 8), job
        else:
            expected = units.get(job.arch, "mma") if family in ("blockdiag", "monarch") else "none"
            assert found.matrix_unit == expected and found.spills == 0, job
        assert families.reads(job, found) in ("", " reads right"), job
        widths = widths_of_offsets(found.texts["ttir"], family)
        assert widths <= {"64"} and (family not in transforms or widths), job


def widths_of_offsets(ttir: str, family: str) -> set[str]:
    """Of what is added to pointers to sequences and scratch; filters' kernels first go to their channel's part."""
    if family in ("spectrum", "filter"):
        return set(re.findall(r"tt\.addptr %(?:k|rev|rows|kf|dkf)_ptr, \S+ : !tt\.ptr<\w+>, i(\d+)", ttir))
    bases = re.findall(r"(%\S+) = tt\.splat %(?:x|u|s|dy|y)_ptr\b", ttir)
    return {width for base in bases for width in re.findall(rf"tt\.addptr {base}, .*xi(\d+)>", ttir)}

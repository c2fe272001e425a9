"""Every kernel of the committed list, compiled for GPUs that are not here: what it needs, and that it would run."""

from __future__ import annotations

from pathlib import Path

import audit
import pytest
import triton

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.survey import BARRIERS
from m2gen.runtime.cross_compile import Compiled, Job, compile_all

TABLE = (Path(__file__).parent / "audit.txt").read_text().splitlines()
WRITE_AGAIN = "if the change is meant: python tests/kernels/audit.py > tests/kernels/audit.txt"

pytestmark = pytest.mark.slow
Audited = list[tuple[str, Job, Compiled]]


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    asked = list(audit.jobs())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        results = list(compile_all([job for _, job in asked]))
    return [(text, job, compiled) for (text, job), compiled in zip(asked, results, strict=True)]


def test_every_kernel_compiles_to_something_that_runs(audited: Audited) -> None:
    wrong = [(text, job.arch, found.error or "trap") for text, job, found in audited if found.error or found.traps]
    assert not wrong


def test_the_compilers_do_what_the_table_says(audited: Audited) -> None:
    """With the compiler that wrote the table, to the register."""
    if TABLE[0] != audit.header():
        pytest.skip(f"{TABLE[0]}; here is Triton {triton.__version__}")
    assert [audit.line(text, found) for text, _, found in audited] == TABLE[1:], WRITE_AGAIN


def test_shared_memory_is_never_less_than_the_compilers(audited: Audited) -> None:
    for text, job, found in audited:
        assert job.spec.resources(job.arch).shared_bytes >= found.shared_bytes, (job.arch, text)


def test_shared_memory_is_exact_for_gated_forward_kernels(audited: Audited) -> None:
    """But for the barriers of sm100's tensor cores, of which there are one or two or none."""
    for text, job, found in audited:
        if job.spec.part == "fwd" and job.spec.pre_gate and not job.spec.staged:
            more = job.spec.resources(job.arch).shared_bytes - found.shared_bytes
            assert 0 <= more <= BARRIERS.get(job.arch, 0), (job.arch, text)


def test_products_run_on_the_tensor_cores(audited: Audited) -> None:
    """On sm90 a product of 64 rows or more is a wgmma; on sm100 it runs on the fifth generation's."""
    for text, job, found in audited:
        if job.spec.staged:
            assert found.matrix_unit != "none", (job.arch, text)
        else:
            assert found.matrix_unit == expected_unit(job.spec, job.arch), (job.arch, text)


def expected_unit(spec: FftConvSpec, arch: str) -> str:
    if arch == "gfx942":
        return "mfma"
    large = {"sm90": "wgmma", "sm100": "tcgen05"}.get(arch, "mma")
    by_rows = {16: "mma", 32: large if large == "mma" else f"{large}+mma"}  # the two products have 2 n1 and n1 rows
    return by_rows.get(spec.n1, large)

from __future__ import annotations

import dataclasses

import pytest
import torch

from m2gen import log
from m2gen.device.gpus import CARDS, GPUS, NEAR
from m2gen.device.limits import LIMITS, DeviceLimits, target
from m2gen.errors import PlanError
from m2gen.runtime.build import limits as runtime_limits
from m2gen.runtime.build.cpu import cpu_arch

ARCHITECTURES = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "gfx942", "avx2", "avx512", "neon", "generic")
FIGURES = {field.name for field in dataclasses.fields(DeviceLimits)} - {"arch", "kind", "description", "sources"}


def test_the_table_has_every_architecture():
    assert set(LIMITS) == set(ARCHITECTURES)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_rows_are_plausible(arch):
    row = target(arch)
    assert row.arch == arch
    assert hash(row) == hash(dataclasses.replace(row))
    assert min(row.matrix16, row.matrix32, row.vector32, row.dram_bandwidth, row.call_seconds) > 0
    assert 0 < row.fp64_ratio <= 1
    assert row.chunk_bytes < row.memory_bytes
    for curve in (row.bandwidths, row.fft_rates, row.fft_rows):
        points = [at for at, _ in curve]
        assert points == sorted(points)
    if row.kind == "gpu":
        assert row.shared_bytes > 0
        assert row.registers > 0
    else:
        assert row.cores == 1
        assert row.vector_bytes > 0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_source_is_told(arch):
    row = target(arch)
    told = " ".join(fields for fields, _ in row.sources)
    assert all(source for _, source in row.sources)
    if told != "all":
        for figure in ("matrix16", "dram_bandwidth", "memory_bytes", "fft_rates", "chunk_bytes", "call_seconds"):
            assert figure in told


def test_curves_interpolate():
    row = dataclasses.replace(target("avx2"), fft_rates=((100, 1.0), (10000, 100.0)), bandwidths=((10, 5.0),))
    row = dataclasses.replace(row, fft_rows=((1, 0.25), (4, 1.0)), fft_mixed=(0.5, 0.1))
    assert row.fft_rate(1, 4) == 1.0
    assert row.fft_rate(64, 9) == 1.0
    assert row.fft_rate(1000, 4) == pytest.approx(10.0 * 0.5)
    assert row.fft_rate(1001, 4) == pytest.approx(10.0 * 0.1, rel=0.01)
    assert row.fft_rate(2**30, 4) == 100.0
    assert row.fft_rate(1, 1) == 0.25
    assert row.fft_rate(1, 2) == pytest.approx(0.5)
    assert row.bandwidth(1) == row.bandwidth(10**9) == 5.0


def test_an_unknown_target_lists_the_known():
    with pytest.raises(PlanError) as caught:
        target("sm75")
    for arch in ARCHITECTURES:
        assert arch in str(caught.value)


def test_the_live_cpu_has_limits():
    row = runtime_limits.live(torch.device("cpu"))
    assert row.kind == "cpu"
    assert row.arch in LIMITS
    assert runtime_limits.live(torch.device("cpu")) is row


def test_a_device_that_is_neither():
    with pytest.raises(PlanError, match="neither a CPU nor"):
        runtime_limits.live(torch.device("meta"))


@pytest.mark.parametrize(
    ("capability", "machine", "arch"),
    [
        ("AVX512", "x86_64", "avx512"),
        ("AVX2", "AMD64", "avx2"),
        ("DEFAULT", "x86_64", "generic"),
        ("NO AVX", "x86_64", "generic"),
        ("SVE256", "aarch64", "neon"),
        ("DEFAULT", "arm64", "neon"),
        ("DEFAULT", "riscv64", "generic"),
    ],
)
def test_cpu_rows(capability, machine, arch):
    assert cpu_arch(capability, machine) == arch


@pytest.mark.parametrize(
    ("arch", "nearest"),
    [
        ("sm90", "sm90"),
        ("sm75", "sm80"),
        ("sm87", "sm86"),
        ("sm103", "sm100"),
        ("sm121", "sm120"),
        ("sm130", "sm120"),
        ("gfx90a", "gfx942"),
        ("gfx942", "gfx942"),
        ("smXY", "sm80"),
    ],
)
def test_an_unknown_gpu_gets_the_nearest_row(arch, nearest, monkeypatch):
    said = []
    monkeypatch.setattr(runtime_limits.log, "fallback", said.append)
    assert runtime_limits.nearest_gpu(arch).arch == nearest
    assert bool(said) == (arch != nearest)


def test_a_live_gpu_brings_its_own_figures(monkeypatch):
    class Properties:
        name, major, minor = "Some GPU", 10, 3
        multi_processor_count, total_memory, shared_memory_per_block_optin = 17, 10**9, 200_000

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties())
    monkeypatch.setattr(torch.version, "hip", None)
    row = runtime_limits._gpu(torch.device("cuda", 0))
    assert (row.arch, row.cores, row.memory_bytes, row.shared_bytes) == ("sm100", 17, 10**9, 200_000)
    assert "Some GPU" in row.description


@pytest.mark.parametrize(
    ("name", "arch"),
    [("h100", "sm90"), ("A100", "sm80"), ("NVIDIA GeForce RTX 4090", "sm89"), ("rtx-3090", "sm86"), ("B200", "sm100")]
    + [("MI300X", "gfx942"), ("5090", "sm120"), ("SM90", "sm90"), ("H100 SXM", "sm90")],
)
def test_a_card_is_a_name_of_its_row(name: str, arch: str, caplog: pytest.LogCaptureFixture) -> None:
    assert target(name) is LIMITS[arch]
    assert not caplog.records


def test_a_card_that_is_planned_for_as_another_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(log, "fallback", said.append)
    assert target("H200") is LIMITS["sm90"]
    assert said == ["there is no row for H200: planned for as sm90 (NVIDIA H100 SXM5 80 GB)"]


def test_every_gpu_row_has_its_cards_name_and_an_unknown_target_is_told_all() -> None:
    assert set(CARDS.values()) == {row.arch for row in GPUS} and not set(CARDS) & set(NEAR)
    for card, arch in CARDS.items():
        assert card in LIMITS[arch].description.lower()
    with pytest.raises(PlanError) as raised:
        target("h1000")
    for part in ("use one of sm80 (NVIDIA A100 SXM 80 GB), ", "gfx942 (AMD Instinct MI300X)", "h200", "avx2 ("):
        assert part in str(raised.value).replace("Use", "use")

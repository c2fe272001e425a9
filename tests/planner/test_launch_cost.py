"""What a launch costs: laws that hold whatever the constants, prototypes that were timed, the kernels' own formula."""

from __future__ import annotations

from dataclasses import replace

import pytest

from m2gen.device.limits import LIMITS, DeviceLimits, target
from m2gen.kernels.named import named
from m2gen.kernels.survey import found, held
from m2gen.planner.fftconv.cost import fused_estimates, fused_seconds
from m2gen.planner.fftconv.launch_cost import (
    KEPT,
    STREAMED,
    TileLaunch,
    lost,
    spill_factor,
    streaming_seconds,
    tile_seconds,
)
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import most_tiles, of_gradient, programs
from m2gen.planner.problems import parse

H100 = target("sm90")
GPUS = [row for row in LIMITS.values() if row.kind == "gpu"]
LAUNCH = TileLaunch(
    moved=1.6e9, tiles=24576, programs=768, flop=8.4e6, instructions=1316, threads=128, blocks=2, shared_bytes=98304
)
MORE = {
    "moved": 4e9,
    "tiles": 49152,
    "flop": 4e7,
    "instructions": 4000,
    "spills": 300,
    "threads": 256,
    "stages": 1,
    "products": 8,
    "scratch": 65536.0,
    "own": 64,
    "narrower": 6.0,
}


@pytest.mark.parametrize("row", GPUS, ids=lambda row: row.arch)
@pytest.mark.parametrize("name", MORE)
def test_more_of_anything_takes_longer(row: DeviceLimits, name: str) -> None:
    assert tile_seconds(LAUNCH._replace(**{name: MORE[name]}), row) > tile_seconds(LAUNCH, row)


@pytest.mark.parametrize("row", GPUS, ids=lambda row: row.arch)
def test_no_launch_is_below_what_its_units_need(row: DeviceLimits) -> None:
    for launch in (LAUNCH, LAUNCH._replace(moved=1e11), LAUNCH._replace(flop=1e11), LAUNCH._replace(instructions=1e6)):
        issue = 2 * launch.tiles * launch.instructions * launch.threads / row.vector32
        memory, units = launch.moved / row.dram_bandwidth, launch.tiles * launch.flop / row.matrix16
        seconds = tile_seconds(launch, row)
        assert seconds > max(memory, units, issue)
        if memory > 10 * tile_seconds(LAUNCH, row):  # then nothing else counts
            assert seconds < 1.01 * memory / STREAMED


def test_blocks_overlap_and_waves_follow_one_another() -> None:
    small = LAUNCH._replace(moved=0.0, flop=0.0)
    one, two = (tile_seconds(small._replace(blocks=blocks), H100) for blocks in (1, 2))
    assert one / two == pytest.approx(2, rel=0.1)  # 768 programs on 132 multiprocessors: 6 waves, or 3
    assert tile_seconds(small._replace(blocks=3), H100) == pytest.approx(two * 2 / 3, rel=0.1)
    assert tile_seconds(small._replace(full=True), H100) < two


def test_streaming_passes_are_at_the_floor_as_their_prototypes() -> None:
    """Outer passes of 32K points as 32 x 1K with a gate, H100, 2026-11-26: 0.81 and 0.85 ms for three tensors."""
    three = 3 * 16 * 768 * 32768 * 2
    for measured in (0.81e-3, 0.85e-3):
        assert streaming_seconds(three, H100) == pytest.approx(measured, rel=0.06)
    assert streaming_seconds(0, H100, launches=3) == 3 * H100.call_seconds


def test_halves_of_a_cache_keep_less() -> None:
    """35 MB of scratch did not stay in an H100's two halves of 25 MB; 8 MB do."""
    assert lost(0.0, H100) == lost(8e6, H100) == 0.0
    assert 0.3 < lost(35e6, H100) < 0.6  # 43 % of all reads missed the cache
    whole = replace(H100, l2_halves=1)
    assert lost(35e6, whole) == 0.0 < lost(70e6, whole) < lost(70e6, H100) < 1.0
    assert lost(1e9, whole) == pytest.approx(1 - KEPT * 50 * 2**20 / 1e9)


def test_spills_cost_more_where_shared_memory_takes_the_cache() -> None:
    roomy, crowded = (spill_factor(300, 128, 2, shared, H100) for shared in (40_000, 114_688))
    assert spill_factor(0, 128, 2, 114_688, H100) == 0.0 < roomy < crowded


GATED = parse("fftconv n=4096 h=768 b=64 fp16 circular gated")
NAMES = (
    "fftconv_fwd_n4096_r64x64_cyclic_fp16_fp16_pre_post_w4_s2",
    "fftconv_fwd_n4096_r64x64_cyclic_fp16_fp16_pre_post_w8_s1",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_costs_what_its_launch_in_numbers_costs(name: str) -> None:
    """The formula that is printed and the function that others call are one."""
    spec = named(name)
    assert spec is not None and isinstance(GATED, FftConvProblem)
    entry = found(spec, "sm90")
    assert entry is not None
    launch = TileLaunch(
        moved=64 * 768 * 4096 * 2 * 4 + 2 * 768 * 4096 * 2,
        tiles=32 * 768,
        programs=programs(GATED, H100, spec),
        flop=4096 * (16 * 64 + 16 * 64),
        instructions=entry.instructions,
        threads=32 * spec.num_warps,
        blocks=held(spec, H100),
        spills=entry.spills,
        shared_bytes=spec.resources("sm90").shared_bytes,
        stages=spec.num_stages,
    )
    assert tile_seconds(launch, H100) == pytest.approx(fused_seconds(GATED, spec, H100))


def test_the_filters_gradient_has_a_cost_of_its_own() -> None:
    """Of what the compiler made of it, of its tensors, and of the bins that each program writes."""
    dk = named("fftconv_dk_n4096_r64x64_cyclic_fp16_fp16_pre_post_w4_s1")
    fwd = named(NAMES[0])
    assert dk is not None and fwd is not None and isinstance(GATED, FftConvProblem)
    count = of_gradient(GATED, H100, fwd, dk)
    launched = fused_estimates(GATED, dk, H100, count=count)[1]
    sequences, sums = 64 * 768 * 4096 * 2 * 4, count * 8 * 4096
    assert launched.bytes == sequences + sums
    assert launched.seconds != fused_estimates(GATED, fwd, H100)[1].seconds
    assert launched.flop == fused_estimates(GATED, fwd, H100)[1].flop  # two analyses: as many products


@pytest.mark.parametrize("text", ["n=4096 b=7", "n=256 b=64", "n=32768 b=16", "n=8192 b=3 h=100", "n=1024 b=1 h=5000"])
def test_programs_do_every_tile(text: str) -> None:
    problem = parse(f"fftconv h=768 bf16 causal gated {text}" if "h=" not in text else f"fftconv bf16 causal {text}")
    assert isinstance(problem, FftConvProblem)
    for part in ("fwd", "dk"):
        for name in ("n256_r16x16_causal_bf16_fp16_stack4", "n32768_r32x32x32_causal_bf16_fp16_stack2"):
            spec = named(f"fftconv_{part}_{name}_w4_s2")
            assert spec is not None
            count, tiles = programs(problem, H100, spec), problem.h * -(-problem.b // spec.batch_rows)
            most = most_tiles(problem, spec, count)
            assert 1 <= count <= tiles and most * count >= tiles
            assert most_tiles(problem, spec, 1 if spec.staged else problem.h) >= most

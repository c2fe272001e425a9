"""What the long convolution should take on a GPU by the planner's estimates, from 256 to 16M points, beside its floor
and flash-fft-conv; nothing is run.

B = 64 and H = 768 as in flash-fft-conv's README. Long sequences have fewer rows and channels, as theirs had, and all
figures of a line are then of these. The floor is each tensor once at the rate of a copy: forward u, gates and the
result, for the gradients those, the result's gradient and the gradients (of seven tensors with both gates). The
filter's spectrum is made in the call, and its gradient counts as a gradient.

flash-fft-conv: measured beside m2gen on an H100 (bench/results), or else as its README has it for the gated circular
convolution on an H100 at B = 64, H = 768, scaled to the line's rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from m2gen.device.limits import DeviceLimits, target
from m2gen.dtypes import DTYPES
from m2gen.planner.fftconv.launch_cost import STREAMED
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problems import parse
from m2gen.planner.search import plan

WORDS = ("fp16 circular gated", "bf16 causal gated")
BATCH, CHANNELS, NUMBERS = 64, 768, 64 * 768 * 8192  # as many numbers in a tensor as memory has room for
LENGTHS = tuple(2**power for power in range(8, 25))
PUBLISHED = {2**20: 1768.9, 2**21: 4623.5, 2**22: 10049.4}  # ms, forward
MEASURED = Path(__file__).parent / "results" / "2026-11-26-gpu-beside-flash-fft-conv-h100.json"


def problem(n: int, words: str) -> FftConvProblem:
    """With rows and channels that fit into memory, two rows at least."""
    rows = max(2, min(BATCH, NUMBERS // (CHANNELS * n)))
    channels = max(8, min(CHANNELS, NUMBERS // (rows * n)))
    return parse(f"fftconv n={n} h={channels} b={rows} {words}")  # type: ignore[return-value]


def floors(of: FftConvProblem, limits: DeviceLimits) -> tuple[float, float]:
    """Seconds forward, and of the gradients."""
    tensor = of.b * of.h * of.n * DTYPES[of.dtype].bytes / (STREAMED * limits.dram_bandwidth)
    return tensor * (2 + of.gates), tensor * (3 + 2 * of.gates)


def line(of: FftConvProblem, limits: DeviceLimits) -> dict[str, Any]:
    """The plan for a call with gradients, its estimates and launches."""
    chosen = plan(of, limits)
    filters = chosen.steps[0].estimate if len(chosen.steps) > 1 else None
    launches = chosen.body.launches(of, limits, True)
    made = (filters.seconds, filters.launches) if filters else (0.0, 0)
    ways = [[one for one in launches if one.back == back] for back in (False, True)]
    forward, back = (sum(one.seconds for one in some) for some in ways)
    floor, floor_back = floors(of, limits)
    return {
        "problem": str(of),
        "plan": chosen.choice,
        "forward": (forward + made[0], (forward + made[0]) / floor, len(ways[0]) + int(made[1])),
        "backward": (back, back / floor_back, len(ways[1])),
        "floor": (floor, floor_back),
        "flash": _flash(of),
    }


def _flash(of: FftConvProblem) -> dict[str, float]:
    """Milliseconds of flash-fft-conv for as many rows: forward, and forward and backward."""
    rows = [row for row in json.loads(MEASURED.read_text())["results"] if parse(row["problem"]) == of]
    found = {row["group"].removeprefix("gpu "): row["ms"]["flash-fft-conv"]["median"] for row in rows}
    if not found and of.mode == "circular" and of.n in PUBLISHED:
        return {"forward, published": PUBLISHED[of.n] * of.b * of.h / (BATCH * CHANNELS)}
    return found


def table(lines: Iterable[dict[str, Any]]) -> Iterator[str]:
    yield "| problem | floor | forward (floors), launches | gradients (floors), launches | both | flash-fft-conv |"
    yield "|---|---|---|---|---|---|"
    for one in lines:
        ways = [one["forward"], one["backward"]]
        cells = [
            f"{1e3 * seconds:.3g} ({floors:.2f}), {launches}" if launches else "not told by its plan"
            for seconds, floors, launches in ways
        ]
        flash = "; ".join(f"{what} {ms:.3g}" for what, ms in one["flash"].items())
        floor = " + ".join(f"{1e3 * seconds:.3g}" for seconds in one["floor"])
        both = f"{1e3 * sum(way[0] for way in ways):.3g}"
        yield f"| {one['problem'].removeprefix('fftconv ')} | {floor} | {cells[0]} | {cells[1]} | {both} | {flash} |"


def legend(limits: DeviceLimits) -> str:
    """What the columns are."""
    rate = STREAMED * limits.dram_bandwidth
    return (
        f"{limits.description}: the planner's estimates in milliseconds, nothing was run.\n"
        f"floor: every tensor once at {rate / 1e9:.4g} GB/s, the rate of a copy ({STREAMED:g} of the data sheet's "
        f"{limits.dram_bandwidth / 1e9:.4g}): forward + gradients.\n"
        "forward, gradients: estimate (in brackets, how many floors that is), number of launches; both: their sum.\n"
        f'flash-fft-conv, on an H100 whatever the target is: "forward" and "forward and backward" measured '
        f"({MEASURED.name}); \"published\": its README's (B = 64, H = 768, gated, circular), scaled to the line's rows "
        "and channels.\n"
    )


def main(arch: str, only: str | None) -> None:
    limits = target(arch)
    found = (line(problem(n, words), limits) for words in WORDS for n in LENGTHS)
    print(legend(limits))
    for text in table(one for one in found if only is None or only in one["problem"]):
        print(text, flush=True)

"""Which of several calls is fastest, and by how much: interleaved, in random order, medians of ratios.

Calls are timed in rounds, each call once a round in an order drawn anew with a fixed seed, so that whatever drifts
(clocks, neighbours, the allocator) meets all of them alike; a call is compared with another round by round. On a GPU
each call is captured in a CUDA graph where that is possible, timed by events, and the L2 cache is flushed before it;
that part has not been run on a device.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch

Call = Callable[[], object]

_SHORTEST = 5e-4  # seconds: shorter calls are repeated within a sample, which then lasts this long
_MOST_REPEATS = 200
_FLUSH_BYTES = 256 * 2**20  # more than any L2 cache


@dataclass(frozen=True)
class Samples:
    """The seconds of one call, round by round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def ratio(self, other: Samples) -> tuple[float, float]:
        """This call's time over the other's in the same round: the median, and how uncertain it is: twice the
        distance of the quartiles over the root of the number of rounds, about two standard errors."""
        ratios = [a / b for a, b in zip(self.seconds, other.seconds, strict=True)]
        if len(ratios) < 2:
            return ratios[0], math.inf
        low, middle, high = quantiles(ratios, n=4)
        return middle, 2 * (high - low) / math.sqrt(len(ratios))


def interleaved(
    calls: Mapping[str, Call], device: torch.device, *, seconds: float, least: int = 5, most: int = 60, seed: int = 0
) -> dict[str, Samples]:
    """Time every call in rounds until `seconds` have passed, at least `least` and at most `most` rounds.

    The first round warms up and is thrown away.
    """
    clock = _gpu_clock(device) if device.type == "cuda" else _cpu_sample
    prepared = {name: _captured(call, device) if device.type == "cuda" else call for name, call in calls.items()}
    repeats = {name: _repeats(clock(call, 1)) for name, call in prepared.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, started, done = random.Random(seed), time.perf_counter(), 0
    while done < least or (done < most and time.perf_counter() - started < seconds):
        for name in order.sample(list(prepared), len(prepared)):
            times[name].append(clock(prepared[name], repeats[name]))
        done += 1
    return {name: Samples(tuple(found)) for name, found in times.items()}


def _repeats(seconds: float) -> int:
    return max(1, min(_MOST_REPEATS, round(_SHORTEST / max(seconds, 1e-9))))


def _cpu_sample(call: Call, repeats: int) -> float:
    """Seconds a call. One thread's are its processor time, so that being held up by others does not count."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        call()
    return (clock() - start) / repeats


def _gpu_clock(device: torch.device) -> Callable[[Call, int], float]:
    """Seconds between two events around a call; the L2 cache is flushed before each repetition."""
    flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def sample(call: Call, repeats: int) -> float:
        total = 0.0
        for _ in range(repeats):
            flush.zero_()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            start.record()
            call()
            end.record()
            torch.cuda.synchronize(device)
            total += start.elapsed_time(end) / 1e3
        return total / repeats

    return sample


def _captured(call: Call, device: torch.device) -> Call:
    """The call as a replay of its CUDA graph, as deployed models run it; itself where it cannot be captured."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        torch.cuda.synchronize(device)
        return call
    return graph.replay


def best_of(samples: Mapping[str, Samples], default: str, noise: float) -> str:
    """The first, in the mapping's order, of those near the best; the default unless it is certainly beaten by `noise`.

    Ratios to the default are compared, round by round, so that a change of speed during the measurement does not count.
    """
    ratios = {name: one.ratio(samples[default]) for name, one in samples.items()}
    better = {name: ratio for name, (ratio, unsure) in ratios.items() if ratio + unsure < 1 - noise}
    if not better:
        return default
    return next(name for name, ratio in better.items() if ratio <= min(better.values()) * (1 + noise / 2))

"""How long the demo's long convolution takes beside the same formula in whole-tensor torch.fft calls."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from m2gen.ops.fftconv import fftconv


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one call: the median over rounds and the fastest and slowest round."""

    name: str
    median: float
    fastest: float
    slowest: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ({self.fastest:.2f} to {self.slowest:.2f})"


def torch_fft_conv(u: Tensor, k: Tensor, pre_gate: Tensor, post_gate: Tensor, skip: Tensor) -> Tensor:
    """The gated causal convolution as whole-tensor calls; u and gates (B, H, L), k (H, L), skip (H,)."""
    length = u.shape[-1]
    z = u * pre_gate
    spectrum = torch.fft.rfft(z, n=2 * length) * torch.fft.rfft(k, n=2 * length)
    y: Tensor = post_gate * (torch.fft.irfft(spectrum, n=2 * length)[..., :length] + skip[:, None] * z)
    return y


def time_long_convolution(batch: int, channels: int, length: int, *, rounds: int = 9) -> tuple[Timing, Timing]:
    """m2gen's and torch.fft's time for the causal convolution with gates and skip, float32, forward.

    Both run in every round, one after the other and in turn first, so that whatever else the machine does meets both.
    """
    generator = torch.Generator().manual_seed(0)
    u, pre, post = torch.randn(3, batch, channels, length, generator=generator)
    k, skip = torch.randn(channels, length, generator=generator) / length, torch.randn(channels, generator=generator)
    calls = {
        "m2gen": lambda: fftconv(u, k, pre_gate=pre, post_gate=post, skip=skip),
        "torch.fft": lambda: torch_fft_conv(u, k, pre, post, skip),
    }
    with torch.no_grad():
        ours, theirs = _interleaved(calls, rounds)
    return ours, theirs


def _interleaved(calls: dict[str, Callable[[], Tensor]], rounds: int) -> list[Timing]:
    repeats = {name: _repeats(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in sorted(calls, reverse=bool(turn % 2)):
            times[name].append(_milliseconds(calls[name], repeats[name]))
    return [Timing(name, statistics.median(t), min(t), max(t)) for name, t in times.items()]


def _repeats(call: Callable[[], Tensor]) -> int:
    """Calls that last about 20 ms together, after a first one that pays for plans and caches."""
    call()
    return max(1, round(20 / max(_milliseconds(call, 1), 1e-3)))


def _milliseconds(call: Callable[[], Tensor], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) * 1e3 / repeats

"""Random operands for a problem."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.fftconv.problem import FftConvProblem


def operands(problem: FftConvProblem, seed: int = 0, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Keyword arguments of `m2gen.fftconv` for the problem: normal values, the filter decaying like a trained one."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, DTYPES[problem.dtype].torch_name)
    filters = torch.float64 if problem.dtype == "fp64" else torch.float32
    batch, channels, length, taps = problem.b, problem.h, problem.n, problem.taps_given
    shape = (batch, channels, length) if problem.layout == "BHL" else (batch, length, channels)

    def normal(*size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(device=device, dtype=dtype)

    def filter_() -> Tensor:
        decay = torch.exp(-4 * torch.arange(taps, dtype=torch.float64) / taps)
        return (torch.randn(channels, taps, generator=generator, dtype=torch.float64) * decay).to(device, filters)

    found: dict[str, Any] = {"u": normal(*shape, dtype=dtype), "k": filter_(), "mode": problem.mode}
    if problem.mode == "bidirectional":
        found["k_rev"] = filter_()
    for name in ("pre_gate", "post_gate"):
        if getattr(problem, name):
            found[name] = normal(*shape, dtype=dtype)
    if problem.skip:
        found["skip"] = normal(channels, dtype=filters)
    if problem.add:
        found["add"] = normal(*shape, dtype=dtype)
    return found | {"layout": problem.layout}

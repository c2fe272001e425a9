"""Filters for the tests of their spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.runtime.bindings.spectral import Operands


def drawn(problem: FftConvProblem, h: int, dtype: torch.dtype = torch.float32, how: str = "as is") -> Operands:
    """Taps of `h` channels and the skip: as they are, every second number of memory, or channels as neighbours."""
    generator = torch.Generator().manual_seed(0)

    def taps(*shape: int) -> Tensor:
        t = torch.randn(*shape, generator=generator).to(dtype)
        if how == "step":
            t = torch.stack([t, -t], -1).flatten(-2)[..., ::2]
        return t.T.contiguous().T if how == "turned" and t.dim() == 2 else t

    k = taps(h, problem.taps_given)
    k_rev = taps(h, problem.taps_given) if problem.mode == "bidirectional" else None
    return Operands(k, k, k_rev, skip=taps(h) if problem.skip else None)

"""How far a result may be from the float64 reference: c * eps(dtype) * sqrt(reduction length), one table."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# c, for the largest and for the root-mean-square error, both relative to `scale`
C_MAX = 2.0
C_RMS = 0.5


def check(y: Tensor, reference: Tensor, scale: Tensor, reduction: int, dtype: torch.dtype | None = None) -> None:
    """Raise AssertionError where y is too far from the reference.

    Args:
        y: what was computed; its dtype sets eps unless `dtype` is given.
        reference: the same in float64.
        scale: what an error is measured against, broadcast to y: the size of the terms that were summed, since a sum
            that cancels keeps the error of its terms.
        reduction: how many terms each entry sums.
    """
    if y.shape != reference.shape:
        raise AssertionError(f"shape {tuple(y.shape)}, expected {tuple(reference.shape)}")
    if y.numel() == 0:
        return
    bound = torch.finfo(dtype or y.dtype).eps * math.sqrt(reduction)
    error = (y.double() - reference).abs() / scale.double().clamp_min(torch.finfo(torch.float64).tiny)
    worst, rms = error.max().item(), error.square().mean().sqrt().item()
    if not (worst <= C_MAX * bound and rms <= C_RMS * bound):  # also false for NaN
        raise AssertionError(
            f"error {worst:.3g} (largest), {rms:.3g} (rms); allowed {C_MAX * bound:.3g} and {C_RMS * bound:.3g}"
        )

"""The filter on a ring: lag d at position d mod size, and the same backwards for its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.planner.fftconv.problem import FftConvProblem


class Ring:
    """Where the taps of a problem's filter stand on a ring of `size` positions."""

    def __init__(self, problem: FftConvProblem, size: int) -> None:
        self.lo, self.hi = problem.taps
        self.size = size
        self.centre = (problem.taps_given - 1) // 2 if problem.mode == "same" else 0  # the tap of lag 0

    def place(self, k: Tensor, k_rev: Tensor | None) -> Tensor:
        """k, k_rev (H, K) -> the ring (H, size); short, to be padded with zeros, where no lag is negative."""
        ahead = k[:, self.centre : self.centre + self.hi + 1]
        if self.lo == 0:
            return ahead
        behind = k[:, self.centre - self.lo : self.centre] if k_rev is None else k_rev[:, : self.lo].flip(-1)
        return torch.cat([F.pad(ahead, (0, self.size - self.lo - self.hi - 1)), behind], dim=-1)

    def write_gradients(self, ring: Tensor, part: slice, dk: Tensor | None, dk_rev: Tensor | None) -> None:
        """Read the taps' gradients off the ring; taps that never reach an output keep the zero they have."""
        ahead, behind = ring[:, : self.hi + 1], ring[:, ring.shape[1] - self.lo :]
        if dk is not None:
            dk[part, self.centre : self.centre + self.hi + 1] = ahead
            if self.centre:
                dk[part, self.centre - self.lo : self.centre] = behind
        if dk_rev is not None:
            dk_rev[part, : self.lo] = behind.flip(-1)

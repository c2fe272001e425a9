"""The filter on a ring: lag d at position d mod size, and the same backwards for its gradient.

On the ring t^size = i a negative lag d stands at d + size with the factor -i, as t^d = t^(d + size) / i. With real
sequences all that wraps is then imaginary, whichever way it went, so the real part is the convolution with both sides.
"""

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
        ahead, behind = self._sides(k, k_rev)
        if behind is None:
            return ahead
        return torch.cat([F.pad(ahead, (0, self.size - self.lo - self.hi - 1)), behind], dim=-1)

    def place_complex(self, k: Tensor, k_rev: Tensor | None, half: bool) -> Tensor:
        """k, k_rev (H, K) -> the ring (H, size), complex; `half`: t^size = i, on which taps of negative lags are
        imaginary, so that a place may hold one of either side."""
        ahead, behind = self._sides(k, k_rev)
        taps = k.new_zeros((k.shape[0], self.size), dtype=torch.promote_types(k.dtype, torch.complex64))
        parts = torch.view_as_real(taps)
        parts[:, : self.hi + 1, 0] = ahead
        if behind is not None and half:
            torch.neg(behind, out=parts[:, self.size - self.lo :, 1])
        elif behind is not None:
            parts[:, self.size - self.lo :, 0] = behind
        return taps

    def _sides(self, k: Tensor, k_rev: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The taps at lags 0 .. hi, and those at -lo .. -1 where there are some."""
        ahead = k[:, self.centre : self.centre + self.hi + 1]
        if self.lo == 0:
            return ahead, None
        return ahead, k[:, self.centre - self.lo : self.centre] if k_rev is None else k_rev[:, : self.lo].flip(-1)

    def write_gradients(
        self, ring: Tensor, part: slice, dk: Tensor | None, dk_rev: Tensor | None, other: Tensor | None = None
    ) -> None:
        """Read the taps' gradients off the ring, those of negative lags off `other` where that is given; taps that
        never reach an output keep the zero they have."""
        ahead, behind = ring[:, : self.hi + 1], (ring if other is None else other)[:, ring.shape[1] - self.lo :]
        if dk is not None:
            dk[part, self.centre : self.centre + self.hi + 1] = ahead
            if self.centre:
                dk[part, self.centre - self.lo : self.centre] = behind
        if dk_rev is not None:
            dk_rev[part, : self.lo] = behind.flip(-1)

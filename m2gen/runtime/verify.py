"""Whether a candidate computes the right thing: some rows of a call against the float64 reference.

Rows are the first and last of the batch and some channels, all outputs of short sequences, a sample of long ones with
both ends in it. The tolerance is the tests' own (m2gen/testing/tolerances.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.reference.fftconv import fftconv_at
from m2gen.runtime.spectral import Operands
from m2gen.testing.tolerances import check

_TERMS = 2**26  # products a channel that the reference may take
_TENSORS = ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")


@dataclass(frozen=True)
class Oracle:
    """Rows of a problem's result in float64: y[rows of the batch, channels, positions]."""

    batch: Tensor
    channels: Tensor
    positions: Tensor
    expected: Tensor
    scale: Tensor
    terms: int

    def wrong(self, y: Tensor, sign: float) -> str | None:
        """Why `y` (B, H, L), computed from u times `sign`, is wrong; None where it is right."""
        device = y.device
        found = y[self.batch.to(device)][:, self.channels.to(device)][..., self.positions.to(device)].cpu()
        try:
            check(found, sign * self.expected, self.scale, self.terms)
        except AssertionError as error:
            return f"it is wrong: {error}"
        return None


def oracle(problem: FftConvProblem, x: Operands) -> Oracle:
    """The reference's answer to the operands of a problem, for some of its rows."""
    h, n = problem.h, problem.n
    channels = torch.tensor(sorted({0, h // 3, 2 * h // 3, h - 1}))
    batch = torch.tensor(sorted({0, x.u.shape[0] - 1}))
    count = min(n, max(32, _TERMS // n))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(n, generator=generator)[:count]
    positions = torch.tensor(sorted({*drawn.tolist(), 0, n - 1}))
    rows = {name: _rows(getattr(x, name), batch, channels) for name in _TENSORS}
    given = {name: value for name, value in rows.items() if value is not None}
    expected = _at(positions, given, problem.mode)
    # what an error is measured against: the size of the terms that were summed, times the gate after the sum
    sizes = {name: value.abs() for name, value in given.items()}
    gate = sizes.pop("post_gate", None)
    scale = _at(positions, sizes, problem.mode).amax(-1, keepdim=True)
    scale = scale if gate is None else scale * gate.double()[..., positions]
    return Oracle(batch, channels, positions, expected, scale, problem.linear_size)


def _at(positions: Tensor, given: dict[str, Tensor], mode: str) -> Tensor:
    rest: dict[str, Any] = {name: value for name, value in given.items() if name not in ("u", "k")}
    return fftconv_at(positions, given["u"], given["k"], mode=mode, **rest)


def _rows(tensor: Tensor | None, batch: Tensor, channels: Tensor) -> Tensor | None:
    if tensor is None:
        return None
    if tensor.dim() == 3:
        tensor = tensor[batch.to(tensor.device)][:, channels.to(tensor.device)]
    else:
        tensor = tensor[channels.to(tensor.device)]
    return tensor.cpu()


def negated(x: Operands) -> Operands:
    """The same problem with the opposite answer: a result left over from another call would be wrong."""
    return replace(x, u=-x.u)

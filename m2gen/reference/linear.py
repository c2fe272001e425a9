"""The structured linear layers and the short convolution, written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def blockdiag_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x times the dense block-diagonal matrix, in float64."""
    dense: Tensor = torch.block_diag(*weight.double())  # type: ignore[no-untyped-call]
    y = x.double() @ dense.T
    return y if bias is None else y + bias.double()


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> Tensor:
    """One torch convolution with a group per channel, in float64; x (B, H, L)."""
    groups, padded = weight.shape[0], F.pad(x.double(), (left, right))
    offset = None if bias is None else bias.double()
    y: Tensor = F.conv1d(padded, weight.double().unsqueeze(1), offset, groups=groups)
    return y

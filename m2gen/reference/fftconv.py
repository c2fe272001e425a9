"""The convolution as the sum it is, y[i] = sum_j w[i-j] z[j], in float64: no transform anywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def lag_weights(k: Tensor, length: int, mode: str, k_rev: Tensor | None = None) -> Tensor:
    """w (H, 2L-1): the weight of z[j] in y[i] for i - j = -(L-1) .. L-1."""
    lag = torch.arange(1 - length, length)
    if mode == "circular":
        return _tap(k, lag % length)
    if mode == "same":
        return _tap(k, lag + (k.shape[1] - 1) // 2)
    weights = _tap(k, lag)
    return weights if k_rev is None else weights + _tap(k_rev, -lag - 1)


def _tap(k: Tensor, index: Tensor) -> Tensor:
    """k[h, index], zero where the index is outside the filter."""
    inside = (index >= 0) & (index < k.shape[1])
    return torch.where(inside, k.double()[:, index.clamp(0, k.shape[1] - 1)], 0.0)


def toeplitz_apply(weights: Tensor, z: Tensor, rows: int = 256) -> Tensor:
    """y[b, h, i] = sum_j w[h, i-j] z[b, h, j], some rows of the Toeplitz matrix at a time."""
    windows = weights.flip(-1).unfold(-1, z.shape[-1], 1).flip(1)  # windows[h, i, j] = w[h, i - j]
    return torch.cat([z.movedim(0, 1) @ part.mT for part in torch.split(windows, rows, dim=1)], dim=-1).movedim(0, 1)


def fftconv(
    u: Tensor,
    k: Tensor,
    *,
    mode: str = "causal",
    k_rev: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    layout: str = "BHL",
) -> Tensor:
    """y = post_gate * (conv(z, k) + skip * z) + add, z = u * pre_gate, in float64 and in the layout of u."""
    if layout == "BLH":
        pre, post, add = (None if x is None else x.mT for x in (pre_gate, post_gate, add))
        return fftconv(u.mT, k, mode=mode, k_rev=k_rev, pre_gate=pre, post_gate=post, skip=skip, add=add).mT
    z = u.double() if pre_gate is None else u.double() * pre_gate.double()
    y = toeplitz_apply(lag_weights(k, u.shape[2], mode, k_rev), z)
    y = y if skip is None else y + skip.double().unsqueeze(-1) * z
    y = y if post_gate is None else y * post_gate.double()
    return y if add is None else y + add.double()


def fftconv_at(
    positions: Tensor,
    u: Tensor,
    k: Tensor,
    *,
    mode: str = "causal",
    k_rev: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    skip: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """y[:, :, positions] of `fftconv` in layout BHL, (B, H, P): the sum of those outputs alone, for long sequences."""
    z = u.double() if pre_gate is None else u.double() * pre_gate.double()
    length = z.shape[2]
    windows = lag_weights(k, length, mode, k_rev).flip(-1).unfold(-1, length, 1)
    rows = max(1, 2**24 // length)
    parts = [z.movedim(0, 1) @ windows[:, length - 1 - some].mT for some in torch.split(positions, rows)]
    y = torch.cat(parts, dim=-1).movedim(0, 1)
    y = y if skip is None else y + skip.double().unsqueeze(-1) * z[..., positions]
    y = y if post_gate is None else y * post_gate.double()[..., positions]
    return y if add is None else y + add.double()[..., positions]

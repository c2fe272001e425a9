"""The Monarch Mixer layer of arXiv 2310.12109, section 3, in a page of plain torch.

A Monarch is a pair of factors (first, second), each (nblocks, block_out, block_in). A layer mixes along the sequence,
then along the model dimension; with M1 = DFT, M2 = its inverse and K1 = DFT(k) the first step is a convolution.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Monarch = tuple[Tensor, Tensor]


def monarch(x: Tensor, factors: Monarch) -> Tensor:
    """P L P R P on the last axis: the permutations are the order in which the digits of an index are read."""
    first, second = factors
    digits = x.reshape(*x.shape[:-1], first.shape[2], first.shape[0]).to(first.dtype)
    return torch.einsum("...jk,kij,ilk->...li", digits, first, second).flatten(-2)


def sequence_step(x: Tensor, m1: Monarch, k1: Tensor, m2: Monarch) -> Tensor:
    """x (B, N, d), k1 (d, N) -> M2 (K1 . (M1 x)) along N, each channel by itself."""
    return monarch(k1 * monarch(x.mT, m1), m2).real.mT


def dimension_step(x: Tensor, m3: Monarch, k2: Tensor, m4: Monarch) -> Tensor:
    """x (B, N, d), k2 (d,) -> M4 gelu(K2 . (M3 x)) along d, each position by itself."""
    return monarch(F.gelu(k2 * monarch(x, m3)), m4)


def mixer_layer(x: Tensor, m1: Monarch, k1: Tensor, m2: Monarch, m3: Monarch, k2: Tensor, m4: Monarch) -> Tensor:
    """x (B, N, d) -> (B, N, d): both steps, a skip around the second one, LayerNorm."""
    mixed = sequence_step(x, m1, k1, m2)
    return F.layer_norm(dimension_step(mixed, m3, k2, m4) + mixed, x.shape[-1:])

"""M2-BERT written down once more in plain torch, from the formulas, for one state dict; none of m2gen is used.

Sequence mixer   h = short(W_in u), a causal depthwise convolution of 3 taps; x1, x2, v = thirds of h
                 y = x2 . C(x1 . v) + C'(u);   out = W_out y
Long convolution C(z)_i = sum_{j<=i} k_(i-j) z_j + sum_{j>i} r_(j-i-1) z_j + D z_i, by one circular one of length 2 L
Filter           k = (W_3 s(W_2 s(W_1 s(W_0 z)))) . exp(-t |delta|), s(x) = sin(f . x); r likewise, f shared
Dimension mixer  LN(W_o (gelu(g) . h) + b + x), g, h = halves of W_g x, both matrices block-diagonal
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights:
    """The tensors below a prefix, by the rest of their names, in one dtype."""

    def __init__(self, state: dict[str, Tensor], dtype: torch.dtype = torch.float64, prefix: str = "") -> None:
        self.state, self.dtype, self.prefix = state, dtype, prefix

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.state[self.prefix + name]
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state

    def below(self, name: str) -> Weights:
        return Weights(self.state, self.dtype, f"{self.prefix}{name}.")


def linear(w: Weights, x: Tensor) -> Tensor:
    return x @ w["weight"].T + w["bias"]


def layer_norm(w: Weights, x: Tensor, eps: float = 1e-12) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w["weight"] + w["bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def filter_taps(w: Weights, network: str, length: int) -> Tensor:
    """(d, length)."""
    h = w["pos_emb.z"][0, :length]
    for i in (0, 2, 4):
        h = torch.sin(w[f"{network}.{i + 1}.freq"] * linear(w.below(f"{network}.{i}"), h))
    h = h @ w[f"{network}.6.weight"].T
    return (h * torch.exp(-w["pos_emb.t"][0, :length] * w["modulation.deltas"][0].abs())).T


def long_conv(w: Weights, z: Tensor) -> Tensor:
    """z (B, d, L)."""
    n = z.shape[-1]
    forward, reverse = (filter_taps(w, network, n) for network in ("implicit_filter", "implicit_filter_rev"))
    ring = torch.cat([forward, reverse.flip(-1)], dim=-1)
    y = torch.fft.irfft(torch.fft.rfft(z, n=2 * n) * torch.fft.rfft(ring), n=2 * n)[..., :n]
    return y + z * w["bias"][:, None]


def sequence_mixer(w: Weights, u: Tensor) -> Tensor:
    """u (B, L, d)."""
    if "layernorm.weight" in w:
        u = layer_norm(w.below("layernorm"), u, 1e-5)
    h = linear(w.below("in_linear"), u).mT
    taps = w["short_filter.weight"][:, 0]
    past = F.pad(h, (2, 0))
    h = sum(taps[:, i, None] * past[..., i : i + h.shape[-1]] for i in range(3)) + w["short_filter.bias"][:, None]
    x1, x2, v = h.chunk(3, dim=1)
    y = long_conv(w.below("filter_fn"), v * x1) * x2
    y = y + (long_conv(w.below("filter_fn2"), u.mT) if "filter_fn2.bias" in w else 0)
    return linear(w.below("out_linear"), y.mT)


def block_diagonal(weight: Tensor, x: Tensor) -> Tensor:
    return x @ torch.block_diag(*weight).T


def dimension_mixer(w: Weights, x: Tensor) -> Tensor:
    gate, value = block_diagonal(w["gated_layers.weight"], x).chunk(2, dim=-1)
    y = block_diagonal(w["wo.weight"], gelu(gate) * value) + w["wo.bias"]
    return layer_norm(w.below("layernorm"), y + x)


def encode(state: dict[str, Tensor], ids: Tensor, prefix: str = "bert.") -> Tensor:
    """ids (B, L) -> the last hidden state (B, L, d), float64; no padding."""
    w = Weights(state, prefix=prefix)
    e = w.below("embeddings")
    x = e["word_embeddings.weight"][ids] + e["token_type_embeddings.weight"][0]
    x = layer_norm(e.below("LayerNorm"), x + e["position_embeddings.weight"][: ids.shape[1]])
    layer = 0
    while f"encoder.layer.{layer}.mlp.wo.bias" in w:
        x = sequence_mixer(w.below(f"encoder.layer.{layer}.attention"), x)
        x = dimension_mixer(w.below(f"encoder.layer.{layer}.mlp"), x)
        layer += 1
    return x


def masked_lm(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """ids (B, L) -> logits (B, L, V), float64."""
    w = Weights(state, prefix="cls.predictions.")
    x = gelu(linear(w.below("transform.dense"), encode(state, ids)))
    return linear(w.below("decoder"), layer_norm(w.below("transform.LayerNorm"), x))

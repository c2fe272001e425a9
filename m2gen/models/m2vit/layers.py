"""The parts of M2-ViT and of a ViT: embeddings, attention, layers, stochastic depth.

Source: Monarch Mixer, arXiv 2310.12109; ViT, arXiv 2010.11929; stochastic depth, arXiv 1603.09382. Names are those of
the ViT in transformers, so that a plain ViT's weights go both ways.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from m2gen.errors import ProblemError
from m2gen.models.m2vit.configuration import M2ViTConfig
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.linear import MonarchLinear, apply_linear
from m2gen.modules.sequence_mixer import SequenceMixer


class M2ViTPatchEmbeddings(nn.Module):
    """Images (B, C, S, S) -> one vector for each patch, row by row: (B, patches, d)."""

    def __init__(self, config: M2ViTConfig) -> None:
        super().__init__()
        self.shape = (config.num_channels, config.image_size, config.image_size)
        size = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, patches, d). Raises ProblemError for images of another shape."""
        if pixel_values.shape[1:] != self.shape:
            raise ProblemError(
                f"an image model for (batch, {', '.join(map(str, self.shape))})",
                f"pixel_values is {tuple(pixel_values.shape)}",
                "resize the images, or build the model for their size",
            )
        patches: Tensor = self.projection(pixel_values.to(self.projection.weight.dtype))
        return patches.flatten(2).transpose(1, 2)


class M2ViTEmbeddings(nn.Module):
    """Patches, a class token before them and learned positions where there are any, then dropout: (B, L, d)."""

    def __init__(self, config: M2ViTConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.patch_embeddings = M2ViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, d)) if config.pooling == "cls" else None
        table = torch.zeros(1, config.num_tokens, d) if config.position_embeddings else None
        self.position_embeddings = None if table is None else nn.Parameter(table)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, L, d)."""
        x: Tensor = self.patch_embeddings(pixel_values)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings
        out: Tensor = self.dropout(x)
        return out


class M2ViTSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d / heads)) v for each head, between four projections: (B, L, d) -> (B, L, d)."""

    def __init__(self, config: M2ViTConfig) -> None:
        super().__init__()
        d, self.heads = config.hidden_size, config.num_attention_heads
        self.q_proj = _linear(d, d, config.projections, config.monarch_nblocks)
        self.k_proj = _linear(d, d, config.projections, config.monarch_nblocks)
        self.v_proj = _linear(d, d, config.projections, config.monarch_nblocks)
        self.o_proj = _linear(d, d, config.projections, config.monarch_nblocks)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, d) -> (B, L, d)."""
        projected = (apply_linear(proj, x) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (y.view(*y.shape[:-1], self.heads, -1).transpose(1, 2) for y in projected)
        return apply_linear(self.o_proj, F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class M2ViTMLP(nn.Module):
    """fc2(dropout(gelu(fc1(x)))), with dense matrices or Monarch ones of order 2: (..., d) -> (..., d)."""

    def __init__(self, config: M2ViTConfig) -> None:
        super().__init__()
        d, hidden = config.hidden_size, config.intermediate_size
        self.fc1 = _linear(d, hidden, config.mlp, config.monarch_nblocks)
        self.fc2 = _linear(hidden, d, config.mlp, config.monarch_nblocks)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d)."""
        return apply_linear(self.fc2, self.dropout(F.gelu(apply_linear(self.fc1, x))))


class DropPath(nn.Module):
    """Stochastic depth: in training, a row of x (B, ...) is zero with probability `rate`, else x / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = torch.empty((x.shape[0], *[1] * (x.dim() - 1)), device=x.device).bernoulli_(keep)
        return x * (kept / keep).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.rate}"


class M2ViTLayer(GradientCheckpointingLayer):  # type: ignore[misc]
    """x + attention(LN(x)), then x + mlp(LN(x)), each left out at times in training: (B, L, d) -> (B, L, d).

    As in `MixerBlock`, there is no attention in the `attention` of an M2-ViT.
    """

    def __init__(self, config: M2ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = _sequence_mixer(config) if config.mixer == "m2" else M2ViTSelfAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = _dimension_mixer(config) if config.mlp == "block_diagonal" else M2ViTMLP(config)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, L, d) -> (B, L, d)."""
        x = x + self.drop_path(self.attention(self.layernorm_before(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.layernorm_after(x)))
        return out


def classifier(config: M2ViTConfig) -> nn.Module:
    """The last layer, (B, d) -> (B, num_labels)."""
    return _linear(config.hidden_size, config.num_labels, config.projections, config.monarch_nblocks)


def _linear(n_in: int, n_out: int, kind: str, nblocks: int) -> nn.Module:
    return MonarchLinear(n_in, n_out, nblocks) if kind == "monarch" else nn.Linear(n_in, n_out)


def _sequence_mixer(config: M2ViTConfig) -> SequenceMixer:
    return SequenceMixer(
        config.hidden_size,
        config.num_tokens,
        bidirectional=config.bidirectional,
        residual_long_conv=config.residual_long_conv,
        short_kernel=config.short_kernel,
        dropout=config.hidden_dropout_prob,
        emb_dim=config.hyena_emb_dim,
        width=config.hyena_filter_order,
        inner_layers=config.hyena_inner_layers,
        w=config.hyena_w,
    )


def _dimension_mixer(config: M2ViTConfig) -> DimensionMixer:
    return DimensionMixer(
        config.hidden_size,
        config.intermediate_size // config.hidden_size,
        kind="glu" if config.gated else "plain",
        nblocks=config.monarch_nblocks,
        dropout=config.hidden_dropout_prob,
        norm=None,
    )

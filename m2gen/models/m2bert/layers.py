"""The parts of M2-BERT: embeddings, layers, pooling, and the masked-LM head, under their published names.

Source: Monarch Mixer, arXiv 2310.12109, section 5.1; embeddings, pooler and head are BERT's, arXiv 1810.04805.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.models.m2bert.configuration import M2BertConfig
from m2gen.models.options import is_padding_mask
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.linear import apply_linear
from m2gen.modules.mixer_block import MixerBlock
from m2gen.modules.plain import plain
from m2gen.modules.sequence_mixer import SequenceMixer
from m2gen.modules.values import all_true


class M2BertEmbeddings(nn.Module):
    """LayerNorm(word + position + token type), then dropout: (B, L) tokens -> (B, L, d)."""

    position_ids: Tensor

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, d, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, d)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, d)
        self.LayerNorm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.register_buffer("position_ids", torch.arange(config.max_position_embeddings)[None])

    def forward(self, words: Tensor, token_type_ids: Tensor | None, position_ids: Tensor | None) -> Tensor:
        """words (B, L, d), already looked up; ids (B, L), None for all zero and for 0 .. L-1."""
        length = words.shape[1]
        positions, types = self.position_embeddings, self.token_type_embeddings
        if position_ids is None and not _is_table(positions):
            position_ids = torch.arange(length, device=words.device)[None]
        if token_type_ids is None and not _is_table(types):
            token_type_ids = torch.zeros(words.shape[:2], dtype=torch.int64, device=words.device)
        where = positions.weight[:length] if position_ids is None else positions(position_ids)
        kind = types.weight[0] if token_type_ids is None else types(token_type_ids)
        out: Tensor = self.dropout(self.LayerNorm(words + (where + kind)))
        return out


def _is_table(embedding: nn.Embedding) -> bool:
    """Whether looking a row up is all that `embedding` does, so that its rows may be taken without being looked up."""
    if not plain(embedding, nn.Embedding) or embedding.sparse or embedding.scale_grad_by_freq:
        return False
    return embedding.max_norm is None and embedding.padding_idx is None


class M2BertEncoder(nn.Module):
    """The layers, one after the other."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))
        # transformers sets these two where gradient checkpointing is switched on
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = None

    def forward(self, x: Tensor, mask: Tensor | None, keep: bool = False) -> tuple[Tensor, ...]:
        """x (B, L, d), mask (B, L) true at real tokens or None -> the last layer's output (B, L, d); with `keep`, x
        and the output of every layer."""
        states = [x]
        for layer in self.layer:
            if self.gradient_checkpointing and self.training:
                x = self._gradient_checkpointing_func(layer.__call__, x, mask)
            else:
                x = layer(x, mask)
            states = [*states, x] if keep else [x]  # a long text's states take more memory than the model
        return tuple(states)


def _layer(config: M2BertConfig) -> MixerBlock:
    attention = SequenceMixer(
        config.hidden_size,
        config.max_position_embeddings,
        bidirectional=config.bidirectional,
        residual_long_conv=config.residual_long_conv,
        norm=config.hyena_training_additions,
        emb_dim=config.hyena_emb_dim,
        width=config.hyena_filter_order,
        w=config.hyena_w,
        w_mod=config.hyena_w_mod,
    )
    mlp = DimensionMixer(
        config.hidden_size,
        config.intermediate_size // config.hidden_size,
        nblocks=config.monarch_mlp_nblocks,
        dropout=config.hidden_dropout_prob,
        eps=config.layer_norm_eps,
    )
    return MixerBlock(attention, mlp)


class M2BertPooler(nn.Module):
    """tanh(dense(p)), p the first real token's state or the mean over real tokens: (B, L, d) -> (B, d)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.pooling = "mean" if config.pool_all else "first"

    def forward(self, x: Tensor, mask: Tensor | None, pooling: str | None = None) -> Tensor:
        """x (B, L, d), mask (B, L) or None -> (B, d). `pooling` takes the place of the configured one, see `pool`."""
        return torch.tanh(apply_linear(self.dense, pool(x, mask, pooling or self.pooling)))


def pool(x: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """x (B, L, d) -> (B, d): its "first" real token or the "mean" over real ones, mask (B, L) or None for all.

    Raises ProblemError for another word. A row without any real token has the mean zero.
    """
    if pooling not in ("first", "mean"):
        raise ProblemError(f"pooling={pooling!r}", "there is no such pooling", "use 'first' or 'mean'")
    if pooling == "first":
        return x[:, 0] if mask is None else x[torch.arange(x.shape[0], device=x.device), first_real(mask)]
    if mask is None:
        return x.mean(1)
    total = torch.where(mask[..., None], x, 0).sum(1, dtype=torch.promote_types(x.dtype, torch.float32))
    return (total / mask.sum(1, keepdim=True).clamp(min=1)).to(x.dtype)


def first_real(mask: Tensor) -> Tensor:
    """mask (B, L) -> the index (B,) of the first true entry, 0 where there is none."""
    return mask.to(torch.uint8).argmax(1)


def real_tokens(attention_mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The mask (B, L) as bool, true at real tokens; None where that is every token.

    Raises ProblemError for another shape and for additive masks (0, -inf): they would be read upside down.
    """
    if attention_mask is None:
        return None
    if attention_mask.shape != shape or not is_padding_mask(attention_mask):
        raise ProblemError(
            f"an attention_mask for tokens of shape {tuple(shape)}",
            f"it is {tuple(attention_mask.shape)} {attention_mask.dtype}",
            "give a bool or 0/1 integer mask of that shape, true at real tokens",
        )
    mask = attention_mask.bool()
    return None if all_true(mask) else mask


class M2BertPredictionTransform(nn.Module):
    """LayerNorm(gelu(dense(x))): (..., d) -> (..., d)."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d)."""
        out: Tensor = self.LayerNorm(F.gelu(apply_linear(self.dense, x)))
        return out


class M2BertPredictions(nn.Module):
    """Logits of every word: (..., d) -> (..., V). The decoder's weight is the word embeddings'."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.transform = M2BertPredictionTransform(config)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., V)."""
        return apply_linear(self.decoder, self.transform(x))


class M2BertMaskedLMHead(nn.Module):
    """Gives the head its published name, `cls.predictions`."""

    def __init__(self, config: M2BertConfig) -> None:
        super().__init__()
        self.predictions = M2BertPredictions(config)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., V)."""
        out: Tensor = self.predictions(x)
        return out

"""M2-GPT: a causal language model with neither attention nor MLPs.

Source: Monarch Mixer, arXiv 2310.12109, section 5.3: Hyena's implicit long filters, parameters shared across heads as
in H3, and no MLP layers. The paper's layer counts and widths are not public; the defaults here are of our own choosing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.mixer_block import MixerBlock
from m2gen.modules.sequence_mixer import SequenceMixer

IGNORE = -100  # a label that does not count


@dataclass(frozen=True)
class M2GPTConfig:
    """Sizes of an `M2GPT`.

    expand           None for no dimension mixers (the paper's M2-GPT), else their expansion; they are pre-norm GLUs
    filter_options   passed on to every `HyenaFilter`: width, emb_dim, w, heads, ...
    """

    vocab_size: int = 256
    d_model: int = 256
    n_layers: int = 6
    max_length: int = 1024
    short_kernel: int = 3
    expand: int | None = None
    nblocks: int = 4
    dropout: float = 0.0
    filter_options: dict[str, Any] = field(default_factory=dict)


class M2GPT(nn.Module):
    """input_ids (B, L) int64 -> logits (B, L, vocab_size); L <= max_length. Causal: logits[:, i] depend on ids[:, :i +
    1].

    Token embedding, `n_layers` blocks x + SequenceMixer(LN(x)), a last LayerNorm, and a head tied to the embedding.
    There are no position embeddings: order comes in through the convolutions.
    """

    def __init__(self, config: M2GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(_block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks():
            # the residual stream is a sum over layers: each adds 1 / sqrt(n_layers) of the usual
            nn.init.normal_(block.attention.out_linear.weight, std=0.02 / self.config.n_layers**0.5)
            nn.init.zeros_(block.attention.out_linear.bias)

    def blocks(self) -> list[MixerBlock]:
        """The layers, with their type."""
        return [layer for layer in self.layers if isinstance(layer, MixerBlock)]

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, L, vocab_size); with `labels` the pair (logits, loss).

        labels (B, L): labels[b, i] is the token that follows input_ids[b, i] (nothing is shifted here), or -100 where
        it does not count. The loss is the mean cross-entropy in nats.
        """
        x = self.embedding(input_ids)
        for layer in self.layers:
            x = layer(x)
        logits = F.linear(self.norm(x), self.embedding.weight)
        if labels is None:
            return logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, F.cross_entropy(wide.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """prompt_ids (B, P) with P >= 1 -> (B, P + n): `n` tokens sampled one after the other.

        Every token costs a whole forward pass over the context, O(L log L) rather than a step of a recurrence: simple,
        and slow for long texts. The context is the last max_length tokens. temperature 0 takes the most likely token;
        top_k keeps only the k most likely ones. The same generator state gives the same text. The model's training mode
        is left as it is.
        """
        ids = prompt_ids
        for token in self.stream(prompt_ids, n, temperature=temperature, top_k=top_k, generator=generator):
            ids = torch.cat([ids, token], dim=1)
        return ids

    def stream(
        self,
        prompt_ids: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """As `generate`, but yields each new token (B, 1) as soon as it is drawn."""
        if prompt_ids.dim() != 2 or prompt_ids.shape[1] < 1:
            raise ProblemError(
                "generation", f"a prompt of shape {tuple(prompt_ids.shape)}", "give (batch, at least one token)"
            )
        ids = prompt_ids
        for _ in range(n):
            with torch.no_grad():
                logits = self(ids[:, -self.config.max_length :])[:, -1].float()
                token = sample(logits, temperature=temperature, top_k=top_k, generator=generator)
            ids = torch.cat([ids, token], dim=1)
            yield token


def sample(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """logits (B, V) -> one drawn token per row, (B, 1)."""
    if temperature <= 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def _block(config: M2GPTConfig) -> MixerBlock:
    attention = SequenceMixer(
        config.d_model,
        config.max_length,
        bidirectional=False,
        residual_long_conv=False,
        short_kernel=config.short_kernel,
        dropout=config.dropout,
        **config.filter_options,
    )
    mlp = None
    if config.expand is not None:
        mlp = DimensionMixer(
            config.d_model, config.expand, nblocks=config.nblocks, dropout=config.dropout, norm="pre", eps=1e-5
        )
    return MixerBlock(attention, mlp, prenorm=True)

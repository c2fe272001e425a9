"""One Monarch Mixer layer: a sequence mixer, then (if there is one) a dimension mixer.

Source: Monarch Mixer, arXiv 2310.12109.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.rehearsal import Rehearses
from m2gen.modules.sequence_mixer import Cached, SequenceMixer, rehearsed_input


class MixerBlock(Rehearses, nn.Module):
    """x (B, L, d_model) -> (B, L, d_model): `attention`, then `mlp`.

    The names are those of the published M2-BERT checkpoints; there is no attention in `attention`. As in M2-BERT there
    is no residual connection around the sequence mixer (its second long convolution plays that part), and the dimension
    mixer brings its own. With `prenorm=True` (M2-GPT) the first step is x + attention(norm(x)) instead.
    """

    def __init__(self, attention: SequenceMixer, mlp: DimensionMixer | None = None, *, prenorm: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(attention.d_model) if prenorm else None
        self.attention = attention
        self.mlp = mlp

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Cached | None = None) -> Tensor:
        """x (B, L, d_model), mask (B, L) true at real tokens or None -> (B, L, d_model).

        With `cache`, x is the next part of a sequence, see `SequenceMixer`.
        """
        if self.norm is None:
            mixed: Tensor = self.attention(x, mask, cache)
        else:
            mixed = x + self.attention(self.norm(x), mask, cache)
        if self.mlp is not None:
            mixed = self.mlp(mixed)
        return mixed

    def _rehearsed_length(self) -> int:
        return self.attention._rehearsed_length()

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        yield (self(rehearsed_input(self.attention, length, batch)),)

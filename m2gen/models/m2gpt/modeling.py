"""M2-GPT: a causal language model with neither attention nor MLPs.

Source: Monarch Mixer, arXiv 2310.12109, section 5.3: Hyena's implicit long filters, parameters shared across heads as
in H3, a causal parameterisation of the sequence mixing, and no MLP layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.models.m2gpt.configuration import M2GPTConfig
from m2gen.models.m2gpt.generation import rehearsed, stream
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.modules.kept import Checked, Keeper, same_tensors, values_suffice
from m2gen.modules.linear import apply_linear
from m2gen.modules.mixer_block import MixerBlock
from m2gen.modules.mixer_cache import MixerCache, bank_state, filter_bank
from m2gen.modules.online_conv import FilterBank
from m2gen.modules.plain import plain
from m2gen.modules.rehearsal import Rehearses
from m2gen.modules.sequence_mixer import SequenceMixer
from m2gen.modules.tied import KeepsTies
from m2gen.modules.values import ensured

IGNORE = -100  # a label that does not count


class M2GPT(Rehearses, Keeper, KeepsTies):
    """input_ids (B, L) int64 -> logits (B, L, vocab_size); L <= max_length. Causal: logits[:, i] depend on
    input_ids[:, : i + 1] alone.

    Token embedding, `n_layers` blocks x + SequenceMixer(LN(x)), a last LayerNorm, and a `head` whose weight is the
    embedding's: after another embedding, or another weight of one, call `tie_head()`. A state dict needs just one of
    the two names. There are no position embeddings: order comes in through the convolutions.
    """

    def __init__(self, config: M2GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.layers = nn.ModuleList(_block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False, device="meta")
        self.tie_head()
        # transformers sets these two where gradient checkpointing is switched on
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Any = None
        self._bank: Checked[FilterBank] = Checked()
        self._staying: tuple[list[int], list[Tensor], FilterBank] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embedding and the layers' output projections anew; the rest is as its modules make it."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        for projection in self.projections():
            self.reset_projection(projection)

    def tie_head(self) -> None:
        """Make the head's weight the embedding's."""
        self.head.weight = self.embedding.weight
        self.head.out_features = self.embedding.num_embeddings
        self._tied_modules: list[nn.Module] = [self.head, self.embedding]  # in a list, lest they have two names
        for module in self._tied_modules:
            vars(module)["was_tied"] = True  # copies of it say so, too

    def projections(self) -> list[nn.Linear]:
        """What every layer adds to the residual stream comes out of one of these."""
        return [block.attention.out_linear for block in self.blocks()]

    def reset_projection(self, projection: nn.Linear) -> None:
        """Draw one of `projections` anew."""
        # the residual stream is a sum over layers: each adds 1 / sqrt(n_layers) of the usual
        nn.init.normal_(projection.weight, std=0.02 / self.config.n_layers**0.5)
        nn.init.zeros_(projection.bias)

    def blocks(self) -> list[MixerBlock]:
        """The layers, with their type."""
        return [layer for layer in self.layers if isinstance(layer, MixerBlock)]

    def forward(
        self,
        input_ids: Tensor | None,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        cache: MixerCache | None = None,
        inputs_embeds: Tensor | None = None,
        logits_to_keep: int | Tensor | None = 0,
        hidden: list[Tensor] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, L, vocab_size); with `labels` the pair (logits, loss).

        Args:
            input_ids: (B, L) int64; None where embedded tokens (B, L, d_model) are given as `inputs_embeds`.
            labels: (B, L): labels[b, i] is the token that follows input_ids[b, i] (nothing is shifted here), or -100
                where it does not count. The loss is the mean cross-entropy in nats.
            mask: (B, L), bool or 0/1, true at real tokens; what stands at the others reaches no real token. Padding
                on the left changes nothing, but is refused with a CausalMonarch, which tells positions apart.
            cache: from `new_cache`: input_ids are the next part, of any length, of sequences whose earlier parts the
                cache has seen, and it takes them in. For inference: gradients have to be off.
            logits_to_keep: logits of so many last positions only, 0 or None: of all; or (n,), the positions' indices.
            hidden: the embedded tokens, every layer's output and, in place of the last one, what the head sees are
                added to it.

        Raises:
            ProblemError: for more than max_length tokens or none, or more than the cache has room for, or another
                number of rows, layers or channels than it has; for a cache with gradients on; for a mask as said.
        """
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        kept = logits_to_keep if isinstance(logits_to_keep, Tensor) else slice(-(logits_to_keep or 0), None)
        logits = self.logits(self.states(x, mask, cache, hidden)[:, kept])
        if labels is None:
            return logits
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, F.cross_entropy(wide.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)

    def states(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cache: MixerCache | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Embedded tokens x (B, L, d_model) -> what the head sees, likewise; mask and cache as in `forward`. Every
        layer's input and the result are added to `hidden`."""
        if x.shape[1] < 1:
            raise ProblemError(f"an M2-GPT on {tuple(x.shape)}", "there are no tokens", "give at least one")
        if cache is not None:
            _check_part(x, cache, self.config)
        if mask is not None and self.config.causal == "monarch" and (cache is None or cache.position == 0):
            x = _begin(x, mask)
        for i, layer in enumerate(self.layers):
            if hidden is not None:
                hidden.append(x)
            if self.gradient_checkpointing and self.training and cache is None:
                x = self._gradient_checkpointing_func(layer.__call__, x, mask)
            else:
                x = layer(x, mask, None if cache is None else cache.layer(i))
        if cache is not None:
            cache.advance(x.shape[1])
        out: Tensor = self.norm(x)
        if hidden is not None:
            hidden.append(out)
        return out

    def logits(self, states: Tensor) -> Tensor:
        """states (..., d_model) -> logits (..., vocab_size). Raises ProblemError where the head's tie was lost."""
        if self.head.weight is not self.embedding.weight:
            self._check_tie()
        return apply_linear(self.head, states)

    def _check_tie(self) -> None:
        """Adapters, offloading and graphs have weights of their own, and so have the copies that PEFT trains whole and
        leaves in a layer's place. Other plain layers with two parameters are wrong."""
        ours = plain(self.head, nn.Linear) and plain(self.embedding, nn.Embedding)
        for layer, tied in zip((self.head, self.embedding), self._tied_modules, strict=True):
            ours = ours and (layer is tied or not hasattr(layer, "was_tied"))
        if ours and all(type(m.weight) is nn.Parameter for m in (self.head, self.embedding)):
            raise ProblemError("an M2-GPT", "its head's weight is not its embedding's", "call tie_head()")

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> MixerCache:
        """An empty cache for `batch` sequences of up to `capacity` tokens (default and most: max_length).

        Its size in bytes is `nbytes`, see `MixerCache`. It belongs to the weights as they are now.
        """
        with torch.no_grad():
            return MixerCache([block.attention for block in self.blocks()], batch, capacity, self._filters())

    def _filters(self) -> FilterBank:
        """The long filters in the form that caches read; in evaluation they are kept, checked or declared to stay."""
        mixers = [block.attention for block in self.blocks()]
        state = None if self.training else bank_state(mixers)
        if state is None or not values_suffice(state[1]):
            return filter_bank(mixers)
        if self.stays(self.config.max_length):
            drops = [m.filter_fn.dropped for m in mixers]
            kept = self._staying
            if kept is None or kept[0] != drops:
                kept = self._staying = drops, state[1], filter_bank(mixers)
            return kept[2] if same_tensors(kept[1], state[1]) else filter_bank(mixers)
        if any(t.device.type != "cpu" for t in state[1]):
            return filter_bank(mixers)  # a comparison would wait for the device
        key = state[0], torch.get_float32_matmul_precision()
        return self._bank.get(key, state[1], lambda: filter_bank(mixers))

    def drop(self) -> None:
        """Keep no filters made so far."""
        super().drop()
        self._bank.forget()
        self._staying = None

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start with nothing kept or declared."""
        return {**self.__dict__, "_bank": Checked(), "_staying": None, "declared": None}

    def _rehearsed_length(self) -> int:
        return self.config.max_length

    def _rehearsed_layers(self) -> nn.ModuleList:
        return self.layers

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        yield (self(self._any_ids(length, batch)),)

    def _rehearsed_parts(self, length: int, batch: int) -> None:
        rehearsed(self, self._any_ids(length, batch))

    def _any_ids(self, length: int, batch: int) -> Tensor:
        return torch.zeros((batch, length), dtype=torch.int64, device=self.embedding.weight.device)

    @torch.no_grad()
    def generate(
        self,
        prompt_ids: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Tensor:
        """prompt_ids (B, P) with P >= 1 -> (B, P + n): `n` tokens sampled one after the other.

        temperature 0 takes the most likely token; top_k keeps only the k most likely ones. The same generator state
        gives the same text. The model's training mode is left as it is.

        The context is the last max_length tokens. While everything fits into it, a token costs one step with the cache,
        O(log(P)^2) for the long convolutions on average; `use_cache=False` passes the whole text through the model
        for every token instead, with the same result to rounding. Beyond max_length the window slides, so that every
        position is another one than before, and each token costs a whole pass.
        """
        ids = [prompt_ids]
        options: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "generator": generator}
        ids.extend(self.stream(prompt_ids, n, use_cache=use_cache, **options))
        return torch.cat(ids, dim=1)

    def stream(
        self,
        prompt_ids: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
        use_cache: bool = True,
    ) -> Iterator[Tensor]:
        """As `generate`, but yields each new token (B, 1) as soon as it is drawn."""
        return stream(
            self, prompt_ids, n, temperature=temperature, top_k=top_k, generator=generator, use_cache=use_cache
        )


def _check_part(x: Tensor, cache: MixerCache, config: M2GPTConfig) -> None:
    bank = cache.long.bank
    if (bank.layers, bank.heads * bank.distinct) != (config.n_layers, config.d_model):
        found = f"it was made for {bank.layers} layers of width {bank.heads * bank.distinct}"
        asked = f"a cache for {config.n_layers} layers of width {config.d_model}"
        raise ProblemError(asked, found, "make it with this model's new_cache(batch)")
    if x.shape[0] != cache.batch:
        raise ProblemError(
            f"{x.shape[0]} sequences with a cache", f"it was made for {cache.batch}", "make it with new_cache(batch)"
        )
    cache.check(x.shape[1])


def _begin(x: Tensor, mask: Tensor) -> Tensor:
    """x, where every row of mask begins with a real token: a CausalMonarch is not shift-invariant, a text that begins
    later would mean something else."""
    return ensured(
        x,
        mask[:, 0],
        'an M2-GPT with causal="monarch"',
        "rows are padded on the left, which would shift their positions",
        "pad on the right, or give texts of the same length",
    )


def _block(config: M2GPTConfig) -> MixerBlock:
    attention = SequenceMixer(
        config.d_model,
        config.max_length,
        bidirectional=False,
        residual_long_conv=False,
        short_kernel=config.short_kernel,
        dropout=config.dropout,
        monarch=config.monarch_options if config.causal == "monarch" else None,
        **config.filter_options,
    )
    mlp = None
    if config.expand is not None:
        mlp = DimensionMixer(
            config.d_model, config.expand, nblocks=config.nblocks, dropout=config.dropout, norm="pre", eps=1e-5
        )
    return MixerBlock(attention, mlp, prenorm=True)

"""M2-GPT in the conventions of transformers: configuration, loading and saving, training, `generate`.

The mathematics is `M2GPT`'s, which this wraps as `model`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import can_return_tuple

from m2gen.errors import ProblemError
from m2gen.models.filters import Shares, owner, reset_filter_part
from m2gen.models.m2gpt.configuration import M2GPTConfig, preset
from m2gen.models.m2gpt.generation import rehearsed
from m2gen.models.m2gpt.modeling import M2GPT
from m2gen.models.options import DECODER, check_labels, is_padding_mask, loss_options
from m2gen.modules.causal_monarch import TriangularTransform
from m2gen.modules.linear import BlockDiagLinear
from m2gen.modules.mixer_cache import MixerCache
from m2gen.modules.values import all_true, ensured

# what transformers calls a cache: "cache" from 5.24 on
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "max_position_embeddings": "max_length",
}
_RESET = (nn.Linear, nn.Conv1d, nn.LayerNorm, BlockDiagLinear, TriangularTransform)


class M2GPTPretrainedConfig(PreTrainedConfig):  # type: ignore[misc]
    """The config.json of an M2-GPT: the fields of `M2GPTConfig`, three of them under the names usual there.

    hidden_size              d_model
    num_hidden_layers        n_layers
    max_position_embeddings  max_length: the longest text, and the length of the filters

    num_attention_heads means nothing, as there is no attention; tools such as adapters of prompts ask for it.

    The head is always tied to the embedding. Raises ProblemError for sizes that `M2GPTConfig` refuses.
    """

    model_type = "m2_gpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values", "cache"]

    vocab_size: int = 256
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 1
    max_position_embeddings: int = 1024
    short_kernel: int = 3
    expand: int | None = None
    nblocks: int = 4
    dropout: float = 0.0
    filter_options: dict[str, Any] | None = None
    causal: str = "fft"
    monarch_options: dict[str, Any] | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if wrong := {usual: plain for usual, plain in _NAMES.items() if plain in kwargs}:
            # transformers keeps any keyword, and these would act on nothing
            asked = f"an M2GPTPretrainedConfig with {', '.join(wrong.values())}"
            raise ProblemError(asked, "those are names of the plain M2GPTConfig", f"use {', '.join(wrong)}")
        if not self.tie_word_embeddings:
            raise ProblemError("an M2-GPT with a head of its own", "there is none", "use tie_word_embeddings=True")
        self.filter_options, self.monarch_options = self.filter_options or {}, self.monarch_options or {}
        self.plain()

    def plain(self) -> M2GPTConfig:
        """The same sizes for an `M2GPT`."""
        names = {name: _NAMES.get(name, name) for name in type(self).__annotations__}
        fields = M2GPTConfig.__dataclass_fields__
        return M2GPTConfig(**{plain: getattr(self, name) for name, plain in names.items() if plain in fields})

    @classmethod
    def preset(cls, name: str, **changes: Any) -> M2GPTPretrainedConfig:
        """The configuration of `M2GPTConfig.preset`, "145M" or "360M", with `changes`, named as here."""
        usual = {plain: name for name, plain in _NAMES.items()}
        return cls(**{**{usual.get(key, key): value for key, value in preset(name, {}).items()}, **changes})


class M2GPTForCausalLM(Shares, GenerationMixin):  # type: ignore[misc]
    """An `M2GPT` (`model`) as transformers has them: `AutoModelForCausalLM`, Trainer, `generate`, safetensors."""

    config_class = M2GPTPretrainedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # what the cache has seen cannot be taken back
    # by rows: tables of positions are not told apart in half precision
    _keep_in_fp32_modules_strict: ClassVar[list[str]] = ["filter_fn"]
    _no_split_modules: ClassVar[list[str]] = ["MixerBlock"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {"model.head.weight": "model.embedding.weight"}

    def __init__(self, config: M2GPTPretrainedConfig) -> None:
        super().__init__(config)
        self.model = M2GPT(config.plain())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As the modules' own constructors do it. What is drawn once is not drawn again: special cases come first."""
        if module is self.model.head or reset_filter_part(module):  # the head's weight is the embedding's
            return
        if isinstance(module, nn.Linear) and any(module is projection for projection in self.model.projections()):
            self.model.reset_projection(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        elif isinstance(module := owner(self, module), _RESET):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embedding = value
        self.model.config = replace(self.model.config, vocab_size=value.num_embeddings)
        self.model.tie_head()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.model.head = value

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: MixerCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = 0,
        cache: MixerCache | None = None,
        output_hidden_states: bool | None = None,
        token_type_ids: Tensor | None = None,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """`logits` (B, L, V), and `loss` where labels are given.

        Args:
            input_ids: (B, L) int; or instead inputs_embeds (B, L, d).
            attention_mask: (B, L), or (B, length so far) with a cache; bool or 0/1, true at real tokens. Pad on the
                left to generate. A text gives the same logits alone and padded; with causal="monarch" only padding
                on the right is possible, as a CausalMonarch tells positions apart.
            past_key_values: from `model.new_cache(batch)`: the inputs are the next part of what it has seen. `cache` is
                the same, under its name from transformers 5.24 on.
            labels: (B, L), mostly input_ids, -100 where none counts; they are shifted here. The loss is the mean
                cross-entropy in nats; a trainer may pass `num_items_in_batch`, the number to divide by.
            use_cache: make such a cache; of the result it is `past_key_values`, or `cache` likewise. Default: no;
                `generate` asks for it where `config.use_cache` says so.
            logits_to_keep: logits of so many last positions only, 0 or None: of all; or (n,), the positions' indices.
            output_hidden_states: also `hidden_states`, each (B, L, d): the embeddings, every layer's output, the last
                one normalised, as the head sees it. Default: what the configuration says.
            token_type_ids: all zero, as tokenizers make them: there is only one type.
            options: `position_ids` (B, L) and `cache_position` (L,), if they count on from what was seen, the former
                also from a text's first real token; of what callers pass to every model (`output_attentions`,
                `head_mask`, ...) None and False.

        Raises:
            ProblemError: for more than max_position_embeddings tokens or none, for masks of another shape or additive
                ones (0, -inf) or, with causal="monarch", on the left (within a graph a RuntimeError), for both or no
                inputs, for a cache of another kind, and for one where gradients are on; for other types and positions
                (within a graph likewise), and for options that ask for what the model does not have.
            TypeError: for other keywords.
        """
        positions, counted = options.pop("position_ids", None), options.pop("cache_position", None)
        for_loss = loss_options("M2-GPT", options, DECODER, self.config)
        if cache is not None and past_key_values is not None:
            raise ProblemError("M2-GPT", "cache and past_key_values together", "give one of them")
        if (input_ids is None) == (inputs_embeds is None):
            raise ProblemError("M2-GPT", "input_ids and inputs_embeds together, or neither", "give one of them")
        cache = past_key_values if cache is None else cache
        _check_cache(cache)
        batch, length = (input_ids if input_ids is not None else inputs_embeds).shape[:2]  # type: ignore[union-attr]
        seen = 0 if cache is None else cache.position
        if token_type_ids is not None or positions is not None or counted is not None:
            input_ids, inputs_embeds = (
                t if t is None else _in_order(_of_one_type(t, token_type_ids), attention_mask, seen, positions, counted)
                for t in (input_ids, inputs_embeds)
            )
        if use_cache and cache is None:
            cache = self.new_cache(batch)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden: list[Tensor] | None = [] if wanted else None
        logits = self.model(
            input_ids,
            mask=_last_columns(attention_mask, batch, length, seen),
            cache=cache,
            inputs_embeds=inputs_embeds,
            logits_to_keep=logits_to_keep,
            hidden=hidden,
        )
        check_labels(labels, tuple(logits.shape[:2]))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **for_loss)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=None if hidden is None else tuple(hidden), **{CACHE: cache}
        )

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> MixerCache:
        """An empty cache, as `M2GPT.new_cache`."""
        return self.model.new_cache(batch, capacity)

    def _rehearsed_length(self) -> int:
        return self.model._rehearsed_length()

    def _rehearsed_layers(self) -> nn.ModuleList:
        return self.model._rehearsed_layers()

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        # of this module, not of `model`: there may be an autocast around its `forward`
        yield (self(self.model._any_ids(length, batch), return_dict=True).logits,)

    def _rehearsed_parts(self, length: int, batch: int) -> None:
        rehearsed(self, self.model._any_ids(length, batch))

    @staticmethod
    def _reorder_cache(past_key_values: MixerCache, beam_idx: Tensor) -> MixerCache:
        """How a beam search picks its rows."""
        past_key_values.reorder(beam_idx)
        return past_key_values

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """`generate` leaves it to `forward` to make the cache."""
        return False


def _last_columns(attention_mask: Tensor | None, batch: int, length: int, seen: int) -> Tensor | None:
    """The mask (batch, length) of the tokens at hand, of which `seen` more may come before; None where all are real.

    Raises ProblemError for another shape and for additive masks (0, -inf): they would be read upside down.
    """
    if attention_mask is None:
        return None
    shape = tuple(attention_mask.shape)
    if shape not in ((batch, length), (batch, seen + length)) or not is_padding_mask(attention_mask):
        raise ProblemError(
            f"an attention_mask for tokens of shape {(batch, length)} after {seen} others",
            f"it is {shape} {attention_mask.dtype}",
            f"give a bool or 0/1 integer mask of shape {(batch, seen + length)}, true at real tokens",
        )
    mask = attention_mask[:, -length:].bool()
    return None if all_true(mask) else mask


def _of_one_type(x: Tensor, token_type_ids: Tensor | None) -> Tensor:
    """x (B, L, ...), where all types are 0."""
    if token_type_ids is None:
        return x
    found, do = "there is one type of tokens, and some are not 0", "leave token_type_ids out"
    return ensured(x, token_type_ids == 0, "token_type_ids of an M2-GPT", found, do)


def _in_order(x: Tensor, attention_mask: Tensor | None, seen: int, positions: Any, counted: Any) -> Tensor:
    """x (B, L, ...), where position_ids (B or 1, L) and cache_position (L,) say what the model does: that tokens stand
    in their order after `seen` others, counted from the first of all or from a text's first real one."""
    if positions is None and counted is None:
        return x
    batch, length = x.shape[:2]
    here = torch.arange(seen, seen + length, device=x.device)
    found, do = "they are not those of tokens that follow one another", "leave them out: order is in the convolutions"
    if counted is not None:
        if tuple(counted.shape) != (length,):
            raise ProblemError("cache_position of an M2-GPT", f"its shape is {tuple(counted.shape)}", do)
        x = ensured(x, counted == here, "cache_position of an M2-GPT", found, do)
    if positions is None:
        return x
    if tuple(positions.shape) not in ((batch, length), (1, length)):
        raise ProblemError("position_ids of an M2-GPT", f"their shape is {tuple(positions.shape)}", do)
    right = (positions == here).all(1)
    if attention_mask is not None:
        real = attention_mask[:, -length:].bool()
        first = attention_mask.bool().to(torch.uint8).argmax(1, keepdim=True)
        right = ((positions == here) | ~real).all(1) | ((positions == here - first) | ~real).all(1)
    return ensured(x, right, "position_ids of an M2-GPT", found, do)


def _check_cache(cache: object) -> None:
    if cache is not None and not isinstance(cache, MixerCache):
        found = f"it is a {type(cache).__name__}, and there are no keys and values of attention"
        raise ProblemError("past_key_values of an M2-GPT", found, "make it with model.new_cache(batch)")


AutoConfig.register(M2GPTPretrainedConfig.model_type, M2GPTPretrainedConfig, exist_ok=True)
AutoModelForCausalLM.register(M2GPTPretrainedConfig, M2GPTForCausalLM, exist_ok=True)
# by this table a Trainer with label_smoothing_factor knows that labels have to be shifted, and a pipeline what it has
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.setdefault(M2GPTPretrainedConfig.model_type, M2GPTForCausalLM.__name__)

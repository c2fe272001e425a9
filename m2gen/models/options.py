"""Arguments as callers of any model give them: what a loss takes, what a model does not have, masks of padding.

Trainers, adapters and pipelines pass the keywords of all models to each of them, mostly with None or False. Where they
ask for nothing they are taken; where they ask for something that is not there, it is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.modules.values import all_true

LOSS_OPTIONS = ("num_items_in_batch",)

# what no model here has, by the keyword that asks for it
_ATTENTION = {
    "output_attentions": "it has no attention weights to return",
    "head_mask": "it has no heads of attention to mask",
    "cross_attn_head_mask": "it has no heads of attention to mask",
    "encoder_hidden_states": "it has no attention to another model's states",
    "encoder_attention_mask": "it has no attention to another model's states",
    "encoder_outputs": "it has no encoder beside a decoder",
    "decoder_input_ids": "it has no decoder beside an encoder",
    "decoder_attention_mask": "it has no decoder beside an encoder",
    "decoder_inputs_embeds": "it has no decoder beside an encoder",
    "decoder_head_mask": "it has no decoder beside an encoder",
    "output_router_logits": "it has no experts to choose from",
    "start_positions": "it has no head for spans of text",
    "end_positions": "it has no head for spans of text",
    **dict.fromkeys(
        ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"),
        "texts that stand in one row are not told apart",
    ),
}
_CACHE = "it reads its whole input at once and keeps nothing for a next part"
_TEXT = "its input are images"

DECODER: Mapping[str, str] = _ATTENTION
ENCODER: Mapping[str, str] = {**_ATTENTION, **dict.fromkeys(("use_cache", "past_key_values", "cache_position"), _CACHE)}
IMAGES: Mapping[str, str] = {
    **ENCODER,
    **dict.fromkeys(("input_ids", "inputs_embeds", "attention_mask", "token_type_ids", "position_ids"), _TEXT),
    "bool_masked_pos": "it has no token for masked patches",
    "interpolate_pos_encoding": "it is made for images of one size",
}
_LOSS = dict.fromkeys(("labels", *LOSS_OPTIONS), "it has no head, and no loss")
ENCODER_ALONE: Mapping[str, str] = {**ENCODER, **_LOSS}
IMAGES_ALONE: Mapping[str, str] = {**IMAGES, **_LOSS}


def loss_options(model: str, options: Mapping[str, Any], absent: Mapping[str, str], config: Any) -> dict[str, Any]:
    """Those of `options` that are the loss's; the others have to be in `absent`, and None or False.

    Raises ProblemError for one that asks for what is absent, `config.output_attentions` too, and TypeError for a
    keyword that nobody knows: it must not vanish in silence.
    """
    found, unknown = {}, []
    for name, value in options.items():  # no sets: torch.compile of 2.6 has none of keys
        if name in absent:
            if not _nothing(value):
                raise ProblemError(f"{model} with {name}", absent[name], "leave it out, or give None")
        elif name in LOSS_OPTIONS:
            found[name] = value
        else:
            unknown.append(name)
    if unknown:
        raise TypeError(f"unexpected keyword arguments: {', '.join(sorted(unknown))}")
    if options.get("output_attentions") is None and config.output_attentions:
        do = "leave output_attentions out of the configuration"
        raise ProblemError(f"{model} with output_attentions", absent["output_attentions"], do)
    return found


def _nothing(value: object) -> bool:
    return value is None or value is False or (isinstance(value, list | tuple) and all(one is None for one in value))


def is_padding_mask(attention_mask: Tensor) -> bool:
    """Whether it is of booleans, integers, or floats that are all 0 or 1 with at least one 1, as adapters of prompts
    make them. Other floats may be an additive mask (0, -inf), which would be read upside down; so may all floats in a
    graph that is being made, where their values are not known."""
    if not attention_mask.is_floating_point():
        return True
    zero_or_one = all_true((attention_mask == 0) | (attention_mask == 1), wait=True)
    return zero_or_one is True and all_true(attention_mask != 1, wait=True) is False


def check_labels(labels: Tensor | None, shape: tuple[int, ...]) -> None:
    """Raise ProblemError for labels that are not one for each token."""
    if labels is not None and tuple(labels.shape) != shape:
        found = f"labels of shape {tuple(labels.shape)}"
        raise ProblemError(f"a loss over tokens of shape {shape}", found, "give one label a token, -100 for none")

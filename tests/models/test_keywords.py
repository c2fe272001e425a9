"""Keywords that callers pass to every model: taken where they ask for nothing, refused where for what is not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from m2bert_tiny import tiny, tokens
from m2vit_tiny import images
from m2vit_tiny import tiny as tiny_vit
from test_adapter_tasks import MODELS, inputs
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.models import M2BertForMaskedLM, M2BertForSequenceClassification
from m2gen.models.m2gpt.pretrained import CACHE

ANY = ["output_attentions", "head_mask", "use_cache", "past_key_values", "cache_position", "encoder_hidden_states"]
ANY += ["encoder_attention_mask", "inputs_embeds", "labels", "token_type_ids", "position_ids", "num_items_in_batch"]
ANY += ["decoder_input_ids", "start_positions", "end_positions", "return_dict", "output_hidden_states"]
FLAGS = ["output_attentions", "output_hidden_states", "use_cache"]
VISION = ["input_ids", "attention_mask", "bool_masked_pos", "interpolate_pos_encoding"]


def given(kind: str) -> dict[str, Tensor]:
    found = inputs(kind)
    found.pop("labels", None)
    return found


def first(out: Any) -> Tensor:
    found: Tensor = out.logits if "logits" in out else out.last_hidden_state
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_none_and_false_ask_for_nothing(kind: str) -> None:
    model, batch = MODELS[kind](), given(kind)
    want = first(model(**batch))
    names = ANY + (VISION if kind.startswith("vit") else [])
    assert torch.equal(first(model(**batch, **dict.fromkeys(names))), want)
    assert torch.equal(first(model(**batch, **dict.fromkeys(FLAGS, False))), want)
    assert torch.equal(first(model(**batch, head_mask=[None])), want)
    assert torch.equal(model(**batch, return_dict=False)[0], want)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["output_attentions", "head_mask", "encoder_hidden_states", "start_positions"])
def test_what_no_model_has(kind: str, name: str) -> None:
    value = True if name == "output_attentions" else torch.ones(1, 2)
    with pytest.raises(ProblemError, match=rf"with {name}: it has no .*Leave it out"):
        MODELS[kind]()(**given(kind), **{name: value})


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "gpt"])
@pytest.mark.parametrize("name", ["use_cache", "past_key_values", "cache_position"])
def test_encoders_keep_nothing(kind: str, name: str) -> None:
    with pytest.raises(ProblemError, match="keeps nothing for a next part"):
        MODELS[kind]()(**given(kind), **{name: True if name == "use_cache" else torch.arange(3)})


def test_what_one_model_has_not() -> None:
    for kind in ("encoder", "vit"):
        with pytest.raises(ProblemError, match="it has no head, and no loss"):
            MODELS[kind]()(**given(kind), labels=torch.tensor([0, 1, 1]))
    with pytest.raises(ProblemError, match="images of one size"):
        tiny_vit()(images(), interpolate_pos_encoding=True)
    with pytest.raises(ProblemError, match="its input are images"):
        tiny_vit()(images(), attention_mask=torch.ones(3, 16))
    with pytest.raises(ProblemError, match="not told apart"):
        MODELS["gpt"]()(tokens(1, 8), cu_seq_lens_q=torch.tensor([0, 3, 8]))


@pytest.mark.parametrize("kind", MODELS)
def test_other_keywords_are_an_error(kind: str) -> None:
    with pytest.raises(TypeError, match="attention_maks"):
        MODELS[kind]()(**given(kind), attention_maks=None)


@pytest.mark.parametrize("kind", MODELS)
def test_attentions_by_the_configuration(kind: str) -> None:
    model, batch = MODELS[kind](), given(kind)
    model.config._output_attentions = True  # as files may have it
    with pytest.raises(ProblemError, match="Leave output_attentions out of the configuration"):
        model(**batch)
    assert first(model(**batch, output_attentions=False)) is not None


@torch.no_grad()
def test_positions_of_an_encoder_count() -> None:
    model, ids = MODELS["encoder"](), tokens(3, 12)
    want = model(ids).last_hidden_state
    assert torch.equal(model(ids, position_ids=torch.arange(12).expand(3, -1)).last_hidden_state, want)
    assert not torch.allclose(model(ids, position_ids=torch.arange(12).expand(3, -1) + 5).last_hidden_state, want)


@torch.no_grad()
def test_positions_of_a_decoder_are_its_tokens() -> None:
    model, ids = MODELS["gpt"](), tokens(3, 12)
    at, mask = torch.arange(12), (torch.arange(12) >= torch.tensor([[0], [3], [6]])).long()
    want, masked = model(ids).logits, model(ids, attention_mask=mask).logits
    assert torch.equal(model(ids, position_ids=at[None], cache_position=at, token_type_ids=0 * ids).logits, want)
    from_first = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)  # as transformers counts
    assert torch.equal(model(ids, attention_mask=mask, position_ids=from_first).logits, masked)
    assert torch.equal(model(ids, attention_mask=mask, position_ids=at.expand(3, -1)).logits, masked)
    packed = torch.cat([at[:7], at[:5]])[None]
    for wrong in (packed, at[None] + 1, at.flip(0)[None], from_first):
        with pytest.raises(ProblemError, match=r"position_ids of an M2-GPT.*follow one another"):
            model(ids, position_ids=wrong)
    for name, value in {"position_ids": at, "cache_position": at[None]}.items():
        with pytest.raises(ProblemError, match=rf"{name} of an M2-GPT.*shape"):
            model(ids, **{name: value})
    with pytest.raises(ProblemError, match="cache_position of an M2-GPT"):
        model(ids, cache_position=at + 1)
    with pytest.raises(ProblemError, match="token_type_ids of an M2-GPT"):
        model(ids, token_type_ids=ids % 2)


@torch.no_grad()
def test_positions_count_on_with_a_cache() -> None:
    model, ids = MODELS["gpt"](), tokens(3, 12)
    mask = (torch.arange(12) >= torch.tensor([[0], [3], [2]])).long()
    want = model(ids, attention_mask=mask).logits[:, 8:]
    for positions in (torch.arange(8, 12)[None], (mask.cumsum(1) - 1)[:, 8:]):
        cache = model(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)[CACHE]
        with pytest.raises(ProblemError, match="position_ids of an M2-GPT"):
            model(ids[:, 8:], attention_mask=mask, past_key_values=cache, position_ids=torch.arange(4)[None])
        found = model(ids[:, 8:], attention_mask=mask, past_key_values=cache, position_ids=positions)
        torch.testing.assert_close(found.logits, want, rtol=1e-4, atol=1e-5)


def test_generate_takes_what_a_tokenizer_gives() -> None:
    model, ids = MODELS["gpt"](), tokens(2, 5)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 9}
    want = model.generate(ids, **options)
    given = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    assert torch.equal(model.generate(ids, **given, **options), want)


def test_labels_are_one_for_each_token() -> None:
    for kind in ("masked lm", "gpt"):
        with pytest.raises(ProblemError, match="one label a token"):
            MODELS[kind]()(tokens(2, 8), labels=tokens(2, 7))


@pytest.mark.parametrize("cls", [M2BertForMaskedLM, M2BertForSequenceClassification])
def test_a_larger_vocabulary_of_an_encoder(cls: Any) -> None:
    model, ids = tiny(cls), tokens(2, 8)
    with torch.no_grad():
        want = model(ids).logits
        model.resize_token_embeddings(97)
        found = model(ids).logits
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == 97
    torch.testing.assert_close(found[..., : want.shape[-1]], want)
    if cls is M2BertForMaskedLM:
        assert found.shape[-1] == 97 and model.get_output_embeddings().weight is model.get_input_embeddings().weight

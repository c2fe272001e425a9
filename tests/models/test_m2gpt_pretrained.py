"""M2-GPT in the conventions of transformers: the same mathematics, files and `generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from m2gen.errors import ProblemError
from m2gen.models import M2GPT, M2GPTConfig, M2GPTForCausalLM, M2GPTPretrainedConfig
from m2gen.models.m2gpt.pretrained import CACHE

IDS = torch.randint(1, 50, (2, 24), generator=torch.Generator().manual_seed(0))
GREEDY = {"do_sample": False, "pad_token_id": 0}


def model(**options: Any) -> M2GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 100}
    filters = {"width": 16, "heads": 2}
    m = M2GPTForCausalLM(M2GPTPretrainedConfig(**{**sizes, "filter_options": filters, **options})).eval()
    for block in m.model.blocks():
        torch.nn.init.normal_(block.attention.out_linear.weight, std=0.3)
    return m


@pytest.mark.parametrize("options", [{}, {"causal": "monarch"}, {"expand": 2, "nblocks": 2}], ids=str)
def test_files_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    m = model(**options)
    m.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "m2_gpt"
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(again, M2GPTForCausalLM)
    assert not any(info.values())
    assert torch.equal(again.eval()(IDS).logits, m(IDS).logits)
    assert AutoConfig.from_pretrained(tmp_path).plain() == m.config.plain()


def test_it_is_the_plain_module() -> None:
    m = model()
    assert torch.equal(m(IDS).logits, m.model(IDS))
    assert torch.equal(m(inputs_embeds=m.get_input_embeddings()(IDS)).logits, m.model(IDS))
    assert torch.equal(m(IDS, logits_to_keep=3).logits, m.model(IDS)[:, -3:])
    torch.testing.assert_close(m(IDS, labels=IDS).loss, m.model(IDS[:, :-1], IDS[:, 1:])[1])
    torch.testing.assert_close(m(IDS, labels=IDS, num_items_in_batch=23).loss, 2 * m(IDS, labels=IDS).loss)


def test_it_starts_as_the_plain_module_does() -> None:
    """Drawn from the same distributions: standard deviations agree."""
    config = M2GPTPretrainedConfig(hidden_size=128, num_hidden_layers=2, causal="monarch")
    torch.manual_seed(0)
    found, want = M2GPTForCausalLM(config).model.state_dict(), M2GPT(config.plain()).state_dict()
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        if tensor.numel() > 20:
            torch.testing.assert_close(found[name].std(), tensor.std(), rtol=0.35, atol=1e-6, msg=name)


@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_generate_is_the_plain_modules(causal: str) -> None:
    m = model(causal=causal)
    want = m.model.generate(IDS[:, :5], 80, temperature=0)
    assert torch.equal(m.generate(IDS[:, :5], max_new_tokens=80, **GREEDY), want)
    assert torch.equal(m.generate(IDS[:, :5], max_new_tokens=80, use_cache=False, **GREEDY), want)
    # a part that has been read already
    with torch.no_grad():
        begun = m(IDS[:, :4], use_cache=True)[CACHE]
    assert torch.equal(m.generate(IDS[:, :5], **{CACHE: begun}, max_new_tokens=80, **GREEDY), want)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_either_name_of_a_cache(name: str) -> None:
    m = model()
    with torch.no_grad():
        whole = m(IDS).logits
        cache = m(IDS[:, :4], use_cache=True)[CACHE]
        torch.testing.assert_close(m(IDS[:, 4:], **{name: cache}).logits, whole[:, 4:], rtol=1e-4, atol=1e-5)
        assert cache.position == IDS.shape[1]


def test_padding_on_the_left_changes_nothing() -> None:
    m = model()
    want = m.generate(IDS[:, :5], max_new_tokens=30, **GREEDY)
    padded = torch.cat([IDS.new_zeros(2, 7), IDS[:, :5]], dim=1)
    mask = torch.arange(12).expand(2, 12) >= 7
    found = m.generate(padded, attention_mask=mask.long(), max_new_tokens=30, **GREEDY)
    assert torch.equal(found[:, 7:], want)


def test_beams_with_and_without_a_cache() -> None:
    m = model()
    with_cache, without = (
        m.generate(IDS[:, :5], num_beams=3, max_new_tokens=20, use_cache=c, **GREEDY) for c in (1, 0)
    )
    assert torch.equal(with_cache, without)


def test_nothing_is_taken_back_from_a_cache() -> None:
    """Guessed tokens that are refused would have to be: transformers is told before, and says so."""
    with pytest.raises(ValueError, match="stateful"):
        model().generate(IDS[:1], prompt_lookup_num_tokens=3, max_new_tokens=9, **GREEDY)


def test_gradient_checkpointing_and_half_precision() -> None:
    m = model()
    m.train()
    m(IDS, labels=IDS).loss.backward()
    want = [p.grad for p in m.parameters()]
    m.zero_grad()
    m.gradient_checkpointing_enable({"use_reentrant": False})
    m(IDS, labels=IDS).loss.backward()
    torch.testing.assert_close([p.grad for p in m.parameters()], want)
    low = m.eval().bfloat16()
    assert low(IDS).logits.dtype == torch.bfloat16
    assert low.model.blocks()[0].attention.filter_fn.pos_emb.z.dtype == torch.float32


def test_a_larger_vocabulary() -> None:
    m = model()
    m.resize_token_embeddings(53)
    assert m(IDS).logits.shape == (2, 24, 53)
    assert m.model.config.vocab_size == m.config.vocab_size == 53


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 20, dtype=torch.long),
        torch.ones(2, 30, dtype=torch.long),
        torch.full((2, 24), 0.5),
        torch.zeros(2, 24),
        torch.zeros(2, 24).index_fill(1, torch.arange(3), -torch.inf),
        torch.ones(2, 1, 24, 24, dtype=torch.long),
    ],
    ids=lambda mask: f"{tuple(mask.shape)} {mask.dtype} {mask.min()}",
)
def test_masks_that_do_not_fit_are_refused(mask: Tensor) -> None:
    """Whether or not they mark any padding: one with too many columns would be read from the wrong end."""
    with pytest.raises(ProblemError, match=r"of shape \(2, 24\), true at real tokens"):
        model()(IDS, attention_mask=mask)


def test_masks_with_a_cache() -> None:
    """Of the part alone or of all that was read."""
    m = model()
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    want = m(IDS, attention_mask=mask).logits[:, 10:]
    for columns in (mask, mask[:, 10:]):
        with torch.no_grad():
            cache = m(IDS[:, :10], attention_mask=mask[:, :10], use_cache=True).past_key_values
            found = m(IDS[:, 10:], attention_mask=columns, past_key_values=cache).logits
        torch.testing.assert_close(found[:, 3:], want[:, 3:])


@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_a_mask_in_a_whole_graph(causal: str) -> None:
    m = model(causal=causal, num_hidden_layers=1)
    mask = (torch.arange(24) < 20).expand(2, 24)
    torch.compiler.reset()
    compiled = torch.compile(m, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(
            compiled(IDS, attention_mask=mask).logits[:, :20], m(IDS, attention_mask=mask).logits[:, :20]
        )
        if causal == "monarch":
            with pytest.raises(RuntimeError, match="padded on the left"):
                compiled(IDS, attention_mask=mask.flip(1))
    torch.compiler.reset()


def test_caches_that_do_not_fit_are_refused() -> None:
    m = model()
    with torch.no_grad():
        with pytest.raises(ProblemError, match="it is a DynamicCache"):
            m(IDS, past_key_values=DynamicCache())
        with pytest.raises(ProblemError, match="made for 3 layers"):
            m(IDS, past_key_values=model(num_hidden_layers=3).new_cache(2))


def test_presets() -> None:
    assert M2GPTPretrainedConfig.preset("360M").plain() == M2GPTConfig.preset("360M")


def test_refusals() -> None:
    m = model()
    with pytest.raises(ProblemError, match="Give one of them"):
        m()
    with pytest.raises(ProblemError, match="cache and past_key_values together"):
        m(IDS, cache=m.new_cache(2), past_key_values=m.new_cache(2))
    with pytest.raises(ProblemError, match="none"):
        M2GPTPretrainedConfig(tie_word_embeddings=False)
    with pytest.raises(ProblemError, match="no tokens"):
        m(IDS[:, :0])
    with pytest.raises(ProblemError, match=r"d_model.*Use hidden_size"):
        M2GPTPretrainedConfig(d_model=16)
    with pytest.raises(ProblemError, match=r"n_layers.*Use num_hidden_layers"):
        M2GPTPretrainedConfig.preset("145M", n_layers=3)
    with pytest.raises(ProblemError, match="room for 100"):
        m.generate(IDS, max_new_tokens=90, min_new_tokens=90, **GREEDY)
    mask = torch.ones_like(IDS)
    mask[0, 0] = 0
    with pytest.raises(ProblemError, match="padded on the left"):
        model(causal="monarch")(IDS, attention_mask=mask)


@torch.no_grad()
@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_shapes_on_the_meta_device(causal: str) -> None:
    """Where there is no autocast to be switched off; a whole pass, and a part with a cache."""
    m, ids = model(causal=causal).to("meta"), IDS.to("meta")
    assert m(ids).logits.shape == (2, 24, 50)
    cache = m.new_cache(2)
    assert [m(part, past_key_values=cache).logits.shape[1] for part in (ids, ids[:, :1], ids[:, :3])] == [24, 1, 3]


def test_hidden_states() -> None:
    m = model()
    with torch.no_grad():
        out = m(IDS, output_hidden_states=True)
        hidden = out.hidden_states
        assert len(hidden) == m.config.num_hidden_layers + 1 and m(IDS).hidden_states is None
        assert torch.equal(hidden[0], m.model.embedding(IDS))
        assert torch.equal(m.model.logits(hidden[-1]), out.logits)
        assert torch.equal(hidden[1], m.model.layers[0](hidden[0], None, None))
        told = model(output_hidden_states=True)
        assert len(told(IDS).hidden_states) == len(hidden)
        cache = m.new_cache(len(IDS))
        parts = [m(part, cache=cache, output_hidden_states=True).hidden_states[-1] for part in IDS.split(4, dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), hidden[-1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kept", [0, None, 1, 5, torch.tensor([3]), torch.tensor([3, 5, -1])])
def test_logits_of_some_positions(kept: int | Tensor | None) -> None:
    """So many of the last, or those of the indices; as transformers has it."""
    m = model()
    whole = m(IDS).logits
    want = whole[:, kept] if isinstance(kept, Tensor) else whole[:, -(kept or 0) :]
    torch.testing.assert_close(m(IDS, logits_to_keep=kept).logits, want)

"""The head of an M2-GPT is a layer whose weight is the embedding's, and stays it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small_models import GPT, gpt, small
from torch import nn

from m2gen.errors import ProblemError
from m2gen.models import M2GPT, M2GPTForCausalLM

CAUSAL = {"fft": GPT["M2-GPT"], "monarch": GPT["M2-GPT, Monarch"]}


def emptied(model: nn.Module) -> nn.Module:
    return model.to("meta").to_empty(device="cpu")


def assigned(model: nn.Module) -> nn.Module:
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    return model


def pickled(model: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(model))
    return loaded


@pytest.mark.parametrize("causal", CAUSAL)
@pytest.mark.parametrize("change", [emptied, assigned, pickled, copy.deepcopy, nn.Module.double])
def test_ties_outlive(change: Callable[[nn.Module], nn.Module], causal: str) -> None:
    wrapped = gpt(1, **CAUSAL[causal])
    names = set(dict(wrapped.named_parameters()))
    wrapped = change(wrapped)
    assert set(dict(wrapped.named_parameters())) == names
    assert wrapped.model.head.weight is wrapped.model.embedding.weight
    monarch = wrapped.model.blocks()[0].attention.monarch
    for other in () if monarch is None else (monarch.on_filter, monarch.on_output):
        assert all(a is b for a, b in zip(other.weights, monarch.on_input.weights, strict=True))


@pytest.mark.parametrize("assign", [False, True])
def test_weights_saved_without_a_head_load(assign: bool) -> None:
    source, target = gpt(1), gpt(1)
    nn.init.normal_(source.model.embedding.weight)
    state = {name: t.clone() for name, t in source.state_dict().items() if "head" not in name}
    assert "model.head.weight" in source.state_dict() and "model.head.weight" not in state
    assert target.load_state_dict(state, assign=assign) == ([], [])
    ids = torch.arange(20)[None]
    assert torch.equal(target(ids).logits, source(ids).logits)


@pytest.mark.parametrize("causal", CAUSAL)
def test_files_hold_every_parameter_once(causal: str, tmp_path: Path) -> None:
    model = gpt(1, **CAUSAL[causal])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        saved = set(file.keys())
    buffers = {name for name, _ in model.named_buffers()}
    assert saved == set(dict(model.named_parameters())) | buffers
    assert "model.embedding.weight" in saved and "model.head.weight" not in saved
    loaded, info = M2GPTForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.model.head.weight is loaded.model.embedding.weight
    assert set(dict(loaded.named_parameters())) == set(dict(model.named_parameters()))


def test_another_vocabulary() -> None:
    model, batch = small("M2-GPT")
    assert model.get_output_embeddings() is model.model.head
    old = model.model.embedding.weight.detach().clone()
    model.resize_token_embeddings(61)
    assert model.model.head.weight is model.model.embedding.weight and model.model.head.out_features == 61
    assert model.model.config.vocab_size == model.config.vocab_size == 61
    assert torch.equal(model.model.head.weight[:50], old)
    assert model(**batch).logits.shape[-1] == 61
    model.set_input_embeddings(nn.Embedding(13, 16))
    assert model.model.head.weight is model.model.embedding.weight and model.model.head.out_features == 13


def test_a_lost_tie_is_an_error() -> None:
    model, batch = small("M2-GPT")
    model.model.embedding = nn.Embedding(50, 16)
    with pytest.raises(ProblemError, match="its head's weight is not its embedding's"):
        model(**batch)
    model.model.tie_head()
    assert torch.equal(model.model.head.weight, model.model.embedding.weight)
    model(**batch)


def test_it_starts_as_the_embedding_does() -> None:
    model: M2GPT = gpt(1).model
    assert abs(model.head.weight.std().item() - 0.02) < 0.003

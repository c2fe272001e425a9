"""What is made of a file of weights: what it lacks is drawn as the model's constructor does, filters stay precise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from m2gen.models import (
    M2BertConfig,
    M2BertForMaskedLM,
    M2GPTForCausalLM,
    M2GPTPretrainedConfig,
    M2ViTConfig,
    M2ViTForImageClassification,
)

# not drawn: features and times of positions, decay rates, frequencies, the plain mixer's kernel
FIXED = (".z", ".t", ".deltas", ".freq", ".kernel")


def fresh(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if family == "m2_bert":
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "max_position_embeddings": 32}
        return M2BertForMaskedLM(M2BertConfig(vocab_size=50, hyena_filter_order=32, **sizes))
    if family == "m2_gpt":
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 32}
        options = {"causal": "monarch", "filter_options": {"width": 32, "w": 3.0}}
        return M2GPTForCausalLM(M2GPTPretrainedConfig(vocab_size=50, **sizes, **options))
    sizes = {"image_size": 16, "patch_size": 4, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    options = {"pooling": "cls", "position_embeddings": True, "residual_long_conv": True, "num_labels": 16}
    if family == "vit_monarch":
        options |= {"mixer": "attention", "mlp": "monarch", "projections": "monarch", "num_attention_heads": 2}
    return M2ViTForImageClassification(M2ViTConfig(hyena_filter_order=32, hyena_w=3.0, **sizes, **options))


@pytest.mark.parametrize("family", ["m2_bert", "m2_gpt", "m2_vit", "vit_monarch"])
def test_an_almost_empty_file(family: str, tmp_path: Path) -> None:
    want = fresh(family)
    want.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    # by one name M2-BERT knows its second filter
    kept = {name: weights[name] for name in weights if name.endswith(("norm.bias", "filter_fn2.bias"))}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found, info = type(want).from_pretrained(tmp_path, output_loading_info=True)
    assert len(info["missing_keys"]) > 15 and found.state_dict().keys() == want.state_dict().keys()
    for name, tensor in found.state_dict().items():
        drawn_alike(name, tensor, want.state_dict()[name])


@pytest.mark.parametrize("family", ["m2_bert", "m2_gpt", "m2_vit"])
def test_filters_are_loaded_in_single_precision(family: str, tmp_path: Path) -> None:
    """Whatever is asked for: thousands of positions are not told apart in half precision."""
    fresh(family).save_pretrained(tmp_path)
    model = type(fresh(family)).from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            assert tensor.dtype == (torch.float32 if ".filter_fn" in name else torch.bfloat16), name


def drawn_alike(name: str, found: Tensor, want: Tensor) -> None:
    """The same where nothing is drawn, else of the same deviation."""
    if name.endswith(FIXED) or not found.is_floating_point():
        assert torch.equal(found, want), name
    elif found.numel() > 40:
        torch.testing.assert_close(found.std(), want.std(), rtol=0.4, atol=1e-6, msg=name)

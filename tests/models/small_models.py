"""A small model of each kind with a batch for it: for what has to hold for every module of every model."""

from __future__ import annotations

from typing import Any

import m2bert_tiny
import m2vit_tiny
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from m2gen.models import (
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2GPTForCausalLM,
    M2GPTPretrainedConfig,
)

LENGTH = 20
GPT: dict[str, dict[str, Any]] = {
    "M2-GPT": {"expand": 2},
    "M2-GPT, Monarch": {"causal": "monarch", "monarch_options": {"deviation": 0.3}},
    "M2-GPT, three Monarchs": {"causal": "monarch", "monarch_options": {"deviation": 0.3, "tied": False}},
}
VIT: dict[str, dict[str, Any]] = {
    "M2-ViT": {"gated": True, "residual_long_conv": True, "pooling": "cls", "position_embeddings": True},
    "M2-ViT, Monarch": {"mlp": "monarch"},
    "ViT, Monarch": {"mixer": "attention", "mlp": "monarch", "projections": "monarch"},
}
BERT: dict[str, type[PreTrainedModel]] = {
    "M2-BERT, words": M2BertForMaskedLM,
    "M2-BERT, classes": M2BertForSequenceClassification,
}
NAMES = (*BERT, *GPT, *VIT)

Batch = dict[str, Tensor]


def small(name: str, layers: int = 1, **changes: Any) -> tuple[PreTrainedModel, Batch]:
    """A model without dropout, in evaluation mode, and a batch with labels: its inputs and nothing else."""
    torch.manual_seed(0)
    if name in BERT:
        words = m2bert_tiny.tokens(2, LENGTH)
        labels = words if BERT[name] is M2BertForMaskedLM else torch.tensor([0, 2])
        sizes = {
            "num_hidden_layers": layers,
            "hidden_dropout_prob": 0.0,
            "num_labels": 3,
            "hyena_training_additions": True,
        }
        model = m2bert_tiny.tiny(BERT[name], **sizes, **changes)
        with torch.no_grad():
            model.get_input_embeddings().weight[0].normal_(std=0.02)  # of padding, zero: no direction for weight_norm
        return model, {"input_ids": words, "labels": labels}
    if name in GPT:
        words = m2bert_tiny.tokens(2, LENGTH, vocabulary=50)
        return gpt(layers, **GPT[name], **changes), {"input_ids": words, "labels": words}
    model = m2vit_tiny.tiny("m2", num_hidden_layers=layers, **VIT[name], **changes)
    return model, {"pixel_values": m2vit_tiny.images(), "labels": torch.tensor([0, 1, 2])}


def gpt(layers: int, **options: Any) -> M2GPTForCausalLM:
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": layers, "max_position_embeddings": 48}
    model = M2GPTForCausalLM(M2GPTPretrainedConfig(**sizes, filter_options={"width": 8, "heads": 2}, **options))
    for block in model.model.blocks():  # at the initial scale a model does little more than repeat its last token
        nn.init.normal_(block.attention.out_linear.weight, std=0.3)
        nn.init.normal_(block.attention.in_linear.weight, std=0.3)
    return model.eval()


def double(name: str, layers: int = 1) -> tuple[PreTrainedModel, Batch]:
    """`small` in float64."""
    model, batch = small(name, layers)
    return model.double(), {key: t.double() if t.is_floating_point() else t for key, t in batch.items()}

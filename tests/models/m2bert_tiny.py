"""Small M2-BERT models for tests, with no weight left at a value that would hide it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from m2gen.models import M2BertConfig

Model = TypeVar("Model", bound=nn.Module)

TINY: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "hyena_filter_order": 16,
}


def tiny(cls: type[Model], seed: int = 0, **changes: Any) -> Model:
    """A model of that class in evaluation mode."""
    torch.manual_seed(seed)
    return shaken(cls(M2BertConfig(**{**TINY, **changes})).eval())


def shaken(model: Model) -> Model:
    """Norms that are not one, biases that are not zero, and layers that keep the size of what they are given.

    At the start of training the gated path is next to nothing (a product of three small projections), and a wrong
    convolution in it would not show.
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias") or "norm" in name.lower():
                p.add_(0.1 * torch.randn_like(p))
            elif ".implicit_filter" in name and name.endswith("weight"):
                p.uniform_(-1, 1).div_(p.shape[1] ** 0.5)
            elif name.endswith(("linear.weight", "dense.weight", "short_filter.weight")):
                p.normal_().div_(p[0].numel() ** 0.5)
    return model


def tokens(batch: int, length: int, vocabulary: int = 90, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))

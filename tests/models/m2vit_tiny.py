"""Small M2-ViT models for tests, of every kind, with no weight left at a value that would hide it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.models import M2ViTConfig, M2ViTForImageClassification

SIZES: dict[str, Any] = {
    "image_size": 12,
    "patch_size": 3,
    "num_channels": 2,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hyena_filter_order": 8,
    "num_labels": 4,
}
KINDS: dict[str, dict[str, Any]] = {
    "m2": {},
    "m2 gated": {"gated": True, "residual_long_conv": True, "pooling": "cls", "position_embeddings": True},
    "hyena": {"mlp": "dense", "bidirectional": False},
    "monarch": {"mixer": "attention", "mlp": "monarch", "projections": "monarch", "position_embeddings": True},
    "vit": {"mixer": "attention", "mlp": "dense", "pooling": "cls", "position_embeddings": True},
}


def tiny(kind: str = "m2", seed: int = 0, **changes: Any) -> M2ViTForImageClassification:
    """A model of that kind in evaluation mode, norms not one, biases and tables not zero."""
    torch.manual_seed(seed)
    model = M2ViTForImageClassification(M2ViTConfig(**{**SIZES, **KINDS[kind], **changes})).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1 or name.endswith(("cls_token", "position_embeddings")):
                p.add_(0.3 * torch.randn_like(p))
    return model


def images(batch: int = 3, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn((batch, 2, 12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)

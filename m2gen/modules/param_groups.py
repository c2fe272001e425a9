"""Parameter groups for an optimiser, with the published settings of implicit filters.

Source: Hyena, arXiv 2302.10866; Monarch Mixer, arXiv 2310.12109.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from m2gen.modules.hyena_filter import HyenaFilter


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    filter_lr: float = 1e-3,
    filter_weight_decay: float = 0.1,
    position_lr: float = 1e-5,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: the implicit filters of `model` get the published settings of their own.

    Four groups, each trainable parameter in exactly one: matrices (lr, weight_decay); vectors, which are norms and
    biases, those of block-diagonal layers too (lr, no decay); filter networks (filter_lr, filter_weight_decay);
    positional features (position_lr, no decay). Each group also has a "name".
    Use: `torch.optim.AdamW(param_groups(model, lr=8e-4, weight_decay=1e-5))`.
    """
    filters = [m for m in model.modules() if isinstance(m, HyenaFilter)]
    position_ids = {id(f.pos_emb.z) for f in filters}
    networks = [n for f in filters for n in (f.implicit_filter, f.implicit_filter_rev) if n is not None]
    filter_ids = {id(p) for n in networks for p in n.parameters()}
    split: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "filters": [], "positions": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            plain = "vectors" if p.dim() < 2 or name.rpartition(".")[2] == "bias" else "matrices"
            kind = "filters" if id(p) in filter_ids else "positions" if id(p) in position_ids else plain
            split[kind].append(p)
    settings = {
        "matrices": (lr, weight_decay),
        "vectors": (lr, 0.0),
        "filters": (filter_lr, filter_weight_decay),
        "positions": (position_lr, 0.0),
    }
    return [
        {"name": name, "params": split[name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in settings.items()
        if split[name]
    ]

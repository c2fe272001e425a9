"""Training against the clock: as many steps as fit into a time budget, with a learning rate that ends when it does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from m2gen.demo.data import VOCAB, batches
from m2gen.models.m2gpt import M2GPT, M2GPTConfig
from m2gen.modules.param_groups import param_groups


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes and rates of the demo, chosen for a few minutes on two CPU cores: small batches, many steps.

    The filter network has no inner layers and its windows decay faster than published: with contexts this short and
    steps this few, smooth and local filters to begin with are worth more than expressive ones.
    """

    d_model: int = 160
    n_layers: int = 4
    context: int = 256
    batch: int = 4
    lr: float = 5e-3
    filter_lr: float = 3e-3
    weight_decay: float = 0.05
    warm_up: float = 0.03  # of the time budget
    filter_width: int = 32
    filter_layers: int = 0  # inner ones
    fast_decay: float = 0.05
    slow_decay: float = 1.0
    evaluated: int = 131_072  # held-out bytes
    sampled: int = 300  # bytes generated

    def model(self) -> M2GPT:
        filters = {
            "width": self.filter_width,
            "inner_layers": self.filter_layers,
            "fast_decay": self.fast_decay,
            "slow_decay": self.slow_decay,
        }
        config = M2GPTConfig(VOCAB, self.d_model, self.n_layers, self.context, filter_options=filters)
        return M2GPT(config)


@dataclass(frozen=True, slots=True)
class Progress:
    """Where training stands: share of the time used, steps taken, bytes seen, bits per byte of late (nan at first)."""

    share: float
    steps: int
    bytes_seen: int
    bits: float


def train(
    model: M2GPT, text: Tensor, *, seconds: float, settings: Settings, seed: int, report: Callable[[Progress], None]
) -> Progress:
    """Train on random windows of `text` (uint8) for `seconds`; at least one step. `report` hears of every step.

    The schedule follows the clock, so the same seed gives the same batches but, on a faster machine, more of them.
    """
    optimiser = _optimiser(model, settings)
    generator = torch.Generator().manual_seed(seed)
    begin, state = time.perf_counter(), Progress(0.0, 0, 0, math.nan)
    model.train()
    for inputs, labels in batches(text, batch=settings.batch, length=settings.context, generator=generator):
        _set_rate(optimiser, schedule(state.share, settings.warm_up))
        loss = _step(model, optimiser, inputs, labels)
        state = _advance(state, (time.perf_counter() - begin) / seconds, inputs.numel(), loss / math.log(2))
        report(state)
        if state.share >= 1:
            break
    return state


def schedule(share: float, warm_up: float) -> float:
    """The learning rate's factor when `share` of the time is used: linear warm-up, then a cosine down to 2 %."""
    rise = min(1.0, (share + 1e-3) / warm_up)
    return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))


def _optimiser(model: M2GPT, settings: Settings) -> torch.optim.AdamW:
    # positions keep the published rate; filter networks get a higher one than published, as there are few steps
    groups = param_groups(
        model,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        filter_lr=settings.filter_lr,
        filter_weight_decay=0.0,
    )
    for group in groups:
        group["full_lr"] = group["lr"]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def _set_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["full_lr"] * factor


def _step(model: M2GPT, optimiser: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> float:
    optimiser.zero_grad()
    _, loss = model(inputs, labels)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()
    return float(loss.detach())


def _advance(state: Progress, share: float, seen: int, bits: float) -> Progress:
    late = bits if math.isnan(state.bits) else 0.98 * state.bits + 0.02 * bits
    return Progress(share, state.steps + 1, state.bytes_seen + seen, late)


@torch.no_grad()
def bits_per_byte(model: M2GPT, windows: Tensor, *, batch: int = 16) -> float:
    """Mean bits per byte over windows (n, length + 1); each byte is predicted from those before it in its window."""
    model.eval()
    total = 0.0
    for part in torch.split(windows, batch):
        _, loss = model(part[:, :-1], part[:, 1:])
        total += float(loss) * len(part)
    return total / len(windows) / math.log(2)

"""Text from an M2-GPT, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.models.m2gpt.configuration import M2GPTConfig
from m2gen.modules.mixer_cache import MixerCache


class LanguageModel(Protocol):
    """What of an `M2GPT` generation needs."""

    config: M2GPTConfig

    def new_cache(self, batch: int = 1, capacity: int | None = None) -> MixerCache: ...

    def __call__(self, input_ids: Tensor, *, cache: MixerCache | None = None, logits_to_keep: int = 0) -> Any: ...


def rehearsed(model: LanguageModel, ids: Tensor) -> None:
    """What `generate` calls of a prompt ids (B, P): it is read with a cache, then a token at a time, and the cache does
    all that may stand before and after them."""
    model.new_cache(ids.shape[0]).rehearse()
    for part, kept in ((ids, 0), (ids, 1), (ids[:, :1], 0)):  # products of few rows are done otherwise
        model(part, cache=model.new_cache(ids.shape[0]), logits_to_keep=kept)


def stream(model: LanguageModel, prompt_ids: Tensor, n: int, *, use_cache: bool, **sampling: Any) -> Iterator[Tensor]:
    """`M2GPT.stream`; `sampling` are the options of `sample`. The prompt is checked at once, not at the first token.
    Raises ProblemError for another prompt or count, and for options that mean nothing."""
    if prompt_ids.dim() != 2 or prompt_ids.shape[1] < 1:
        raise ProblemError(
            "generation", f"a prompt of shape {tuple(prompt_ids.shape)}", "give (batch, at least one token)"
        )
    if n < 0:
        raise ProblemError("generation", f"{n} tokens are asked for", "ask for none or more")
    _check_sampling(sampling.get("temperature", 1.0), sampling.get("top_k"))
    return _stream(model, prompt_ids, n, use_cache, sampling)


def _stream(model: LanguageModel, ids: Tensor, n: int, use_cache: bool, sampling: dict[str, Any]) -> Iterator[Tensor]:
    window = model.config.max_length
    room = min(ids.shape[1] + n - 1, window)  # the last token is not read
    cache = model.new_cache(ids.shape[0], room) if use_cache and ids.shape[1] < room else None
    for _ in range(n):
        with torch.no_grad():
            if cache is not None and ids.shape[1] <= window:
                logits = model(ids[:, cache.position :], cache=cache, logits_to_keep=1)
            else:
                logits = model(ids[:, -window:], logits_to_keep=1)
            token = sample(logits[:, -1].float(), **sampling)
        ids = torch.cat([ids, token], dim=1)
        yield token


def sample(
    logits: Tensor, *, temperature: float = 1.0, top_k: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """logits (B, V) -> one drawn token per row, (B, 1); temperature and top_k as in `M2GPT.generate`.

    Raises ProblemError for a temperature below 0 or a top_k below 1.
    """
    _check_sampling(temperature, top_k)
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None:
        kth = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)


def _check_sampling(temperature: float, top_k: int | None) -> None:
    if not temperature >= 0:  # NaN, too
        raise ProblemError("sampling", f"temperature={temperature}", "use 0 for the most likely token, or more")
    if top_k is not None and top_k < 1:
        raise ProblemError("sampling", f"top_k={top_k}", "use 1 or more, or None for all tokens")

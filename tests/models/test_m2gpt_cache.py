"""M2-GPT in parts with its cache: the tokens and logits of the full forward pass."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest
import torch

from m2gen.errors import ProblemError
from m2gen.models import M2GPT, M2GPTConfig

TOKENS = 2000


def model(length: int, **options: Any) -> M2GPT:
    torch.manual_seed(0)
    config = M2GPTConfig(97, 32, 2, length, filter_options={"heads": 4, "width": 16}, **options)
    m = M2GPT(config).eval()
    for block in m.blocks():  # at the initial scale a model does little more than repeat its last token
        torch.nn.init.normal_(block.attention.out_linear.weight, std=0.3)
    return m


@torch.no_grad()
@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_greedy_tokens_are_the_full_forwards_over_2000(causal: str) -> None:
    m = model(TOKENS + 40, causal=causal)
    ids = m.generate(torch.randint(97, (2, 37)), TOKENS, temperature=0)
    assert len(ids[:, 37:].unique()) > 10
    assert torch.equal(ids[:, 37:], m(ids[:, :-1])[:, 36:].argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_logits_are_the_full_forwards(causal: str, dtype: torch.dtype) -> None:
    m = model(TOKENS + 40, causal=causal, expand=2).to(dtype)
    ids, chance = torch.randint(97, (2, TOKENS)), random.Random(0)
    want = m(ids)
    cache, parts = m.new_cache(2), []
    while cache.position < TOKENS:
        size = chance.choice([1, 1, 1, 1, 2, 63, 64, 200])
        parts.append(m(ids[:, cache.position :][:, :size], cache=cache))
    torch.testing.assert_close(
        torch.cat(parts, dim=1), want, rtol=0, atol=4 * math.sqrt(TOKENS) * torch.finfo(dtype).eps
    )
    assert want.abs().max() > 0.1


@torch.no_grad()
def test_prompts_of_any_length() -> None:
    m = model(300).double()
    ids = torch.randint(97, (1, 300))
    want = m(ids)
    for prompt in (1, 2, 63, 64, 65, 127, 128, 150, 256, 257, 298):
        cache = m.new_cache()
        parts = [m(ids[:, :prompt], cache=cache), *(m(part, cache=cache) for part in ids[:, prompt:].split(1, dim=1))]
        torch.testing.assert_close(torch.cat(parts, dim=1), want, rtol=0, atol=1e-11)


@torch.no_grad()
def test_the_cache_sees_the_weights_of_its_making() -> None:
    """Filters are kept in evaluation, and made anew after a change."""
    m = model(80).double()
    ids = torch.randint(97, (1, 80))
    assert m.new_cache().long.bank is m.new_cache().long.bank
    m(ids[:, :40], cache=m.new_cache())
    for change in ("bias", "implicit_filter.0.weight", "modulation.deltas"):
        for block in m.blocks():
            block.attention.filter_fn.state_dict()[change].add_(1)
        cache = m.new_cache()
        parts = [m(part, cache=cache) for part in ids.split([30, *[1] * 50], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), m(ids), rtol=0, atol=1e-11)
    own = m.new_cache().long.bank
    assert copy.deepcopy(m).new_cache().long.bank is not own


def test_inference_mode() -> None:
    m = model(80)
    with torch.inference_mode():
        first = m.generate(torch.zeros(1, 1, dtype=torch.long), 70, temperature=0)
    assert torch.equal(first, m.generate(torch.zeros(1, 1, dtype=torch.long), 70, temperature=0))
    with torch.inference_mode():  # weights made in it do not count their versions
        other = model(80)
        assert torch.equal(first, other.generate(torch.zeros(1, 1, dtype=torch.long), 70, temperature=0))


def test_refusals() -> None:
    m, ids = model(40), torch.zeros(1, 30, dtype=torch.long)
    with pytest.raises(ProblemError, match="gradients are on"):
        m(ids, cache=m.new_cache())
    with torch.no_grad():
        with pytest.raises(ProblemError, match="made for 2"):
            m(ids, cache=m.new_cache(2))
        cache = m.new_cache()
        m(ids, cache=cache)
        with pytest.raises(ProblemError, match="room for 40"):
            m(ids, cache=cache)
        with pytest.raises(ProblemError, match="at most 40"):
            m.new_cache(capacity=41)

"""A cache that was filled under inference_mode serves under no_grad, and the other way round."""

from __future__ import annotations

import pytest
import torch
from m2bert_tiny import tokens
from test_traced_masks import gpt

from m2gen.models.m2gpt.pretrained import CACHE

MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("begin", [1, 4])
@pytest.mark.parametrize("last", MODES)
@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("causal", ["fft", "monarch"])
def test_parts_under_either_mode(causal: str, first: str, last: str, begin: int, training: bool) -> None:
    """Single tokens and longer parts, copies and rows in another order; a model in training keeps no filters."""
    model, ids, rows = gpt(causal).train(training), tokens(2, 20), torch.tensor([1, 0])
    with torch.no_grad():
        want, swapped = model(ids).logits, model(ids[rows]).logits
    with MODES[first]():
        cache = model(ids[:, :begin], use_cache=True)[CACHE]
    with MODES[last]():
        parts = [model(ids[:, i:j], cache=cache).logits for i, j in ((begin, begin + 1), (begin + 1, 9), (9, 10))]
        copy = cache.clone()
    with MODES[first]():
        parts.append(model(ids[:, 10:11], cache=cache).logits)
        cache.reorder(rows)
    with MODES[last]():
        rest = model(ids[rows][:, 11:], cache=cache).logits
    with MODES[first]():
        copied = model(ids[:, 10:], cache=copy).logits
    torch.testing.assert_close(torch.cat(parts, 1), want[:, begin:11], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rest, swapped[:, 11:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copied, want[:, 10:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", ["fft", "monarch"])
@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("last", MODES)
def test_generate_goes_on(causal: str, first: str, last: str) -> None:
    model, ids = gpt(causal), tokens(2, 6)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 20}
    want = model.generate(ids, **options)
    with MODES[first]():
        begun = model(ids[:, :5], use_cache=True)[CACHE]
    with MODES[last]():
        assert torch.equal(model.generate(ids, **{CACHE: begun}, **options), want)
        assert torch.equal(model.model.generate(ids, 20, temperature=0), want)

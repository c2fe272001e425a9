"""The n-gram models against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m2gen.demo.ngram import NGram, fit_ngrams


def text(n: int, seed: int = 0) -> torch.Tensor:
    """A second-order Markov chain over four letters: trigrams know more than bigrams, and those more than unigrams."""
    rng = np.random.default_rng(seed)
    table = np.random.default_rng(7).dirichlet([0.3] * 4, size=(4, 4)).cumsum(-1)
    letters = [0, 1]
    for draw in rng.random(n):
        letters.append(min(3, int(np.searchsorted(table[letters[-2], letters[-1]], draw))))
    return (torch.tensor(letters) + 97).to(torch.uint8)


def by_hand(train: list[int], data: list[int], i: int, strengths: tuple[float, ...]) -> float:
    p = 1 / 256
    for n, strength in enumerate(strengths, start=1):
        if i < n - 1:
            break
        gram = data[i - n + 1 : i + 1]
        windows = [train[j : j + n] for j in range(len(train) - n + 1)]
        joint, context = windows.count(gram), sum(w[:-1] == gram[:-1] for w in windows)
        p = (joint + strength * p) / (context + strength)
    return p


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities(order: int) -> None:
    train, other = text(300), text(40, seed=1)
    other[20] = 120  # a byte never seen
    model = fit_ngrams(train)[order]
    want = [by_hand(train.tolist(), other.tolist(), i, model.strengths) for i in range(len(other))]
    np.testing.assert_allclose(model.probabilities(other, torch.arange(len(other))), want, rtol=1e-12)
    assert model.bits(other, torch.arange(len(other))) == pytest.approx(-sum(map(math.log2, want)) / len(want))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one(order: int) -> None:
    model = fit_ngrams(text(500))[order]
    context = text(10, seed=3)
    rows = torch.stack([torch.cat([context, torch.tensor([c], dtype=torch.uint8)]) for c in range(256)])
    last = torch.arange(1, 257) * rows.shape[1] - 1
    assert model.probabilities(rows.flatten(), last).sum() == pytest.approx(1, abs=1e-12)


def test_more_context_helps_on_unseen_text() -> None:
    models, held_out = fit_ngrams(text(20_000)), text(5_000, seed=2)
    positions = torch.arange(2, held_out.numel())
    unigram, bigram, trigram = (models[n].bits(held_out, positions) for n in (1, 2, 3))
    assert trigram < bigram - 0.05 < unigram - 0.1
    assert unigram < 2.1


def test_smoothing_is_near_the_best_for_unseen_text() -> None:
    train, held_out = text(2_000), text(5_000, seed=2)
    positions = torch.arange(2, held_out.numel())
    fitted = fit_ngrams(train)[3]
    best = min(
        NGram(fitted.counts, (*fitted.strengths[:2], a)).bits(held_out, positions) for a in (0.1, 0.5, 2, 8, 32, 128)
    )
    assert fitted.bits(held_out, positions) < best + 0.02

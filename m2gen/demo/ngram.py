"""Unigram, bigram and trigram byte models: what counting alone reaches on the same text.

Each order is smoothed towards the one below it by a Dirichlet prior (MacKay and Peto, "A hierarchical Dirichlet
language model", 1995):

    p_0(c) = 1 / 256
    p_n(c | context) = (count(context c) + a_n p_{n-1}(c | shorter context)) / (count(context) + a_n)

The strengths a_1, a_2, a_3 are fitted one after the other on a part of the training text that is left out of the counts
while they are chosen; the counts are then taken over all of it. The held-out files are never looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m2gen.demo.data import VOCAB

Counts = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]

STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SMOOTHING = (
    "interpolated with the order below by a Dirichlet prior, its strength fitted on a tenth of the training text"
)
_BLOCK = 4096  # the tenth left out while fitting is made of blocks of this many bytes


@dataclass(frozen=True, slots=True)
class NGram:
    """`order` 1, 2 or 3; `strengths[n-1]` smooths order n. `bits` scores positions of a text."""

    counts: tuple[Counts, ...]
    strengths: tuple[float, ...]

    @property
    def order(self) -> int:
        return len(self.counts)

    def probabilities(self, text: Tensor, positions: Tensor) -> Probabilities:
        """p(text[i] | the order - 1 bytes before it) for each i of `positions` (any shape, i >= 0); float64, flat."""
        data = text.numpy().astype(np.int64)
        where = positions.numpy().ravel()
        p = np.full(where.shape, 1.0 / VOCAB)
        for n, (counts, strength) in enumerate(zip(self.counts, self.strengths, strict=True), start=1):
            seen = where >= n - 1  # the first bytes of the text have no longer context
            key = _keys(data, where[seen], n)
            joint, context = counts[key], counts.reshape(-1, VOCAB).sum(1)[key // VOCAB]
            p[seen] = (joint + strength * p[seen]) / (context + strength)
        return p

    def bits(self, text: Tensor, positions: Tensor) -> float:
        """Mean bits per byte at `positions` of `text` (uint8, one axis)."""
        return float(-np.log2(self.probabilities(text, positions)).mean())


def fit_ngrams(train: Tensor) -> dict[int, NGram]:
    """The models of order 1, 2 and 3 of `train` (uint8, one axis), smoothed as the module says."""
    kept, left_out = _split(train)
    positions = torch.arange(2, left_out.numel())
    strengths: tuple[float, ...] = ()
    partial = tuple(_count(kept, n) for n in (1, 2, 3))
    for n in (1, 2, 3):
        fits = {a: NGram(partial[:n], (*strengths, a)).bits(left_out, positions) for a in STRENGTHS}
        strengths = (*strengths, min(fits, key=fits.__getitem__))
    counts = tuple(_count(train, n) for n in (1, 2, 3))
    return {n: NGram(counts[:n], strengths[:n]) for n in (1, 2, 3)}


def _split(train: Tensor) -> tuple[Tensor, Tensor]:
    """Nine tenths and one tenth of the text, in blocks; a text too short for blocks is cut once."""
    block = min(_BLOCK, math.ceil(train.numel() / 10))
    tenth = (torch.arange(train.numel()) // block) % 10 == 9
    return train[~tenth], train[tenth]


def _count(text: Tensor, n: int) -> Counts:
    """How often each n bytes in a row occur, indexed by their base-256 number."""
    data = text.numpy().astype(np.int64)
    return np.bincount(_keys(data, np.arange(n - 1, data.size), n), minlength=VOCAB**n)


def _keys(data: Counts, where: Counts, n: int) -> Counts:
    """The base-256 number of the n bytes that end at each position."""
    key = np.zeros_like(where)
    for back in range(n - 1, -1, -1):
        key = key * VOCAB + data[where - back]
    return key

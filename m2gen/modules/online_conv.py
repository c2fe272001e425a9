"""Causal convolution of a signal that comes in bit by bit, for several layers at once.

The sum y[i] = sum over j <= i of k[i - j] z[j] is cut in tiles, as in relaxed multiplication (van der Hoeven, "Relax,
but don't be too lazy", 2002); with one operand known from the start as in Flash Inference, arXiv 2410.12982, and
FutureFill, arXiv 2410.03766. When t samples are known and U is the largest power of two that divides t, the tile of t
is what the last U samples give to the next U outputs,

    z[t - U .. t)  ->  y[t .. t + U),     a convolution of length 2 U.

Every pair j < i lies in exactly one tile, so a new sample costs O(log(L)^2) on average. Tiles smaller than a block are
not worth a transform: inside a block a new sample is added at once to the outputs that are still to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.ops.fftconv import fftconv
from m2gen.ops.prepared import PreparedFilter

BLOCK = 64  # at 1,536 channels a tile of 64 costs as much as 40 samples added at once


class FilterBank:
    """The filters of all layers in the forms an `OnlineConv` reads; several of those may share one bank.

    filters   one for each layer, all (distinct, K): channel c has number c mod distinct, so `heads` times as many
              channels share them
    skips     one for each layer, (heads * distinct,), or None: y gains skip * z

    Stacks for the tiles are made when first needed: in all at most 2 K + 2 BLOCK taps for each filter, besides the
    filters themselves and the spectra of the stacks.
    """

    def __init__(self, filters: Sequence[Tensor], skips: Sequence[Tensor | None], heads: int = 1) -> None:
        self.filters, self.skips, self.heads = list(filters), list(skips), heads
        self.distinct, self.taps = filters[0].shape
        self.layers = len(filters)
        dtype = filters[0].dtype
        near = [F.pad(k[:, :BLOCK], (0, max(0, BLOCK - self.taps))) for k in filters]
        # time first, then as the buffer: batch, layer, head, filter
        self.near = torch.stack(near).permute(2, 0, 1)[:, None, :, None].contiguous()
        self.own = self.near[0, 0].expand(-1, heads, -1).clone()  # what a sample gives to its own output
        for own, skip in zip(self.own, skips, strict=True):
            if skip is not None:
                own += skip.to(dtype).view(heads, -1)
        self._stacked: dict[int, PreparedFilter] = {}

    def stacked(self, length: int) -> PreparedFilter:
        """The first `length` taps of all layers, (layers * distinct, length), zeros beyond a filter's end."""
        if length not in self._stacked:
            with torch.inference_mode(False), torch.no_grad():  # ordinary tensors, of use in any mode
                stack = torch.cat([self.first(layer, length) for layer in range(self.layers)])
                self._stacked[length] = PreparedFilter(stack, "causal", None, None)
        return self._stacked[length]

    def first(self, layer: int, length: int) -> Tensor:
        """The first `length` taps of one layer, (distinct, length)."""
        return F.pad(self.filters[layer][:, :length], (0, max(0, length - self.taps)))

    @property
    def nbytes(self) -> int:
        """Of filters and stacks with their spectra, in bytes."""
        return _bytes([*self.filters, self.near, self.own]) + sum(stack.nbytes for stack in self._stacked.values())


class OnlineConv:
    """The state of the causal convolutions of all layers of a model: for layer l

        y[i] = skip_l z[i] + sum over j <= i of k_l[i - j] z[j],     i < capacity.

    Either `extend` or, for one sample, `step` is called once for every layer, then `advance` with the same number of
    samples. For one layer, `__call__` does both.

    The one buffer, (slots, batch, layers, heads, distinct) with slots = capacity / 2 rounded up to a power of two times
    BLOCK, holds samples behind the position and, ahead of it, the sums known so far: the tile in the middle turns the
    first half's samples, which are not needed any more, into the second half's sums. `nbytes` is its size: 2 to 4 bytes
    times capacity x batch x layers x channels in float32. Nothing here is differentiated.
    """

    def __init__(self, bank: FilterBank, batch: int, capacity: int) -> None:
        self.bank, self.batch, self.capacity, self.position = bank, batch, capacity, 0
        self.slots = max(BLOCK, _power_of_two(capacity) // 2)
        self.buffer = bank.near.new_zeros(self.slots, batch, bank.layers, bank.heads, bank.distinct)

    @property
    def nbytes(self) -> int:
        """Size of the buffer in bytes, without the filters."""
        return _bytes([self.buffer])

    def __call__(self, z: Tensor) -> Tensor:
        """For a bank of one layer: the next samples z (B, n, channels) -> their outputs, likewise."""
        y = self.extend(0, z)
        self.advance(z.shape[1])
        return y

    def check(self, count: int) -> None:
        """Raises ProblemError where `count` more samples do not fit."""
        if self.position + count > self.capacity:
            raise ProblemError(
                f"{count} more positions after {self.position}",
                f"there is room for {self.capacity}",
                "stop there, or start anew with a larger capacity; a model's limit is its max_length",
            )

    def rehearse(self) -> None:
        """Every convolution that a text from the start on and its continuation to the capacity may need, on zeros, so
        that no kernel has to be compiled while someone waits. Raises ProblemError where something was seen already."""
        if self.position:
            raise ProblemError("a rehearsal", f"{self.position} positions were seen already", "rehearse a new cache")
        reaches: dict[tuple[int, int], int] = {}
        for t in range(BLOCK, self.capacity, BLOCK):
            size = min(t & -t, self.slots)
            reaches.setdefault((size, min(size, self.capacity - t)), t)
        for t in reaches.values():
            self._tile(t, 0)
            self._tile(t, None)
        for at, count in ((0, BLOCK << i) for i in range((self.slots // BLOCK).bit_length())):
            self._piece(0, at, self.buffer.new_zeros(self.batch, count, self.bank.heads * self.bank.distinct))

    def step(self, layer: int, z: Tensor) -> Tensor:
        """One sample z (B, channels) of a layer -> its output (B, channels)."""
        here = self.buffer[self.position % self.slots, :, layer]
        z = z.view(here.shape)
        y = torch.addcmul(here, z, self.bank.own[layer])
        here.copy_(z)
        return y.view(self.batch, -1)

    def extend(self, layer: int, z: Tensor) -> Tensor:
        """n samples z (B, n, channels) of a layer -> their outputs, likewise; any n that fits."""
        self.check(z.shape[1])
        z = z.to(self.buffer.dtype)
        if z.shape[1] == 1:
            return self.step(layer, z[:, 0])[:, None]
        out = []
        for at, count in _pieces(self.position, z.shape[1], self.slots):
            piece = z[:, at - self.position :][:, :count]
            out.append(self._piece(layer, at, piece))
            if (at + count) % BLOCK == 0:
                self._tile(at + count, layer)
        return torch.cat(out, dim=1) if out else z

    def advance(self, count: int) -> None:
        """All layers have had their next `count` samples. One that came by `step` gives to the others now."""
        self.position += count
        if count != 1:
            return  # `extend` has seen to it
        last = (self.position - 1) % self.slots
        left = -self.position % BLOCK
        if left:
            self.buffer[last + 1 : last + 1 + left].addcmul_(self.bank.near[1 : 1 + left], self.buffer[last])
        else:
            self._tile(self.position, None)

    def _piece(self, layer: int, at: int, z: Tensor) -> Tensor:
        """Outputs of samples that no tile divides; what they give to the rest of their block is added there."""
        count = z.shape[1]
        span = count if count >= BLOCK else BLOCK - at % BLOCK
        here = self.buffer[at % self.slots :][:span, :, layer : layer + 1]
        samples = z.reshape(self.batch, count, 1, self.bank.heads, self.bank.distinct).transpose(0, 1)
        new = self._convolve(samples, span, self.bank.first(layer, span), self.bank.skips[layer])
        y = here[:count] + new[:count]
        here[:count] = samples
        here[count:] += new[count:]
        return y.transpose(0, 1).reshape(z.shape)

    def _tile(self, t: int, layer: int | None) -> None:
        """What the last samples before t give to as many outputs from t on; of one layer or of all."""
        size = min(t & -t, self.slots)
        reach = min(size, self.capacity - t)
        if reach <= 0:
            return
        which = slice(None) if layer is None else slice(layer, layer + 1)
        samples = self.buffer[(t - size) % self.slots :][:size, :, which]
        length = size + reach
        k: Tensor | PreparedFilter = self.bank.stacked(length) if layer is None else self.bank.first(layer, length)
        sums = self._convolve(samples, length, k)[size:]
        ahead = self.buffer[t % self.slots :][:reach, :, which]
        if size == self.slots:  # in place of the samples: nothing was known of these outputs before
            ahead.copy_(sums)
        else:
            ahead += sums

    def _convolve(self, z: Tensor, length: int, k: Tensor | PreparedFilter, skip: Tensor | None = None) -> Tensor:
        """z (n, B, layers, heads, distinct), zeros after it, with k (layers * distinct, length) -> (length, ...)."""
        count, batch, layers, heads, distinct = z.shape
        padded = z.new_zeros(batch, heads, length, layers, distinct)
        padded[:, :, :count] = z.permute(1, 3, 0, 2, 4)
        y = fftconv(padded.view(batch * heads, length, layers * distinct), k, layout="BLH")
        y = y.reshape(batch, heads, length, layers, distinct).permute(2, 0, 3, 1, 4)
        if skip is not None:
            y[:count] += skip.to(z.dtype).view(heads, distinct) * z
        return y


def _pieces(start: int, count: int, largest: int) -> Iterator[tuple[int, int]]:
    """Cut positions start .. start + count in (at, size), so that no tile has its t strictly inside a piece and reaches
    out of it: what is left of a block, then powers of two that divide `at`."""
    at, stop = start, start + count
    while at < stop:
        inside = at % BLOCK
        size = stop - at
        if inside or size < BLOCK:
            size = min(size, BLOCK - inside)
        else:
            size = min(_power_of_two(size + 1) // 2, largest, (at & -at) or largest)
        yield at, size
        at += size


def _power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(n - 1, 0).bit_length()


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)

"""The triangular transforms of `CausalMonarch` and their inverses, for a signal that comes in bit by bit.

A factor of T acts on one digit of the position: an output reads the inputs with the same other digits and no larger a
digit there. So a new sample costs one dot product per factor, order * n^(1 / order) / 2 products on average, and a
factor's memory is the inputs (for the inverse, the outputs) since its digit last began anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2gen.modules.autocast import no_autocast
from m2gen.modules.causal_monarch import CausalMonarch, TriangularTransform, on_digit, solve_lower
from m2gen.modules.online_conv import OnlineConv


class OnlineTriangular:
    """T, or T^-1 with `inverse`, applied to samples in order: `__call__` takes and gives (B, n, channels).

    The first call may bring many samples at once, at the cost of the whole transform; in later calls they are done one
    after the other. `nbytes`: the memories of all factors together, sum over a of s_a b_a x B x channels, for order 2
    that is (n + b_0) B x channels. Nothing here is differentiated.
    """

    def __init__(self, transform: TriangularTransform, batch: int, channels: int, *, inverse: bool = False) -> None:
        self.inverse, self.position = inverse, 0
        self.blocks = transform.blocks()  # lowest digit first, (s_a, b_a, b_a)
        first = self.blocks[0]
        self.memories = [first.new_zeros(b, s, batch, channels) for s, b, _ in (block.shape for block in self.blocks)]

    @property
    def nbytes(self) -> int:
        """Size of the memories in bytes, without the factors."""
        return sum(m.numel() * m.element_size() for m in self.memories)

    def __call__(self, x: Tensor) -> Tensor:
        """The next samples x (B, n, channels), in order -> T x or T^-1 x at their positions, in the factors' dtype."""
        x = x.to(self.memories[0].dtype)
        if self.position == 0 and x.shape[1] > 1:
            return self._begin(x)
        out = []
        with no_autocast(x):  # it would multiply in half precision
            for sample in x.unbind(1):
                out.append(self._step(sample))
                self.position += 1
        return torch.stack(out, dim=1)

    def _order(self) -> list[int]:
        digits = list(range(len(self.blocks)))
        return digits if self.inverse else digits[::-1]

    def _step(self, x: Tensor) -> Tensor:
        """x (B, channels): one digit after the other, each with what its factor has seen."""
        for a in self._order():
            block, memory = self.blocks[a], self.memories[a]
            low, digit = self.position % block.shape[0], self.position // block.shape[0] % block.shape[1]
            row = block[low, digit]
            if self.inverse:
                if digit:
                    x = x - self._dot(row[:digit], memory[:digit, low])
                x = x / row[digit]
                memory[digit, low] = x
            else:
                memory[digit, low] = x
                x = self._dot(row[: digit + 1], memory[: digit + 1, low])
        return x

    @staticmethod
    def _dot(row: Tensor, past: Tensor) -> Tensor:
        """row (m,) with past (m, B, channels) -> (B, channels)."""
        return (row @ past.reshape(row.shape[0], -1)).view(past.shape[1:])

    def _begin(self, x: Tensor) -> Tensor:
        """All samples at once, as `TriangularTransform` does it, keeping what later ones will ask for."""
        batch, count, channels = x.shape
        whole = x.new_zeros(self.memories[-1].shape[0] * self.memories[-1].shape[1], batch, channels)
        whole[:count] = x.transpose(0, 1)
        for a in self._order():
            if not self.inverse:
                self._keep(a, whole, count)
            act = solve_lower if self.inverse else torch.matmul
            whole = on_digit(self.blocks[a], whole.permute(1, 2, 0), act).permute(2, 0, 1)
            if self.inverse:
                self._keep(a, whole, count)
        self.position = count
        return whole[:count].transpose(0, 1)

    def _keep(self, a: int, values: Tensor, count: int) -> None:
        memory = self.memories[a].flatten(0, 1)
        since = count % memory.shape[0]
        memory[:since] = values[count - since : count]


class WholeMonarch:
    """A `CausalMonarch` that is called, with all there was so far, for every part: one that has hooks, say, inside or
    out, which have no part in an `OnlineTriangular`.

    k         the filter (channels, K)
    skip      (channels,), of what stands outside the transforms
    """

    def __init__(self, monarch: CausalMonarch, k: Tensor, skip: Tensor, batch: int) -> None:
        self.monarch, self.k, self.skip = monarch, k, skip
        self.past = k.new_zeros(batch, k.shape[0], monarch.n)

    def __call__(self, conv: OnlineConv, layer: int, z: Tensor) -> Tensor:
        """The next z (B, n, channels) -> its long convolution and skip, likewise. Of `conv` only the position is read.

        Raises ProblemError where they do not fit.
        """
        conv.check(z.shape[1])
        stop = conv.position + z.shape[1]
        self.past[:, :, conv.position : stop] = z.transpose(1, 2)
        y: Tensor = self.monarch(self.past[:, :, :stop], self.k)
        return y[:, :, conv.position :].transpose(1, 2).to(z.dtype) + self.skip * z

    @property
    def nbytes(self) -> int:
        """Size of what it has seen, in bytes."""
        return self.past.numel() * self.past.element_size()

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was."""
        self.past = self.past.index_select(0, rows)

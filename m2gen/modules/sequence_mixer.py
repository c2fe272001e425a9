"""The sequence mixer of M2-BERT and M2-GPT: a gated long convolution between two dense projections.

Source: Monarch Mixer, arXiv 2310.12109, section 5.1; gating and short convolution from Hyena, arXiv 2302.10866.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.autocast import as_autocast
from m2gen.modules.causal_monarch import CausalMonarch
from m2gen.modules.hyena_filter import HyenaFilter, long_conv
from m2gen.modules.linear import apply_linear, project_back, project_first
from m2gen.modules.plain import apply_dropout, plain
from m2gen.modules.rehearsal import Rehearses
from m2gen.modules.values import on_gpu
from m2gen.ops.gated_depthwise_conv1d import gated_depthwise_conv1d
from m2gen.ops.turn import turn


class Cached(Protocol):
    """What stands for the two convolutions where a sequence comes in parts (`m2gen.modules.mixer_cache`)."""

    def gated(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """x1 v and x2 of the short convolution of the next h (B, n, 3 d_model), (B, n, d_model)."""

    def long(self, u: Tensor, post_gate: Tensor) -> Tensor:
        """The long convolution of the next u (B, n, d_model), with gate and skip."""


class SequenceMixer(Rehearses, nn.Module):
    """u (B, L, d_model) -> (B, L, d_model), mixing along L without attention:

        x1, x2, v = split(short_conv(in_linear(u)))
        y = x2 * longconv(x1 * v) + longconv_2(u)
        out = out_linear(y)

    short_conv is a causal depthwise convolution of `short_kernel` taps; longconv and longconv_2 have filters as long as
    the input (`filter_fn`, `filter_fn2`) and their own skip D. The second one, on the layer's input, takes the place of
    a residual connection; `residual_long_conv=False` leaves it out. Gates, long convolution and skip are one `fftconv`
    call. Parameter names are those of the published M2-BERT checkpoints.

    bidirectional    long convolutions that see both sides (M2-BERT) or, if False, only the past (M2-GPT)
    norm             a LayerNorm on the input, as in the released 80M checkpoint
    dropout          on x1 * v and before out_linear
    monarch          options of a `CausalMonarch` of length max_length that takes the place of the causal long
                     convolution, y = T^-1 ((T k) * (T u)); None for the convolution itself. Its skip is outside T
    filter_options   passed on to both `HyenaFilter`s

    L must be at most max_length. Under autocast the projections run in the autocast dtype, the filters in float32.

    Padding: the released model has no mask, so there padding changes the result of real tokens. Here
    `forward(u, mask)` takes mask (B, L), bool or integer 0/1, true at real tokens, and what stands at the other
    positions (left, right or in between, NaN included) reaches no real token. Rows padded on either side give what the
    unpadded sequence gives; padding inside still takes up room, as positions are counted with it. Outputs at padded
    positions mean nothing.

    `cache`, a layer of a `MixerCache`, makes u the next part of a sequence whose earlier parts the cache has seen.

    Raises ProblemError for `monarch` in a mixer that is bidirectional or has a second long convolution.
    """

    def __init__(
        self,
        d_model: int,
        max_length: int,
        *,
        bidirectional: bool = True,
        residual_long_conv: bool = True,
        short_kernel: int = 3,
        norm: bool = False,
        dropout: float = 0.0,
        monarch: dict[str, Any] | None = None,
        **filter_options: Any,
    ) -> None:
        super().__init__()
        if monarch is not None and (bidirectional or residual_long_conv):
            raise ProblemError(
                "a SequenceMixer with a CausalMonarch",
                f"bidirectional={bidirectional}, residual_long_conv={residual_long_conv}",
                "switch both off: it is causal and stands for one long convolution",
            )
        self.d_model, self.bidirectional, self.short_kernel = d_model, bidirectional, short_kernel
        self.mode = "bidirectional" if bidirectional else "causal"
        self.layernorm = nn.LayerNorm(d_model) if norm else None
        self.dropout = nn.Dropout(dropout)
        self.in_linear = nn.Linear(d_model, 3 * d_model)
        # the published names and initialisation; as long as it is plain, the computation is m2gen's own op
        self.short_filter = nn.Conv1d(3 * d_model, 3 * d_model, short_kernel, groups=3 * d_model)
        filter_options["bidirectional"] = bidirectional
        self.filter_fn = HyenaFilter(d_model, max_length, **filter_options)
        self.filter_fn2 = HyenaFilter(d_model, max_length, **filter_options) if residual_long_conv else None
        self.monarch = None if monarch is None else CausalMonarch(max_length, **monarch)
        self.out_linear = nn.Linear(d_model, d_model)

    def forward(self, u: Tensor, mask: Tensor | None = None, cache: Cached | None = None) -> Tensor:
        """u (B, L, d_model), mask (B, L) or None -> (B, L, d_model). Raises ProblemError for a mask of another kind."""
        real = None if mask is None else _as_bool(mask, u)
        padding = None if real is None else ~real[..., None]
        # before the norm: its weight's gradient would see the padding; after it: its bias
        u = _zero(u, padding)
        u = u if self.layernorm is None else _zero(self.layernorm(u), padding)
        if cache is None and on_gpu(u) and depthwise(self.short_filter):
            return self._by_channels(as_autocast(u), real)
        # in_linear adds a bias and short_filter another: without these two the padding would speak again
        h = _zero(apply_linear(self.in_linear, u), padding)
        z, post_gate = self._gated(h) if cache is None else cache.gated(h)
        z = apply_dropout(self.dropout, _zero(z, padding))
        y = self._long_conv(self.filter_fn, z, post_gate) if cache is None else cache.long(z, post_gate)
        if self.filter_fn2 is not None:
            y = y + self._long_conv(self.filter_fn2, u)
        return apply_linear(self.out_linear, apply_dropout(self.dropout, y))

    def _by_channels(self, u: Tensor, real: Tensor | None) -> Tensor:
        """The same with neighbours in time side by side in memory, as on a GPU, where a kernel that reads them across
        takes 4 to 10 times as long. u (B, L, d_model), its padding zero and its norm behind it, `real` (B, L) bool;
        everything between the projections is (B, d_model, L)."""
        h, offset = project_first(self.in_linear, u)
        conv: Any = self.short_filter
        z, post_gate = gated_depthwise_conv1d(h, conv.weight[:, 0], conv.bias, offset=offset, mask=real)
        y = self._long_conv(self.filter_fn, apply_dropout(self.dropout, z), post_gate, layout="BHL")
        if self.filter_fn2 is not None:
            y = long_conv(self.filter_fn2, turn(u, first=True), mode=self.mode, layout="BHL", add=y)
        return project_back(self.out_linear, apply_dropout(self.dropout, y))

    def _gated(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, L, 3 d_model) -> x1 v and x2, (B, L, d_model)."""
        conv = self.short_filter
        if depthwise(conv):
            return gated_depthwise_conv1d(h, conv.weight[:, 0], conv.bias, layout="BLH")
        out: Tensor = conv(F.pad(h.transpose(1, 2), (self.short_kernel - 1, 0)))
        x1, x2, v = out.transpose(1, 2).chunk(3, dim=-1)
        return x1 * v, x2

    def _long_conv(
        self, filter_fn: HyenaFilter, u: Tensor, post_gate: Tensor | None = None, layout: str = "BLH"
    ) -> Tensor:
        if self.monarch is not None and post_gate is not None:
            z = u.transpose(1, 2) if layout == "BLH" else u
            k, _, skip = filter_fn(z.shape[2], with_skip=True)
            y = self.monarch(z, k) + skip[:, None].to(z.dtype) * z
            gated: Tensor = post_gate * (y.transpose(1, 2) if layout == "BLH" else y)
            return gated
        return long_conv(filter_fn, u, mode=self.mode, layout=layout, post_gate=post_gate)

    def _rehearsed_length(self) -> int:
        return self.filter_fn.max_length

    def _rehearsed_calls(self, length: int, batch: int) -> Iterator[tuple[Tensor, ...]]:
        yield (self(rehearsed_input(self, length, batch)),)

    def extra_repr(self) -> str:
        return f"{self.d_model}, mode={self.mode}"


def rehearsed_input(mixer: SequenceMixer, length: int, batch: int) -> Tensor:
    """u (B, L, d_model), see `Rehearses`."""
    return mixer.in_linear.weight.new_zeros((batch, length, mixer.d_model)).requires_grad_(mixer.training)


def depthwise(conv: nn.Module) -> bool:
    """Whether `conv` is the plain short convolution that a mixer builds: a filter a channel, no gaps, no padding."""
    if not (isinstance(conv, nn.Conv1d) and plain(conv, nn.Conv1d)):
        return False
    one = conv.groups == conv.in_channels == conv.out_channels and conv.padding_mode == "zeros"
    return one and (conv.stride, conv.padding, conv.dilation) == ((1,), (0,), (1,))


def _as_bool(mask: Tensor, u: Tensor) -> Tensor:
    if mask.shape != u.shape[:2] or mask.is_floating_point():
        # an additive mask (0 and -inf) would be read upside down
        raise ProblemError(
            f"a mask for u of shape {tuple(u.shape)}",
            f"mask {tuple(mask.shape)} {mask.dtype}",
            f"give a bool or 0/1 integer mask of shape {tuple(u.shape[:2])}, true at real tokens",
        )
    return mask.bool()


def _zero(x: Tensor, padding: Tensor | None) -> Tensor:
    return x if padding is None else torch.where(padding, x.new_zeros(()), x)

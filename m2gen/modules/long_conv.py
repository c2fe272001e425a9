"""A long convolution with an implicit filter, the sequence half of a Monarch Mixer layer.

Source: Monarch Mixer, arXiv 2310.12109, where the two Monarch matrices of the sequence step are a DFT and its inverse;
the filter is Hyena's, arXiv 2302.10866.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.hyena_filter import HyenaFilter, long_conv

_MODES = ("causal", "bidirectional", "circular")


class LongConv(nn.Module):
    """y = post_gate * (conv(z, k) + D * z) with z = u * pre_gate, k as long as the input, D per channel.

    u (B, channels, L) for layout "BHL", (B, L, channels) for "BLH"; L <= max_length; y like u. The gates, each
    optional, are shaped like u. `mode` is "causal", "bidirectional" (a second filter looks ahead) or "circular".
    `filter_fn` is the `HyenaFilter`; its options (emb_dim, width, heads, ...) are passed on. The filter stays float32
    under autocast.

    Raises ProblemError for another mode, and for L > max_length.
    """

    def __init__(
        self, channels: int, max_length: int, *, mode: str = "causal", layout: str = "BHL", **filter_options: Any
    ) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ProblemError(
                f"LongConv(mode={mode!r})", "an implicit filter has no such mode", f"use one of {_MODES}"
            )
        self.mode, self.layout = mode, layout
        self.filter_fn = HyenaFilter(channels, max_length, bidirectional=mode == "bidirectional", **filter_options)
        self.filter_fn.mode = mode

    def forward(self, u: Tensor, pre_gate: Tensor | None = None, post_gate: Tensor | None = None) -> Tensor:
        """u, pre_gate and post_gate (B, channels, L), or (B, L, channels) for layout "BLH" -> y like u."""
        return long_conv(self.filter_fn, u, mode=self.mode, layout=self.layout, pre_gate=pre_gate, post_gate=post_gate)

    def extra_repr(self) -> str:
        return f"mode={self.mode}, layout={self.layout}"

"""Implicit long filters: a small network maps a position to one tap per channel.

Source: Hyena, arXiv 2302.10866, section 3.3, as used by Monarch Mixer, arXiv 2310.12109.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.autocast import no_autocast
from m2gen.ops.versions import versions as versions  # models keep what they make of filters, too

if TYPE_CHECKING:
    from typing_extensions import Self


class Sine(nn.Module):
    """sin(w_mod freq x) with one learned frequency per unit: `freq` (1, width), initialised at w; w_mod is fixed."""

    def __init__(self, width: int, w: float, w_mod: float = 1.0) -> None:
        super().__init__()
        self.w, self.w_mod = float(w), w_mod
        self.freq = nn.Parameter(torch.full((1, width), self.w))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., width) -> (..., width)."""
        freq = self.freq.to(x.dtype)
        return torch.sin((freq if self.w_mod == 1 else self.w_mod * freq) * x)


class PositionalFeatures(nn.Module):
    """What the filter network sees of a position: `z` (1, max_length, emb_dim), learned, and `t` (1, max_length, 1) in
    [0, 1].

    z starts as [t, cos(f w), -sin(f w)] with w = 2 pi linspace(0, L - 1, L) / L, bands = (emb_dim - 1) / 2 and
    f = linspace(1e-4, bands - 1, bands), where L is max_length.
    """

    t: Tensor

    def __init__(self, max_length: int, emb_dim: int) -> None:
        super().__init__()
        self.emb_dim = emb_dim
        t = unit_times(max_length)
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.z = nn.Parameter(position_features(t, max_length, emb_dim).to(dtype))
        self.register_buffer("t", t.to(dtype))


def unit_times(length: int) -> Tensor:
    """The times of `length` positions, evenly from 0 to 1: (1, length, 1), float64."""
    return (torch.arange(length, dtype=torch.float64) / max(length - 1, 1))[None, :, None]


def position_features(t: Tensor, period: float, emb_dim: int) -> Tensor:
    """z = [t, cos(f w), -sin(f w)] at times t (1, n, 1), float64, as (1, n, emb_dim).

    `period` is the length L that the times belong to: position i has t = i / (L - 1) and w = 2 pi i / L. In float64, so
    that long tables are exact to the last bit of float32. Times beyond 1 continue the features past L.
    """
    bands = (emb_dim - 1) // 2
    w = 2 * math.pi * t * ((period - 1 or 1) / period)
    angle = _evenly(1e-4, bands - 1, bands, t.device) * w
    return torch.cat([t, angle.cos(), -angle.sin()], dim=-1)


def _evenly(first: float, last: float, n: int, device: torch.device | None = None) -> Tensor:
    """n values from first to last, float64. (torch.linspace is a CPU tensor while transformers builds on meta.)"""
    return first + torch.arange(n, dtype=torch.float64, device=device) * ((last - first) / max(n - 1, 1))


class ExponentialModulation(nn.Module):
    """A decaying window per channel, exp(-t |delta|): `deltas` (1, 1, channels), fixed.

    The rates run evenly from the one that has fallen to 0.01 at t = slow_decay to the one that has at t = fast_decay.
    """

    deltas: Tensor

    def __init__(self, channels: int, fast_decay: float, slow_decay: float) -> None:
        super().__init__()
        self.fast_decay, self.slow_decay = fast_decay, slow_decay
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.register_buffer("deltas", self.rates(channels).to(dtype))

    def rates(self, channels: int) -> Tensor:
        """The initial `deltas`, (1, 1, channels), float64."""
        return _evenly(math.log(0.01) / self.slow_decay, math.log(0.01) / self.fast_decay, channels)[None, None]

    def forward(self, t: Tensor) -> Tensor:
        """t (1, L, 1) -> the windows, (channels, L)."""
        return torch.exp(-t[0, :, 0] * self.deltas[0, 0, :, None].to(t.dtype).abs())


class HyenaFilter(nn.Module):
    """Long filters k (channels, L) for any L <= max_length, from a network of the position:

        k[c, i] = (W_3 sin(f W_2 sin(f W_1 sin(f W_0 z_i))))_c * exp(-t_i |delta_c|)      with inner_layers = 2

    `forward(L)` returns `(k, k_rev)`; k_rev, from a second network that shares the frequencies f, is None unless
    `bidirectional`. Both are float32 (float64 for a float64 module), also under autocast. A cast to half precision
    leaves all parameters and buffers of this module in float32: thousands of positions are not told apart in bfloat16.
    `bias` (channels,) is the skip weight D of the convolution this filter is used in; it is only kept here.

    Parameter names are those of the published M2-BERT checkpoints. A shorter L takes the first L rows, so a filter does
    not change with the input's length.

    channels        number of filters; with `heads` > 1 only channels / heads different ones are made, and channel c
                    uses number c mod (channels / heads): filters shared across heads, as in H3 and M2-GPT
    emb_dim         positional features per position, odd and at least 3
    width, inner_layers, w     of the network; w is the initial frequency of the sines, w_mod a fixed factor of it
    modulate        whether to multiply by the decaying window, with `fast_decay` and `slow_decay` in units
                    of max_length

    Raises ProblemError for sizes that make no filter and for L > max_length.
    """

    def __init__(
        self,
        channels: int,
        max_length: int,
        *,
        emb_dim: int = 5,
        width: int = 128,
        inner_layers: int = 2,
        w: float = 10.0,
        w_mod: float = 1.0,
        bidirectional: bool = False,
        modulate: bool = True,
        fast_decay: float = 0.3,
        slow_decay: float = 1.5,
        heads: int = 1,
    ) -> None:
        super().__init__()
        _check_sizes(channels, max_length, emb_dim, heads)
        self.channels, self.max_length, self.heads = channels, max_length, heads
        self._kept: tuple[Any, list[Tensor], tuple[Tensor, Tensor | None]] | None = None
        distinct = channels // heads
        self.bias = nn.Parameter(torch.randn(channels))
        self.pos_emb = PositionalFeatures(max_length, emb_dim)
        sine = Sine(width, w, w_mod)
        self.implicit_filter = _network(emb_dim, width, inner_layers, distinct, sine)
        self.implicit_filter_rev = _network(emb_dim, width, inner_layers, distinct, sine) if bidirectional else None
        self.modulation = ExponentialModulation(distinct, fast_decay, slow_decay) if modulate else None

    def forward(self, length: int | None = None) -> tuple[Tensor, Tensor | None]:
        """The filters k and k_rev (or None), each (channels, length); length defaults to max_length."""
        length = self.max_length if length is None else length
        if length > self.max_length:
            raise ProblemError(
                f"a filter of length {length}",
                f"this one was made for at most {self.max_length}",
                "cut the input, or build the module with a larger max_length",
            )
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._filters(length)
        return self._remembered_filters(length)

    def _filters(self, length: int) -> tuple[Tensor, Tensor | None]:
        z, t = self.pos_emb.z[0, :length], self.pos_emb.t[:, :length]
        dtype = torch.promote_types(z.dtype, torch.float32)
        with no_autocast(z):
            window = None if self.modulation is None else self.modulation(t.to(dtype))
            k = self._filter(self.implicit_filter, z.to(dtype), window)
            rev = self.implicit_filter_rev
            return k, None if rev is None else self._filter(rev, z.to(dtype), window)

    def _remembered_filters(self, length: int) -> tuple[Tensor, Tensor | None]:
        """In evaluation the filters are computed once, and again after any parameter or buffer has changed."""
        state = [*self.parameters(), *self.buffers()]
        if any(t.is_inference() for t in state):  # such tensors do not count their versions
            return self._filters(length)
        seen = (length, versions(state))
        kept = self._kept
        if kept is None or kept[0] != seen or any(a is not b for a, b in zip(kept[1], state, strict=True)):
            with torch.inference_mode(False), torch.no_grad():  # ordinary tensors: their spectra are remembered in turn
                kept = self._kept = (seen, state, self._filters(length))
        return kept[2]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `bfloat16`, `cuda` go through; a half precision asked for becomes float32."""

        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(device=moved.device, dtype=torch.float32) if half else moved

        super()._apply(wide, recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start with nothing remembered."""
        return {**self.__dict__, "_kept": None}

    def _filter(self, network: nn.Sequential, z: Tensor, window: Tensor | None) -> Tensor:
        k = _evaluate(network, z)
        if window is not None:
            k = k * window if torch.is_grad_enabled() else k.mul_(window)
        return k.repeat(self.heads, 1) if self.heads > 1 else k

    def extra_repr(self) -> str:
        return f"{self.channels}, max_length={self.max_length}, heads={self.heads}"


def _check_sizes(channels: int, max_length: int, emb_dim: int, heads: int) -> None:
    asked = f"HyenaFilter({channels}, {max_length}, emb_dim={emb_dim}, heads={heads})"
    if emb_dim < 3 or emb_dim % 2 == 0:
        raise ProblemError(
            asked, "emb_dim counts the time and pairs of cosine and sine", "use an odd emb_dim of 3 or more"
        )
    if channels < 1 or max_length < 1:
        raise ProblemError(asked, "sizes must be positive", "use at least one channel and one position")
    if heads < 1 or channels % heads:
        raise ProblemError(asked, "heads does not divide the channels", f"use a divisor of {channels}")


def _network(emb_dim: int, width: int, inner_layers: int, channels: int, sine: Sine) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(emb_dim, width), sine]
    for _ in range(inner_layers):
        layers += [nn.Linear(width, width), sine]
    return nn.Sequential(*layers, nn.Linear(width, channels, bias=False))


def _evaluate(network: nn.Sequential, h: Tensor) -> Tensor:
    """The network at positions h (L, emb_dim), in h's dtype, as (channels, L): the last product gives that layout."""
    *layers, last = network  # not .children(): that lists the shared sine once
    for layer in layers:
        h = _linear(layer, h) if isinstance(layer, nn.Linear) else layer(h)
    weight: Tensor = last.weight.to(h.dtype)  # type: ignore[assignment]
    return weight @ h.T


def _linear(layer: nn.Linear, h: Tensor) -> Tensor:
    return F.linear(h, layer.weight.to(h.dtype), layer.bias.to(h.dtype))


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    filter_lr: float = 1e-3,
    filter_weight_decay: float = 0.1,
    position_lr: float = 1e-5,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: the implicit filters of `model` get the published settings of their own.

    Four groups, each trainable parameter in exactly one: matrices (lr, weight_decay); vectors, which are norms and
    biases, those of block-diagonal layers too (lr, no decay); filter networks (filter_lr, filter_weight_decay);
    positional features (position_lr, no decay). Each group also has a "name".
    Use: `torch.optim.AdamW(param_groups(model, lr=8e-4, weight_decay=1e-5))`.
    """
    filters = [m for m in model.modules() if isinstance(m, HyenaFilter)]
    position_ids = {id(f.pos_emb.z) for f in filters}
    networks = [n for f in filters for n in (f.implicit_filter, f.implicit_filter_rev) if n is not None]
    filter_ids = {id(p) for n in networks for p in n.parameters()}
    split: dict[str, list[nn.Parameter]] = {"matrices": [], "vectors": [], "filters": [], "positions": []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            plain = "vectors" if p.dim() < 2 or name.rpartition(".")[2] == "bias" else "matrices"
            kind = "filters" if id(p) in filter_ids else "positions" if id(p) in position_ids else plain
            split[kind].append(p)
    settings = {
        "matrices": (lr, weight_decay),
        "vectors": (lr, 0.0),
        "filters": (filter_lr, filter_weight_decay),
        "positions": (position_lr, 0.0),
    }
    return [
        {"name": name, "params": split[name], "lr": rate, "weight_decay": decay}
        for name, (rate, decay) in settings.items()
        if split[name]
    ]

"""Implicit long filters: a small network maps a position to one tap per channel.

Source: Hyena, arXiv 2302.10866, section 3.3, as used by Monarch Mixer, arXiv 2310.12109.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.log import fallback
from m2gen.modules.autocast import no_autocast
from m2gen.modules.kept import Checked, Keeper, same_tensors, values_suffice
from m2gen.modules.plain import plain, readable
from m2gen.modules.tied import KeepsTies, tie
from m2gen.ops.fftconv import fftconv
from m2gen.ops.prepared import MOST, PreparedFilter
from m2gen.ops.values import traced

if TYPE_CHECKING:
    from typing_extensions import Self


@readable
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


@readable
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

    def forward(self, length: int) -> tuple[Tensor, Tensor]:
        """z (1, length, emb_dim) and t (1, length, 1) of the first `length` positions."""
        return self.z[:, :length], self.t[:, :length]


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


@readable
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


@readable
class HyenaFilter(Keeper, KeepsTies):
    """Long filters k (channels, L) for any L <= max_length, from a network of the position:

        k[c, i] = (W_3 sin(f W_2 sin(f W_1 sin(f W_0 z_i))))_c * exp(-t_i |delta_c|)      with inner_layers = 2

    `forward(L)` returns `(k, k_rev)`; k_rev, from a second network that shares the frequencies f, is None unless
    `bidirectional`. Both are float32 (float64 for a float64 module), also under autocast. A cast to half precision
    leaves all parameters and buffers of this module in float32: thousands of positions are not told apart in bfloat16.
    `bias` (channels,) is the skip weight D of the convolution this filter is used in; it is only kept here.

    Parameter names are those of the published M2-BERT checkpoints: the sines of a network are modules of their own with
    one frequency parameter. A shorter L takes the first L rows, so a filter does not change with the input's length.

    In evaluation, on a CPU, the filters of the last length are kept, and used as long as all weights have the same
    content; `m2gen.keep_filters` keeps them without that check, anywhere. A hook, adapter or parametrization on a part
    of this module is heeded: then the filters are computed in every call.

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
        self.mode = "bidirectional" if bidirectional else "causal"  # of the convolution it is used in
        self._checked: Checked[PreparedFilter] = Checked()
        self._stay: dict[int, tuple[list[Tensor], PreparedFilter]] = {}
        distinct = channels // heads
        self.bias = nn.Parameter(torch.randn(channels))
        self.pos_emb = PositionalFeatures(max_length, emb_dim)
        self.implicit_filter = _network(emb_dim, width, inner_layers, distinct, w, w_mod)
        self.implicit_filter_rev = _network(emb_dim, width, inner_layers, distinct, w, w_mod) if bidirectional else None
        first, *others = (m for m in self.modules() if isinstance(m, Sine))
        for sine in others:
            tie(sine, first)
        self.modulation = ExponentialModulation(distinct, fast_decay, slow_decay) if modulate else None

    def forward(self, length: int | None = None, *, with_skip: bool = False) -> tuple[Tensor | None, ...]:
        """The filters k and k_rev (or None), each (channels, length); length defaults to max_length. With `with_skip`
        also `bias`: one call brings all that a convolution reads of this module."""
        length = self.max_length if length is None else length
        self._check_length(length)
        kept = self._kept(length)
        if kept is None:
            found = self._filters(length)
        else:  # a copy: the caller may write to it
            found = kept.k.clone(), None if kept.k_rev is None else kept.k_rev.clone()
        return (*found, self.bias) if with_skip else found

    def prepared(self, length: int) -> PreparedFilter | None:
        """The filters of that length with their skip, as kept; None where they have to be asked for by a call."""
        self._check_length(length)
        return self._kept(length) if plain(self, HyenaFilter) else None

    def _check_length(self, length: int) -> None:
        # in a trace sizes are tensors
        if not traced() and (not isinstance(length, int | torch.SymInt) or isinstance(length, bool) or length < 0):
            raise ProblemError(f"a filter of length {length!r}", "not a length", "give a whole number from 0 on")
        if length > self.max_length:
            raise ProblemError(
                f"a filter of length {length}",
                f"this one was made for at most {self.max_length}",
                "cut the input, or build the module with a larger max_length",
            )

    def _filters(self, length: int) -> tuple[Tensor, Tensor | None]:
        z, t = self.pos_emb(length)
        dtype = torch.promote_types(z.dtype, torch.float32)
        with no_autocast(z):
            window = None if self.modulation is None else self.modulation(t.to(dtype))
            k = self._filter(self.implicit_filter, z[0].to(dtype), window)
            rev = self.implicit_filter_rev
            return k, None if rev is None else self._filter(rev, z[0].to(dtype), window)

    # -- what is kept --------------------------------------------------------------------------------------------------

    def keep(self, *lengths: int) -> None:
        """See `m2gen.keep_filters`."""
        super().keep(*lengths)
        for length in lengths:
            self._check_length(length)
        if not plain(self, HyenaFilter) or self.state(1) is None:
            fallback(
                "keep_filters: filters with a hook, an adapter, a parametrization or another kind of layer in them are "
                "computed in every call; merge or remove it, and call keep_filters again"
            )
        if not self.training:
            with torch.no_grad():
                for length in lengths:
                    self._kept(length)

    def drop(self) -> None:
        """Keep no filter made so far."""
        super().drop()
        self._checked.forget()
        self._stay.clear()

    def _kept(self, length: int) -> PreparedFilter | None:
        """The filters of that length if they may be kept from call to call, checked or declared."""
        stay = self.stays(length)
        if self.training or (torch.compiler.is_compiling() and not stay):
            return None
        state = self.state(length)
        if state is None or not values_suffice(state[1], compiling=stay):
            return None
        if stay:
            return self._staying(length, state[1])
        if any([t.device.type != "cpu" for t in state[1]]):  # noqa: C419
            return None  # a comparison would wait for the device
        key = state[0], torch.get_float32_matmul_precision()
        z, t, *others = state[1]
        return self._checked.get(key, [z[:, :length], t[:, :length], *others], lambda: self._make(length))

    def _staying(self, length: int, tensors: list[Tensor]) -> PreparedFilter | None:
        """What was declared to stay, whatever is in the tensors: as long as they are the same ones, since others may be
        put in their place for a call (`torch.func.functional_call`)."""
        kept = self._stay.get(length)
        if kept is None and len(self._stay) < MOST and not torch.compiler.is_compiling():
            kept = self._stay[length] = tensors, self._make(length)
        if kept is None or not same_tensors(kept[0], tensors):
            return None
        return kept[1]

    def _make(self, length: int) -> PreparedFilter:
        with torch.inference_mode(False), torch.no_grad():  # ordinary tensors, of use in any mode
            k, k_rev = self._filters(length)
            return PreparedFilter(k, self.mode, k_rev, self.bias.detach().clone())

    def state(self, length: int) -> tuple[Hashable, list[Tensor]] | None:
        """All that filters of that length are made of, settings and tensors; None where something else has a say: a
        hook, an adapter, a module of another kind."""
        settings: list[Hashable] = [length, self.heads, self.mode]
        if type(self) is not HyenaFilter or not plain(self.pos_emb, PositionalFeatures):
            return None
        tensors: list[Any] = [self.pos_emb.z, self.pos_emb.t, self.bias]
        for network in (self.implicit_filter, self.implicit_filter_rev):
            settings.append(network is None)
            if network is None:
                continue
            if not plain(network, nn.Sequential):
                return None
            for layer in network._modules.values():
                if not (plain(layer, Sine) or plain(layer, nn.Linear)):
                    return None
                settings.append(getattr(layer, "w_mod", None))
                # by name: another tensor may stand in a parameter's place
                tensors += [layer.freq] if isinstance(layer, Sine) else [layer.weight, layer.bias]
        settings.append(self.modulation is None)
        if self.modulation is not None:
            if not plain(self.modulation, ExponentialModulation):
                return None
            tensors.append(self.modulation.deltas)
        return tuple(settings), [t for t in tensors if t is not None]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `bfloat16`, `cuda` go through; a half precision asked for becomes float32."""

        def wide(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            half = moved.dtype in (torch.float16, torch.bfloat16)
            return tensor.to(device=moved.device, dtype=torch.float32) if half else moved

        super()._apply(wide, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start with nothing kept or declared."""
        return {**self.__dict__, "_checked": Checked(), "_stay": {}, "declared": None}

    def _filter(self, network: nn.Module, z: Tensor, window: Tensor | None) -> Tensor:
        k = _evaluate(network, z)
        if window is not None:
            k = k * window  # not in place: it may be somebody else's, which a layer or a hook gave
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


def _network(emb_dim: int, width: int, inner_layers: int, channels: int, w: float, w_mod: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(emb_dim, width), Sine(width, w, w_mod)]
    for _ in range(inner_layers):
        layers += [nn.Linear(width, width), Sine(width, w, w_mod)]
    return nn.Sequential(*layers, nn.Linear(width, channels, bias=False))


def _evaluate(network: nn.Module, h: Tensor) -> Tensor:
    """The network at positions h (L, emb_dim), in h's dtype, as (channels, L): the last product gives that layout."""
    if not plain(network, nn.Sequential):
        return network(h).T.contiguous()  # type: ignore[no-any-return]
    *layers, last = network._modules.values()
    for layer in layers:
        if isinstance(layer, nn.Linear) and plain(layer, nn.Linear):
            h = F.linear(h, layer.weight.to(h.dtype), None if layer.bias is None else layer.bias.to(h.dtype))
        else:
            h = layer(h)  # type: ignore[misc]
    if isinstance(last, nn.Linear) and plain(last, nn.Linear) and last._parameters["bias"] is None:
        return last.weight.to(h.dtype) @ h.T
    return last(h).T.contiguous()  # type: ignore[misc,no-any-return]


def long_conv(
    filter_fn: nn.Module,
    u: Tensor,
    *,
    mode: str,
    layout: str,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """`fftconv` of u with the filters and the skip of a `HyenaFilter`, as long as u."""
    length = u.shape[-1 if layout == "BHL" else 1]
    kept = filter_fn.prepared(length) if isinstance(filter_fn, HyenaFilter) else None
    rest: dict[str, Any] = {"pre_gate": pre_gate, "post_gate": post_gate, "add": add, "layout": layout}
    if kept is not None:
        return fftconv(u, kept, **rest)
    k, k_rev, skip = filter_fn(length, with_skip=True)
    return fftconv(u, k, mode=mode, k_rev=k_rev, skip=skip, **rest)

"""The memory of a stack of causal sequence mixers between the parts of a sequence, as in generation token by token."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules.causal_monarch import CausalMonarch, TriangularTransform
from m2gen.modules.hyena_filter import HyenaFilter
from m2gen.modules.online_conv import FilterBank, OnlineConv
from m2gen.modules.online_monarch import OnlineTriangular, WholeMonarch
from m2gen.modules.parameters import Parameters
from m2gen.modules.plain import all_plain, plain
from m2gen.modules.sequence_mixer import SequenceMixer, depthwise
from m2gen.ops.depthwise_conv1d import depthwise_conv1d

if TYPE_CHECKING:
    from typing_extensions import Self

_MONARCH = (CausalMonarch, TriangularTransform, Parameters)


def filter_bank(mixers: Sequence[SequenceMixer]) -> FilterBank:
    """The long filters of all `mixers`; for a `CausalMonarch` T k, with its skip left to the cache."""
    filters: list[Tensor] = []
    skips: list[Tensor | None] = []
    with ordinary():
        for mixer in mixers:
            k, _, skip = mixer.filter_fn(with_skip=True)
            k = k[: k.shape[0] // mixer.filter_fn.heads]
            filters.append(k if mixer.monarch is None else mixer.monarch.on_filter(k))
            skips.append(skip.clone() if mixer.monarch is None else None)
        return FilterBank(filters, skips, mixers[0].filter_fn.heads)


def bank_state(mixers: Sequence[SequenceMixer]) -> tuple[Hashable, list[Tensor]] | None:
    """All that `filter_bank` is made of, settings and tensors; None where hooks, adapters, ... have a say too."""
    settings: list[Hashable] = []
    tensors: list[Tensor] = []
    for mixer in mixers:
        found = mixer.filter_fn.state(mixer.filter_fn.max_length) if plain(mixer.filter_fn, HyenaFilter) else None
        if found is None or (mixer.monarch is not None and not all_plain(mixer.monarch, _MONARCH)):
            return None
        settings += [found[0], None if mixer.monarch is None else mixer.monarch.bases]
        tensors += [*found[1], *([] if mixer.monarch is None else mixer.monarch.parameters())]
    return tuple(settings), tensors


@contextmanager
def ordinary() -> Iterator[None]:
    """No gradients, and tensors that may be written to in any mode, inside of `inference_mode` as well."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class MixerCache:
    """What `mixers` of one kind have to remember of a batch of sequences: forward(part, cache.layer(i)) for each layer
    i, then `advance(length of the part)`; parts of any length, up to `capacity` positions together.

    batch       rows, that is sequences of equal length; shorter ones are padded and masked
    capacity    at most the mixers' max_length, which is the default
    bank        their filters, if they are at hand (`filter_bank`)

    In bytes (`nbytes`), with e = 4 for float32 and for half precision, 8 for float64, and s = capacity / 2 rounded up
    to a power of two and to at least 64:

        e x layers x batch x d_model x (s + 3 short_kernel + 3)

    and for mixers with a CausalMonarch of order 2 in addition 2 e x layers x batch x d_model x (max_length + b_0), b_0
    its first base. The bank is shared by all caches of a model (`bank.nbytes`).

    Filters and weights are read when the cache is made: one made before a change of the model is of no use after it.
    Nothing is differentiated. A cache cannot be taken back by some positions, as the sums ahead hold them already:
    keep a `clone()`.

    Raises ProblemError for a capacity above max_length, and for mixers that are not causal or have two long
    convolutions.
    """

    def __init__(
        self, mixers: Sequence[SequenceMixer], batch: int, capacity: int | None = None, bank: FilterBank | None = None
    ) -> None:
        longest = _check(mixers, capacity)
        with ordinary():
            bank = filter_bank(mixers) if bank is None else bank
            self.long = OnlineConv(bank, batch, longest if capacity is None else capacity)
            self.short = _ShortConvs(mixers, batch, self.long.buffer)
            self.transforms = [None if m.monarch is None else _transforms(m, m.monarch, batch) for m in mixers]

    # transformers asks a cache for these, and for `get_seq_length`: positions count, and cannot be taken back
    is_compileable = is_croppable = False
    is_linear = (False,)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """`position`, under the name that transformers knows; the same for all layers."""
        return self.position

    @property
    def position(self) -> int:
        """How many positions have been seen."""
        return self.long.position

    @property
    def capacity(self) -> int:
        """How many positions there may be in all."""
        return self.long.capacity

    @property
    def batch(self) -> int:
        return self.long.batch

    @property
    def nbytes(self) -> int:
        """Size in bytes of everything that belongs to the sequences, without filters and weights."""
        return self.long.nbytes + self.short.nbytes + sum(t.nbytes for t in self.transforms if t is not None)

    def layer(self, index: int) -> LayerCache:
        """What the mixer of this index takes as its `cache`."""
        return LayerCache(self, index)

    def check(self, count: int) -> None:
        """Raises ProblemError where `count` more positions do not fit, or gradients are on."""
        if torch.is_grad_enabled():
            raise ProblemError(
                "a forward pass with a cache", "gradients are on, and it has none", "use torch.no_grad()"
            )
        self.long.check(count)

    def rehearse(self) -> None:
        """Call on zeros what a text and its continuation to the capacity may call, see `OnlineConv.rehearse`."""
        with ordinary():
            self.long.rehearse()

    def advance(self, count: int) -> None:
        """Every layer has had the next `count` positions."""
        with ordinary():
            self.short.advance(count)
            self.long.advance(count)

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row rows[i] was, rows (batch,) int64, as in a beam search."""
        if rows.shape != (self.batch,):
            raise ProblemError(
                f"a cache of {self.batch} rows in another order",
                f"rows has shape {tuple(rows.shape)}",
                f"give one index for each row, ({self.batch},); for more rows make a larger cache",
            )
        with ordinary():
            self.long.buffer = self.long.buffer.index_select(1, rows)
            self.short.tail = self.short.tail.index_select(1, rows)
            self.short.prepare()
            for transforms in self.transforms:
                if transforms is not None:
                    transforms.reorder(rows)

    def clone(self) -> Self:
        """An independent copy, with the same bank and, where a part of the model is called, the same model."""
        whole = [t.monarch for t in self.transforms if isinstance(t, WholeMonarch)]
        shared = [self.long.bank, *self.short.called.values(), *whole]
        with ordinary():
            return copy.deepcopy(self, {id(part): part for part in shared})


class LayerCache:
    """One layer of a `MixerCache`."""

    def __init__(self, cache: MixerCache, index: int) -> None:
        self._cache, self._index = cache, index

    def gated(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (B, n, 3 d_model) -> the product of the first and the last stream of its short convolution, and the second,
        (B, n, d_model)."""
        x1, x2, v = self._cache.short(self._index, h).chunk(3, dim=-1)
        return (x1 * v).to(h.dtype), x2.to(h.dtype)

    def long(self, u: Tensor, post_gate: Tensor) -> Tensor:
        """u and gate (B, n, d_model) -> post_gate * (long convolution with skip of u), likewise."""
        conv, transforms = self._cache.long, self._cache.transforms[self._index]
        z = u.to(conv.buffer.dtype)
        y = conv.extend(self._index, z) if transforms is None else transforms(conv, self._index, z)
        return (post_gate * y).to(u.dtype)


class _ShortConvs:
    """The short convolutions of all layers: `tail` (taps - 1, B, layers, 3 d_model) holds their last inputs.

    Those that are not plain any more are `called`, by layer; their taps stand as zeros here.
    """

    def __init__(self, mixers: Sequence[SequenceMixer], batch: int, like: Tensor) -> None:
        filters = [mixer.short_filter for mixer in mixers]
        self.called: dict[int, nn.Module] = {i: f for i, f in enumerate(filters) if not depthwise(f)}
        count, layers, channels = mixers[0].short_kernel, len(mixers), 3 * mixers[0].d_model
        self.taps = like.new_zeros(count, layers, channels)
        self.bias = like.new_zeros(layers, channels)
        for i, f in enumerate(filters):
            if i not in self.called:
                self.taps[:, i] = f.weight[:, 0].T
                if f.bias is not None:
                    self.bias[i] = f.bias
        self.tail = like.new_zeros(count - 1, batch, layers, channels)
        self.now = like.new_zeros(batch, layers, channels)
        self.known = like.new_zeros(batch, layers, channels)
        self._views()
        self.prepare()

    def _views(self) -> None:
        """Of each layer, what a single position needs: views, so that a token makes none."""
        self.of_layer = list(zip(self.known.unbind(1), self.now.unbind(1), self.taps[-1].unbind(0), strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Without the views: pickle would make tensors of their own of them, which nothing writes to."""
        return {name: value for name, value in self.__dict__.items() if name != "of_layer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._views()

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.tail, self.now, self.known))

    def prepare(self) -> None:
        """What the tail gives to the next output, of all layers at once."""
        self.known.copy_(self.bias)
        for tap, value in zip(self.taps, self.tail, strict=False):
            self.known.addcmul_(tap, value)

    def __call__(self, layer: int, h: Tensor) -> Tensor:
        """h (B, n, 3 d_model) of one layer -> its convolution, likewise; not rounded to the dtype of h."""
        if self.called and layer in self.called:
            return self._call(self.called[layer], layer, h)
        if h.shape[1] == 1:
            known, now, tap = self.of_layer[layer]
            now.copy_(h[:, 0])
            return torch.addcmul(known, now, tap)[:, None]
        wide = self._with_tail(layer, h)
        taps = self.taps[:, layer].T.contiguous()
        return depthwise_conv1d(wide, taps, self.bias[layer], padding=0, layout="BLH")

    def _with_tail(self, layer: int, h: Tensor) -> Tensor:
        """The last inputs and h, (B, taps - 1 + n, 3 d_model), of which the last become the tail."""
        before = self.tail.shape[0]
        wide = torch.cat([self.tail[:, :, layer].transpose(0, 1), h.to(self.tail.dtype)], dim=1)
        if h.shape[1] == 1:
            self.now[:, layer] = h[:, 0]  # goes into the tail of all layers at once
        else:
            self.tail[:, :, layer] = wide[:, wide.shape[1] - before :].transpose(0, 1)
        return wide

    def _call(self, conv: nn.Module, layer: int, h: Tensor) -> Tensor:
        out: Tensor = conv(self._with_tail(layer, h).to(h.dtype).transpose(1, 2))
        return out.transpose(1, 2)

    def advance(self, count: int) -> None:
        """A single position has to go into the tail; more are there already."""
        if count == 1 and self.tail.shape[0]:
            self.tail = torch.cat([self.tail[1:], self.now[None]])
        self.prepare()


def _transforms(mixer: SequenceMixer, monarch: CausalMonarch, batch: int) -> _Transforms | WholeMonarch:
    """What a layer with a CausalMonarch takes its long convolution from."""
    if all_plain(monarch, _MONARCH):
        return _Transforms(mixer, monarch, batch)
    k, _, skip = mixer.filter_fn(with_skip=True)
    return WholeMonarch(monarch, k, skip, batch)


class _Transforms:
    """T and T^-1 of one layer's CausalMonarch, and the skip that stands outside of them."""

    def __init__(self, mixer: SequenceMixer, monarch: CausalMonarch, batch: int) -> None:
        self.before = OnlineTriangular(monarch.on_input, batch, mixer.d_model)
        self.after = OnlineTriangular(monarch.on_output, batch, mixer.d_model, inverse=True)
        skip = mixer.filter_fn.bias if plain(mixer.filter_fn, HyenaFilter) else mixer.filter_fn(with_skip=True)[2]
        self.skip: Tensor = skip

    def __call__(self, conv: OnlineConv, layer: int, z: Tensor) -> Tensor:
        """The next z (B, n, d_model) -> its long convolution and skip, likewise; `conv` is that of all layers."""
        return self.after(conv.extend(layer, self.before(z))).to(z.dtype) + self.skip * z

    @property
    def nbytes(self) -> int:
        return self.before.nbytes + self.after.nbytes

    def reorder(self, rows: Tensor) -> None:
        for transform in (self.before, self.after):
            transform.memories = [memory.index_select(2, rows) for memory in transform.memories]


def _check(mixers: Sequence[SequenceMixer], capacity: int | None) -> int:
    """The mixers' max_length."""
    for mixer in mixers:
        if mixer.bidirectional or mixer.filter_fn2 is not None:
            raise ProblemError(
                "a cache of sequence mixers", "they look ahead or have a second long convolution", "use causal ones"
            )
    longest = min(mixer.filter_fn.max_length for mixer in mixers)
    if capacity is not None and not 1 <= capacity <= longest:
        raise ProblemError(
            f"a cache for {capacity} positions",
            f"the filters were made for at most {longest}",
            "ask for fewer, or build the model with a larger max_length",
        )
    return longest

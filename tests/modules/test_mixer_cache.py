"""Sequence mixers on a sequence in parts: what they give to the whole of it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.modules import SequenceMixer, online_conv
from m2gen.modules.causal_monarch import TriangularTransform
from m2gen.modules.mixer_cache import MixerCache
from m2gen.modules.online_monarch import OnlineTriangular

WIDTH, LENGTH = 8, 240
KINDS: dict[str, dict[str, Any]] = {
    "fft": {},
    "heads": {"heads": 2},
    "one tap": {"short_kernel": 1},
    "five taps": {"short_kernel": 5},
    "monarch": {"monarch": {"deviation": 0.3}},
    "three factors": {"monarch": {"order": 3, "deviation": 0.3}, "heads": 2},
    "three transforms": {"monarch": {"deviation": 0.3, "tied": False}},
}
SPLITS = {"one by one": [1] * LENGTH, "chunks": [5, 1, 1, 70, 2, 129, 1, 31], "prompt": [200] + [1] * 40}


def mixer(**options: Any) -> SequenceMixer:
    settings = {"bidirectional": False, "residual_long_conv": False, "width": 8}
    return SequenceMixer(WIDTH, LENGTH, **(settings | options)).double().eval()


def in_parts(mixers: list[SequenceMixer], u: Tensor, sizes: list[int], mask: Tensor | None = None) -> Tensor:
    cache, out = MixerCache(mixers, u.shape[0]), []
    for size in sizes:
        part = slice(cache.position, cache.position + size)
        y = u[:, part]
        for i, m in enumerate(mixers):
            y = m(y, None if mask is None else mask[:, part], cache.layer(i))
        out.append(y)
        cache.advance(size)
    return torch.cat(out, dim=1)


def through(mixers: list[SequenceMixer], u: Tensor, mask: Tensor | None = None) -> Tensor:
    for m in mixers:
        u = m(u, mask)
    return u


@torch.no_grad()
@pytest.mark.parametrize("sizes", SPLITS.values(), ids=SPLITS)
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_parts_give_the_whole(options: dict[str, Any], sizes: list[int]) -> None:
    torch.manual_seed(0)
    mixers = [mixer(**options) for _ in range(2)]
    u = torch.randn(3, LENGTH, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(in_parts(mixers, u, sizes), through(mixers, u), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_a_mask_reaches_the_cache() -> None:
    torch.manual_seed(0)
    mixers = [mixer(), mixer()]
    u = torch.randn(2, 50, WIDTH, dtype=torch.float64)
    mask = torch.ones(2, 50, dtype=torch.bool)
    mask[1, :20] = False
    found = in_parts(mixers, u.masked_fill(~mask[..., None], torch.nan), [30, 1, 1, 18], mask)
    torch.testing.assert_close(found[1:, 20:], through(mixers, u[1:, 20:]), rtol=1e-11, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["fft", "monarch", "three factors"])
def test_size_as_documented(kind: str) -> None:
    cache = MixerCache([mixer(**KINDS[kind])] * 3, batch=2)
    want = 8 * 3 * 2 * WIDTH * (128 + 3 * 3 + 3)
    if kind == "monarch":  # 240 = 15 * 16
        want += 2 * 8 * 3 * 2 * WIDTH * (LENGTH + 15)
    if kind == "three factors":  # 240 = 6 * 5 * 8 in increasing order
        want += 2 * 8 * 3 * 2 * WIDTH * (LENGTH + 5 * 6 + 5)
    assert cache.nbytes == want
    assert cache.nbytes == sum(t.untyped_storage().nbytes() for t in tensors(cache))


def tensors(cache: MixerCache) -> list[Tensor]:
    found = [cache.long.buffer, cache.short.tail, cache.short.now, cache.short.known]
    for t in cache.transforms:
        found += [] if t is None else [*t.before.memories, *t.after.memories]
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["fft", "monarch"])
def test_rows_reordered_and_copies_apart(kind: str) -> None:
    torch.manual_seed(0)
    m = mixer(**KINDS[kind])
    u = torch.randn(3, 150, WIDTH, dtype=torch.float64)
    cache, rows = MixerCache([m], 3), torch.tensor([2, 0, 0])

    def go_on(cache: MixerCache, u: Tensor) -> Tensor:
        parts = []
        for part in u[:, cache.position :].split(1, dim=1):
            parts.append(m(part, None, cache.layer(0)))
            cache.advance(1)
        return torch.cat(parts, dim=1)

    go_on(cache, u[:, :100])
    twin = cache.clone()
    assert twin.long.bank is cache.long.bank
    cache.reorder(rows)
    swapped = torch.cat([u[rows, :100], u[:, 100:]], dim=1)
    torch.testing.assert_close(go_on(cache, swapped), m(swapped)[:, 100:], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(go_on(twin, u), m(u)[:, 100:], rtol=1e-11, atol=1e-11)


def pickled(cache: MixerCache) -> MixerCache:
    found: MixerCache = pickle.loads(pickle.dumps(cache))
    return found


def saved(cache: MixerCache) -> MixerCache:
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    found: MixerCache = torch.load(file, weights_only=False)
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("copied", [MixerCache.clone, copy.deepcopy, pickled, saved])
def test_copies_go_on_by_themselves(kind: str, copied: Callable[[MixerCache], MixerCache]) -> None:
    """Token by token, the copy and the original in turn: neither reads what the other writes."""
    torch.manual_seed(0)
    m = mixer(**KINDS[kind])
    u, other = torch.randn(2, 2, 90, WIDTH, dtype=torch.float64)
    other[:, :50] = u[:, :50]
    cache, found = MixerCache([m], 2), []
    m(u[:, :50], None, cache.layer(0))
    cache.advance(50)
    both = (cache, copied(cache))
    for i in range(50, 90):
        for one, x in zip(both, (u, other), strict=True):
            found.append(m(x[:, i : i + 1], None, one.layer(0)))
            one.advance(1)
    for at, x in enumerate((u, other)):
        torch.testing.assert_close(torch.cat(found[at::2], dim=1), m(x)[:, 50:], rtol=1e-11, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("inverse", [False, True])
def test_transforms_stay_precise_under_autocast(inverse: bool) -> None:
    torch.manual_seed(0)
    transform, x = TriangularTransform((5, 6), 0.3), torch.randn(2, 30, 4)
    found = []
    for enabled in (False, True):
        online = OnlineTriangular(transform, 2, 4, inverse=inverse)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(torch.cat([online(part) for part in x.split([10, *[1] * 20], dim=1)], dim=1))
    assert torch.equal(found[0], found[1])


@torch.no_grad()
def test_half_precision_and_autocast_follow_float32() -> None:
    torch.manual_seed(0)
    m = mixer(monarch={}).float()
    u = torch.randn(2, 40, WIDTH)
    want = m(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = in_parts([m], u, [20] + [1] * 20)
    torch.testing.assert_close(found.float(), want, rtol=0.05, atol=0.05)
    low = mixer().bfloat16()
    torch.testing.assert_close(in_parts([low], u.bfloat16(), [20] + [1] * 20), low(u.bfloat16()), rtol=0.05, atol=0.05)


def test_refusals() -> None:
    with pytest.raises(ProblemError, match="look ahead"):
        MixerCache([SequenceMixer(WIDTH, 10)], 1)
    with pytest.raises(ProblemError, match="at most 240"):
        MixerCache([mixer()], 1, capacity=241)
    with pytest.raises(ProblemError, match="CausalMonarch"):
        SequenceMixer(WIDTH, 12, monarch={})
    with pytest.raises(ProblemError, match="gradients are on"):
        MixerCache([mixer()], 1).check(1)


@torch.no_grad()
@pytest.mark.parametrize("bases", [(12,), (3, 4), (4, 3), (2, 3, 2)])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("prompt", [0, 5, 12])
def test_triangular_transforms(bases: tuple[int, ...], inverse: bool, prompt: int) -> None:
    torch.manual_seed(0)
    t = TriangularTransform(bases, 0.5).double()
    x = torch.randn(2, 12, 3, dtype=torch.float64)
    online = OnlineTriangular(t, 2, 3, inverse=inverse)
    first = [online(x[:, :prompt])] if prompt else []
    found = torch.cat([*first, *(online(part) for part in x[:, prompt:].split(1, dim=1) if part.shape[1])], dim=1)
    want = (t.solve if inverse else t)(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found, want, rtol=1e-11, atol=1e-12)


@torch.no_grad()
def test_a_rehearsal_leaves_nothing_behind_and_compiles_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Afterwards, whatever a text and its continuation ask of the long convolution was asked before."""
    asked: list[set[tuple[Any, ...]]] = [set()]
    real = online_conv.fftconv
    noting = lambda z, k, **how: (asked[-1].add((z.shape, k.shape)), real(z, k, **how))[1]  # noqa: E731
    monkeypatch.setattr(online_conv, "fftconv", noting)
    mixers = [mixer() for _ in range(2)]
    cache = MixerCache(mixers, 1)
    cache.rehearse()
    assert cache.position == 0 and not cache.long.buffer.any()
    for prompt in (1, 64, 65, 200):
        asked.append(set())
        u = torch.randn(1, LENGTH, WIDTH, dtype=torch.float64)
        in_parts(mixers, u, [prompt] + [1] * (LENGTH - prompt))
        assert asked[-1] and asked[-1] <= asked[0]
    cache.advance(1)
    with pytest.raises(ProblemError, match="Rehearse a new cache"):
        cache.rehearse()

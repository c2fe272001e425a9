"""m2gen.compat.flashfftconv against the definition by torch.fft in float64: sizes, padding, gates, dtypes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from m2gen.compat.flashfftconv import FlashDepthWiseConv1d, FlashFFTConv
from m2gen.errors import ProblemError

SIZES = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 16 * 4096, 2**17, 2**18, 2**19, 2**20, 2**21, 2**22]
LARGE = 2**18
BOUND = {torch.float16: 1.5e-3, torch.bfloat16: 8e-3, torch.float32: 1e-5, torch.float64: 1e-12}


def by_definition(u: Tensor, k: Tensor, size: int, pre: Tensor | None, post: Tensor | None) -> Tensor:
    z = u if pre is None else u * pre
    y = torch.fft.irfft(torch.fft.rfft(z, n=size) * torch.fft.rfft(k, n=size), n=size)[..., : u.shape[-1]]
    return y if post is None else y * post


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def check(
    size: int, length: int, taps: int, dtype: torch.dtype, gates: tuple[bool, bool], b: int = 2, h: int = 2
) -> None:
    """Result and every gradient."""
    draw = torch.Generator().manual_seed(size + length)
    u, pre, post = (torch.randn(b, h, length, generator=draw).to(dtype) for _ in range(3))
    k = torch.randn(h, taps, generator=draw) / taps**0.5
    k = k.double() if dtype == torch.float64 else k
    own = [t.requires_grad_() for t in (u, k, *([pre] if gates[0] else []), *([post] if gates[1] else []))]
    exact = [t.detach().double().requires_grad_() for t in own]

    def of(leaves: list[Tensor]) -> dict[str, Tensor | None]:
        rest = iter(leaves[2:])
        return {"pre": next(rest) if gates[0] else None, "post": next(rest) if gates[1] else None}

    mine, right = of(own), of(exact)
    y = FlashFFTConv(size, dtype=dtype)(own[0], own[1], mine["pre"], mine["post"])
    expected = by_definition(exact[0], exact[1], size, **right)
    assert y.shape == u.shape and y.dtype == dtype and relative(y, expected) < BOUND[dtype]
    dy = torch.randn(y.shape, generator=draw).to(dtype)
    found = torch.autograd.grad(y, own, dy)
    wanted = torch.autograd.grad(expected, exact, dy.double())
    for one, want in zip(found, wanted, strict=True):
        assert relative(one, want) < BOUND[dtype]


def cases() -> Iterator[tuple[int, bool, bool, torch.dtype]]:
    """(size, padded, gated, dtype), of large sizes one way each."""
    for i, size in enumerate(SIZES):
        ways = [(False, False), (True, True), (False, True), (True, False)]
        for j, way in enumerate(ways if size < LARGE else ways[i % 2 : i % 2 + 1]):
            yield size, *way, (torch.float16, torch.bfloat16)[(i + j // 2 + j) % 2]


@pytest.mark.parametrize(("size", "padded", "gated", "dtype"), list(cases()))
def test_every_size_of_the_original(size: int, padded: bool, gated: bool, dtype: torch.dtype) -> None:
    """Padded to twice the length, with a filter as long as the input; or not."""
    length = size // 2 if padded else size
    check(size, length, length, dtype, (gated, gated), *((1, 1) if size >= LARGE else (2, 2)))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(1, 500),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.tuples(st.booleans(), st.booleans()),
)  # fmt: skip
def test_any_size_length_and_filter(size: int, length: int, taps: int, dtype: torch.dtype, gates: Any) -> None:
    """Also where what wraps around reaches a result, and where the filter is longer than the FFT."""
    if length > size:
        with pytest.raises(ProblemError, match=f"{size}.*{length} samples.*FlashFFTConv\\({2 * length}\\)"):
            check(size, length, taps, dtype, gates)
    else:
        check(size, length, taps, dtype, gates)


def test_what_models_do_with_it() -> None:
    """One object shared by layers, under autocast, compiled, of a filter (1, H, K) and of any strides."""
    conv = FlashFFTConv(128, dtype=torch.bfloat16)
    u, k = torch.randn(2, 64, 3).transpose(1, 2), torch.randn(1, 3, 64)
    expected = by_definition(u.double(), k[0].double(), 128, None, None)
    assert relative(conv(u, k), expected) < 1e-5
    assert relative(torch.compile(conv, fullgraph=True)(u, k), expected) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(u, k)
    assert y.dtype == torch.bfloat16 and relative(y, expected) < 8e-3
    torch.func.vmap(conv, (0, None))(u.unsqueeze(1), k)


def test_a_model_whose_import_alone_is_changed() -> None:
    """As the original's documentation has it: one object for the model, a pointer to it in every layer."""
    text = """
import torch
from flashfftconv import FlashFFTConv


class Layer(torch.nn.Module):
    def __init__(self, channels, length):
        super().__init__()
        self.k = torch.nn.Parameter(torch.randn(channels, length, dtype=torch.float32) / length)
        self.D = torch.nn.Parameter(torch.randn(channels))

    def forward(self, x, gate):
        return self.flashfftconv(x, self.k, gate, gate) + x * self.D.to(x.dtype).unsqueeze(-1)


class Model(torch.nn.Module):
    def __init__(self, channels, length, layers):
        super().__init__()
        self.flashfftconv = FlashFFTConv(2 * length, dtype=torch.bfloat16)
        self.layers = torch.nn.ModuleList([Layer(channels, length) for _ in range(layers)])
        for layer in self.layers:
            layer.flashfftconv = self.flashfftconv

    def forward(self, x):
        for layer in self.layers:
            x = layer(x, torch.sigmoid(x))
        return x


torch.manual_seed(0)
model = Model(4, 256, 2)
x = torch.randn(2, 4, 256).to(torch.bfloat16)
loss = model(x).float().square().mean()
loss.backward()
"""
    there: dict[str, Any] = {}
    exec(text.replace("from flashfftconv import", "from m2gen.compat.flashfftconv import"), there)
    model, x = there["model"], there["x"]
    own = copy.deepcopy(model).double()
    own.flashfftconv.forward = lambda u, k, pre, post: by_definition(u, k, 512, pre, post)
    expected = own(x.double()).square().mean()
    assert abs(there["loss"].item() - expected.item()) < 1e-2 * expected.item()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_checkpoint_with_the_originals_constants_loads() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = FlashFFTConv(256), nn.Linear(2, 2)

    model = Model()
    assert set(model.state_dict()) == {"out.weight", "out.bias"}
    saved = model.state_dict() | {"conv.f_sqrt_N_fft": torch.zeros(16, 16, 2), "conv.twid": torch.zeros(3)}
    before = dict(saved)
    assert not any(model.load_state_dict(saved)) and saved == before
    conv = FlashFFTConv(256)
    assert not any(conv.load_state_dict({"f_sqrt_N_fft": torch.zeros(16, 16, 2)}))
    with pytest.raises(RuntimeError, match="other"):
        model.load_state_dict(saved | {"other": torch.zeros(1)})


@pytest.mark.parametrize("size", [0, -4, 2.0, True])
def test_sizes_that_are_none(size: Any) -> None:
    with pytest.raises(ProblemError, match="at least one point"):
        FlashFFTConv(size)


@pytest.mark.parametrize("is_bhl", [True, False])
@pytest.mark.parametrize("kernel", [1, 3, 4, 7])
@pytest.mark.parametrize(
    ("dtype", "of_weights"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float16, torch.float16),
     (torch.float32, torch.bfloat16)],
)  # fmt: skip
def test_short_filters(is_bhl: bool, kernel: int, dtype: torch.dtype, of_weights: torch.dtype) -> None:
    """Beside torch.nn.Conv1d in float64, with every padding, and every gradient."""
    torch.manual_seed(kernel)
    for padding in (0, (kernel - 1) // 2, kernel - 1):
        plain = nn.Conv1d(5, 5, kernel, groups=5, padding=padding, dtype=of_weights)
        mine = FlashDepthWiseConv1d(5, kernel, padding, plain.weight, plain.bias, is_bhl=is_bhl, dtype=of_weights)
        assert mine.weights.shape == ((5, kernel) if is_bhl else (kernel, 5))
        exact = copy.deepcopy(plain).double()
        x = torch.randn(2, 5, 33).to(dtype).requires_grad_()
        x64 = x.detach().double().requires_grad_()
        y = mine(x if is_bhl else x.mT)
        y = y if is_bhl else y.mT
        expected = exact(x64)
        low = torch.float16 if torch.float16 in (dtype, of_weights) else torch.bfloat16
        bound = 1e-5 if dtype == of_weights == torch.float32 else BOUND[low]
        assert y.dtype == dtype and relative(y, expected) < bound
        dy = torch.randn(y.shape).to(dtype)
        y.backward(dy)
        expected.backward(dy.double())
        of_taps = mine.weights.grad if is_bhl else mine.weights.grad.T
        for found, want in (
            (x.grad, x64.grad), (of_taps, exact.weight.grad.squeeze(1)), (mine.bias.grad, exact.bias.grad),
        ):  # fmt: skip
            assert relative(found, want) < bound


def test_short_filters_are_saved_and_loaded() -> None:
    plain = nn.Conv1d(4, 4, 3, groups=4)
    one, other = (FlashDepthWiseConv1d(4, 3, 1, torch.randn(4, 1, 3), torch.randn(4)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x = torch.randn(1, 4, 9)
    assert torch.equal(one(x), other(x))
    given = FlashDepthWiseConv1d(4, 3, 1, plain.weight, plain.bias)
    with torch.no_grad():
        given.weights.zero_()
    assert plain.weight.any()  # a copy
    torch.testing.assert_close(other(x)[..., :7], F.conv1d(x, one.weights[:, None], one.bias, 1, 1, 1, 4)[..., :7])
    with pytest.raises(ProblemError, match="weights are \\(4, 1, 3\\)"):
        FlashDepthWiseConv1d(5, 3, 1, plain.weight, plain.bias)

"""The page of plain torch in m2gen.reference.mixer is what the modules compute."""

from __future__ import annotations

import torch
from torch import Tensor

from m2gen.modules import DimensionMixer, LongConv, MonarchLinear
from m2gen.monarch import Monarch
from m2gen.ops.fftconv import fftconv
from m2gen.reference import mixer as page
from m2gen.reference import monarch as oracle

N, D = 16, 36  # squares: a Monarch of b blocks of b x b each


def pair(layer: MonarchLinear) -> tuple[Tensor, Tensor]:
    first, second = layer.factors
    return first, second


def fourier() -> tuple[page.Monarch, page.Monarch]:
    return tuple(
        tuple(m.factors) for m in (Monarch.dft(N, (4, 4), torch.complex128), Monarch.idft(N, (4, 4), torch.complex128))
    )  # type: ignore[return-value]


def dimension() -> DimensionMixer:
    mixer = DimensionMixer(D, 1, kind="plain", order=2, nblocks=6, norm="post", eps=1e-5).double()
    with torch.no_grad():
        mixer.kernel.uniform_(-2, 2)
    return mixer


def test_its_monarch_is_plprp() -> None:
    first, second = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(page.monarch(x, (first, second)), x @ oracle.order_two(first, second).T)


def test_fourier_matrices_make_the_sequence_step_a_circular_convolution() -> None:
    x = torch.randn(2, N, D, dtype=torch.float64)
    k = torch.randn(D, N, dtype=torch.float64)
    m1, m2 = fourier()
    found = page.sequence_step(x, m1, torch.fft.fft(k), m2)
    torch.testing.assert_close(found, fftconv(x, k, mode="circular", layout="BLH"), rtol=1e-10, atol=1e-10)


def test_learned_sequence_step() -> None:
    m1, m2 = (MonarchLinear(N, N, 4, bias=False).double() for _ in range(2))
    x, k1 = torch.randn(2, N, D, dtype=torch.float64), torch.randn(D, N, dtype=torch.float64)
    found = page.sequence_step(x, pair(m1), k1, pair(m2))
    torch.testing.assert_close(found, m2(k1 * m1(x.mT)).mT, rtol=1e-12, atol=1e-12)


def test_dimension_step() -> None:
    mixer = dimension()
    x = torch.randn(2, N, D, dtype=torch.float64)
    found = page.dimension_step(x, pair(mixer.m3), mixer.kernel, pair(mixer.m4))
    mixer.layernorm = None
    torch.testing.assert_close(found, mixer(x), rtol=1e-12, atol=1e-12)


def test_whole_layer() -> None:
    conv, mixer = LongConv(D, N, mode="circular", layout="BLH", width=16).double(), dimension()
    x = torch.randn(2, N, D, dtype=torch.float64)
    k = conv.filter_fn(N)[0].clone()
    k[:, 0] += conv.filter_fn.bias  # the skip is one more tap at lag zero
    m1, m2 = fourier()
    found = page.mixer_layer(x, m1, torch.fft.fft(k), m2, pair(mixer.m3), mixer.kernel, pair(mixer.m4))
    torch.testing.assert_close(found, mixer(conv(x)), rtol=1e-9, atol=1e-9)

"""Well-known matrices as Monarchs, against scipy and dense float64."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch import Monarch
from m2gen.reference import monarch as reference

EPS = torch.finfo(torch.float64).eps
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 30, 31, 32, 49, 64, 97, 100, 121, 128]


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_close(found: Tensor, expected: Tensor, length: int, eps: float = EPS) -> None:
    """Within 8 eps sqrt(length) of the largest entry."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= 8 * eps * length**0.5 * float(expected.abs().max())


# ---- Fourier --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_dft(n: int) -> None:
    m = Monarch.dft(n, dtype=torch.complex128)
    assert_close(m.to_dense(), reference.dft(n), n)
    assert_close(Monarch.idft(n, dtype=torch.complex128).to_dense(), reference.dft(n).conj() / n, n)
    prime = all(n % d for d in range(2, n))
    assert m.order == (1 if prime else 2)


@pytest.mark.parametrize("radices", [(64,), (2, 32), (32, 2), (4, 4, 4), (2, 4, 8), (8, 1, 8), (2,) * 6, (3, 5, 4, 2)])
def test_dft_of_any_order(radices: tuple[int, ...]) -> None:
    n = int(np.prod(radices))
    m = Monarch.dft(n, radices, torch.complex128)
    assert m.order == len(radices)
    assert m.n_params == n * sum(radices)
    assert_close(m.to_dense(), reference.dft(n), n)
    assert_close(m.to_dense(), reference.standard(m.factors), n)  # the standard permutations, no others
    inverse = Monarch.idft(n, radices, torch.complex128)
    assert_close(m(inverse(draw(n))).real, draw(n), n)
    assert_close(inverse.to_dense(), m.inverse().to_dense(), n)


def test_twiddles_are_computed_in_double() -> None:
    n = 4096
    m = Monarch.dft(n, (64, 64))
    exact = Monarch.dft(n, (64, 64), torch.complex128)
    assert m.dtype == torch.complex64
    for single, double in zip(m.factors, exact.factors, strict=True):
        assert float((single - double).abs().max()) <= torch.finfo(torch.float32).eps
    x = draw(n)
    assert_close(exact(x), torch.fft.fft(x), n)


def test_dft_errors() -> None:
    with pytest.raises(ProblemError, match="product 6"):
        Monarch.dft(8, (2, 3))
    with pytest.raises(ProblemError, match="no entries"):
        Monarch.dft(0)
    with pytest.raises(ProblemError, match="float32"):
        Monarch.dft(8, dtype=torch.float32)
    with pytest.raises(ProblemError, match="positive radices"):
        Monarch.idft(4, (-2, -2))


# ---- Hadamard -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 64, 256])
def test_hadamard(n: int) -> None:
    m = Monarch.hadamard(n)
    assert torch.equal(m.to_dense(), torch.tensor(scipy.linalg.hadamard(n), dtype=torch.float32))
    assert m.permutations[0].is_identity  # the form without P_0 already holds it
    assert m.order <= 2


@pytest.mark.parametrize("radices", [(16,), (2, 8), (8, 2), (4, 2, 2), (2, 2, 2, 2)])
def test_hadamard_of_any_order(radices: tuple[int, ...]) -> None:
    m = Monarch.hadamard(16, radices, torch.float64)
    assert m.order == len(radices)
    assert torch.equal(m.to_dense(), reference.hadamard(16))


@pytest.mark.parametrize(("n", "radices"), [(12, None), (0, None), (6, (2, 3)), (16, (4, 2))])
def test_hadamard_errors(n: int, radices: tuple[int, ...] | None) -> None:
    with pytest.raises(ProblemError, match="Hadamard"):
        Monarch.hadamard(n, radices)


# ---- convolutions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_circulant(n: int, dtype: torch.dtype) -> None:
    c = draw(n, dtype=dtype)
    m = Monarch.circulant(c)
    assert m.dtype == dtype
    assert m.order == 3
    assert_close(m.to_dense(), torch.from_numpy(scipy.linalg.circulant(c.numpy())), n)


@pytest.mark.parametrize("n_out", [1, 2, 7, 16, 33, 100])
@pytest.mark.parametrize("n_in", [1, 3, 8, 31, 64])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_toeplitz(n_out: int, n_in: int, dtype: torch.dtype) -> None:
    column, row = draw(n_out, dtype=dtype, seed=1), draw(n_in, dtype=dtype, seed=2)
    m = Monarch.toeplitz(column, row)
    assert m.dtype == dtype
    assert m.order == 3
    assert_close(m.to_dense(), torch.from_numpy(scipy.linalg.toeplitz(column.numpy(), row.numpy())), n_out + n_in)


@pytest.mark.parametrize("n", SIZES)
def test_convolution(n: int) -> None:
    for taps in {1, (n + 1) // 2, n, n + 3}:
        k, x = draw(taps, seed=taps), draw(n)
        m = Monarch.convolution(k, n)
        assert m.order == 3
        assert_close(m.to_dense(), reference.convolution(k, n), n)
        expected = torch.from_numpy(np.convolve(k.numpy(), x.numpy())[:n])
        assert_close(m @ x, expected, 4 * n)


@pytest.mark.parametrize("n", SIZES)
def test_afdf(n: int) -> None:
    a, d = draw(n, seed=1), draw(n, dtype=torch.complex128, seed=2)
    m = Monarch.afdf(a, d)
    assert m.order == 3
    assert m.dtype == torch.complex128
    assert_close(m.to_dense(), reference.afdf(a, d), n)


def test_a_long_circulant_is_cheaper_than_dense_by_the_root_of_its_length() -> None:
    for n, factor in ((4096, 8), (4099, 17)):  # 4099 is prime: held inside a larger circulant
        c, x = draw(n, seed=1), draw(n, seed=2)
        m = Monarch.circulant(c)
        assert m.n_params <= factor * n**1.5
        assert_close(m @ x, torch.fft.irfft(torch.fft.rfft(c) * torch.fft.rfft(x), n=n), n)


def test_blocks_absorb_padding_and_cropping() -> None:
    m = Monarch.convolution(draw(128), 128)
    (_, first_out, first_in), _, (_, last_out, last_in) = m.blocks
    assert first_out > 2 * first_in  # real to complex doubles once, the padding doubles again
    assert last_in > 2 * last_out
    assert all(p.is_full for p in m.permutations)  # nothing is left to the permutations when the blocks divide n


def test_a_circulant_inverse_is_a_circulant() -> None:
    c = draw(12, dtype=torch.complex128)
    inverse = Monarch.circulant(c).inverse()
    dense = inverse.to_dense()
    assert_close(dense, reference.circulant(dense[:, 0]), 12)
    assert_close(dense @ reference.circulant(c), torch.eye(12, dtype=torch.complex128), 12 * 12)


def test_circulants_commute() -> None:
    a, b = Monarch.circulant(draw(20, seed=1)), Monarch.circulant(draw(20, seed=2))
    assert_close((a @ b).to_dense(), (b @ a).to_dense(), 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.complex64])
def test_lower_precisions_are_cast_at_the_end(dtype: torch.dtype) -> None:
    c = draw(36).to(dtype)
    m = Monarch.circulant(c)
    wide = Monarch.circulant(c.to(torch.complex128 if dtype.is_complex else torch.float64))
    assert m.dtype == dtype
    for low, high in zip(m.factors, wide.factors, strict=True):
        assert float((low - high).abs().max()) <= torch.finfo(dtype).eps * float(high.abs().max())


def test_differentiable_in_the_filter() -> None:
    for n in (6, 7):
        k = draw(n).requires_grad_()
        assert torch.autograd.gradcheck(lambda k: Monarch.circulant(k).to_dense(), (k,))
        assert torch.autograd.gradcheck(lambda k, n=n: Monarch.convolution(k, n + 2).to_dense(), (k,))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Monarch.circulant(torch.ones(0)),
        lambda: Monarch.circulant(torch.ones(2, 2)),
        lambda: Monarch.circulant(torch.ones(3, dtype=torch.int64)),
        lambda: Monarch.toeplitz(torch.ones(3), torch.ones(0)),
        lambda: Monarch.convolution(torch.ones(3), 0),
        lambda: Monarch.afdf(torch.ones(3), torch.ones(4)),
        lambda: Monarch.diagonal(torch.ones(2, 2)),
    ],
)
def test_constructor_errors(build: object) -> None:
    with pytest.raises(ProblemError):
        build()  # type: ignore[operator]

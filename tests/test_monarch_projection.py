"""The nearest Monarch to a dense matrix: residual, optimality, what is recovered exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch import Monarch
from m2gen.reference import monarch as reference

EPS = torch.finfo(torch.float64).eps


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def monarch_of(blocks: list[tuple[int, int, int]], dtype: torch.dtype = torch.float64, seed: int = 0) -> Monarch:
    return Monarch([draw(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(blocks)])


def assert_close(found: Tensor, expected: Tensor, length: int = 1, eps: float = EPS) -> None:
    """Within 8 eps sqrt(length) of the largest entry."""
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    assert float((found - expected).abs().max()) <= 8 * eps * length**0.5 * max(scale, 1e-300)


# (n_out, n_in, nblocks, inner or None, rank of a slice)
PROJECTIONS = [
    (16, 16, None, None, 1),
    (12, 12, None, None, 1),
    (13, 13, None, None, 1),
    (1, 1, None, None, 1),
    (64, 64, 4, None, 4),
    (48, 48, (2, 4), None, 6),
    (24, 60, (6, 4), None, 1),
    (24, 60, 2, None, 6),
    (60, 24, 4, None, 2),
    (20, 30, (5, 4), 40, 2),
    (20, 30, (5, 4), 400, 20),
]


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().square().sum())


@pytest.mark.parametrize(("n_out", "n_in", "nblocks", "inner", "rank"), PROJECTIONS)
@pytest.mark.parametrize("permute_input", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_residual_is_the_distance_and_is_optimal(
    n_out: int, n_in: int, nblocks: object, inner: int | None, rank: int, permute_input: bool, dtype: torch.dtype
) -> None:
    a = draw(n_out, n_in, dtype=dtype)
    m, residual = Monarch.from_dense(a, nblocks, permute_input=permute_input, inner=inner)  # type: ignore[arg-type]
    norm = float(a.abs().square().sum())
    assert abs(residual - distance(a, m.to_dense())) <= 100 * EPS * norm
    counts = (m.blocks[0][0], m.blocks[1][0])
    assert abs(residual - reference.projection_distance(a, counts, rank, permute_input)) <= 100 * EPS * norm
    for seed in range(20):  # no neighbour in the class is nearer
        step = 10.0 ** -(1 + seed % 4)
        moved = [f + step * draw(*f.shape, dtype=dtype, seed=seed) for f in m.factors]
        assert distance(a, Monarch(moved, m.permutations).to_dense()) >= residual * (1 - 100 * EPS) - 100 * EPS * norm


@pytest.mark.parametrize(("n_out", "n_in", "nblocks", "inner", "rank"), PROJECTIONS)
@pytest.mark.parametrize("permute_input", [True, False])
def test_the_gradient_vanishes_at_the_projection(
    n_out: int, n_in: int, nblocks: object, inner: int | None, rank: int, permute_input: bool
) -> None:
    a = draw(n_out, n_in)
    m, _ = Monarch.from_dense(a, nblocks, permute_input=permute_input, inner=inner)  # type: ignore[arg-type]
    factors = [f.clone().requires_grad_() for f in m.factors]
    (Monarch(factors, m.permutations).to_dense() - a).square().sum().backward()
    for f in factors:
        assert f.grad is not None
        assert float(f.grad.abs().max()) <= 1e3 * EPS * float(a.norm())


@pytest.mark.parametrize("permute_input", [True, False])
@pytest.mark.parametrize("nblocks", [None, 1, 2, 4, 8, (2, 8), (16, 16)])
def test_projection_is_idempotent(nblocks: object, permute_input: bool) -> None:
    a = draw(16, 16)
    m, _ = Monarch.from_dense(a, nblocks, permute_input=permute_input)  # type: ignore[arg-type]
    again, residual = Monarch.from_dense(m.to_dense(), nblocks, permute_input=permute_input)  # type: ignore[arg-type]
    assert residual <= (100 * EPS) ** 2 * float(a.square().sum())
    assert_close(again.to_dense(), m.to_dense(), 16)


@pytest.mark.parametrize("nblocks", [(4, 4), (8, 2), (3, 12), (12, 12)])
@pytest.mark.parametrize("permute_input", [True, False])
def test_slices_of_unequal_rank(nblocks: tuple[int, int], permute_input: bool) -> None:
    """block_in of the second factor is no multiple of the first one's nblocks: ranks differ by one, or are zero."""
    a = draw(24, 24)
    m, residual = Monarch.from_dense(a, nblocks, permute_input=permute_input)
    assert all(block_out == block_in for _, block_out, block_in in m.blocks)
    assert residual == pytest.approx(distance(a, m.to_dense()), rel=1e-13)
    assert Monarch.from_dense(m.to_dense(), nblocks, permute_input=permute_input)[1] < 1e-25
    other = Monarch([draw(*f.shape, seed=7) for f in m.factors], m.permutations)
    found, residual = Monarch.from_dense(other.to_dense(), nblocks, permute_input=permute_input)
    assert residual < 1e-24
    assert_close(found.to_dense(), other.to_dense(), 24)


@pytest.mark.parametrize("blocks", [[(8, 8, 8)] * 2, [(3, 5, 5), (5, 3, 3)], [(4, 16, 16)] * 2, [(8, 4, 4), (4, 8, 8)]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_random_monarch_is_recovered_in_float32(blocks: list, dtype: torch.dtype) -> None:
    m = monarch_of(blocks, dtype)
    found, residual = Monarch.from_dense(m.to_dense(), (blocks[0][0], blocks[1][0]))
    assert found.dtype == dtype
    assert found.blocks == m.blocks
    assert float((found.to_dense() - m.to_dense()).abs().max()) < 1e-4
    assert residual < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_projected_in_single(dtype: torch.dtype) -> None:
    a = draw(16, 16).to(dtype)
    m, residual = Monarch.from_dense(a)
    exact, expected = Monarch.from_dense(a.double())
    assert m.dtype == dtype
    assert abs(residual - expected) < 1e-4 * expected
    assert_close(m.to_dense().double(), exact.to_dense(), 8, torch.finfo(dtype).eps)


FOURIER = (16, 64, 15, 36, 196, 27, 48, 42, 85, 168, 512)


@pytest.mark.parametrize("n", FOURIER)
def test_the_dft_is_in_the_class_with_the_input_permuted(n: int) -> None:
    f = torch.fft.fft(torch.eye(n, dtype=torch.complex128))
    m, residual = Monarch.from_dense(f)
    assert residual < (100 * EPS * n) ** 2
    assert_close(m.to_dense(), f, n)
    columns = m.permutations[0].index
    bare, residual = Monarch.from_dense(f[:, columns], permute_input=False)
    assert residual < (100 * EPS * n) ** 2
    assert_close(bare.to_dense(), f[:, columns], n)


def test_known_distances_at_sixteen() -> None:
    f = torch.fft.fft(torch.eye(16, dtype=torch.complex128))
    assert Monarch.from_dense(f, permute_input=False)[1] == pytest.approx(192, abs=1e-10)  # of 256
    h = reference.hadamard(16)
    assert Monarch.from_dense(h, permute_input=False)[1] < 1e-25
    assert Monarch.from_dense(h)[1] == pytest.approx(192, abs=1e-10)
    c = reference.circulant(draw(16))
    norm = float(c.square().sum())
    assert Monarch.from_dense(c)[1] > 0.2 * norm
    assert Monarch.from_dense(c, permute_input=False)[1] > 0.2 * norm


def test_order_one_keeps_the_diagonal_blocks() -> None:
    a = draw(6, 9)
    m, residual = Monarch.from_dense(a, 3, order=1)
    kept = torch.block_diag(*(a[2 * i : 2 * i + 2, 3 * i : 3 * i + 3] for i in range(3)))
    assert torch.equal(m.to_dense(), kept)
    assert residual == pytest.approx(distance(a, kept), rel=1e-14)
    assert Monarch.from_dense(a, order=1)[0].order == 1


@pytest.mark.parametrize(
    ("matrix", "options", "found"),
    [
        (torch.ones(4, 4), {"order": 3}, "only orders 1 and 2"),
        (torch.ones(4, 4), {"nblocks": 3}, "nblocks=3"),
        (torch.ones(4, 4), {"nblocks": (2, 0)}, "nblocks"),
        (torch.ones(4, 4), {"nblocks": 2, "inner": 3}, "inner=3"),
        (torch.ones(4, 6), {"nblocks": (2, 2), "order": 1}, "nblocks"),
        (torch.ones(4), {}, "n_out, n_in"),
        (torch.ones(4, 4, dtype=torch.int64), {}, "int64"),
        (torch.full((4, 4), torch.nan), {}, "NaN"),
    ],
)
def test_projection_errors(matrix: Tensor, options: dict, found: str) -> None:
    with pytest.raises(ProblemError, match=found):
        Monarch.from_dense(matrix, **options)

"""Monarch: the class of matrices and its algebra."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch import Monarch, Permutation
from m2gen.monarch.permutation import resize, stride_permutation
from m2gen.reference import monarch as reference

EPS = torch.finfo(torch.float64).eps

# (nblocks, block_out, block_in) in order of application; rectangular and unequal ones among them
STANDARD = [
    [(3, 4, 5)],
    [(4, 4, 4), (4, 4, 4)],
    [(3, 5, 5), (5, 3, 3)],
    [(2, 6, 3), (4, 5, 3)],
    [(6, 2, 4), (3, 7, 4)],
    [(9, 3, 3)] * 3,
    [(15, 2, 2), (10, 3, 3), (6, 5, 5)],
    [(6, 4, 2), (8, 5, 3), (20, 3, 2)],
    [(8, 2, 2)] * 4,
    [(1, 7, 7), (7, 1, 1)],
]


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def monarch_of(blocks: list[tuple[int, int, int]], dtype: torch.dtype = torch.float64, seed: int = 0) -> Monarch:
    return Monarch([draw(*shape, dtype=dtype, seed=seed + i) for i, shape in enumerate(blocks)])


def assert_close(found: Tensor, expected: Tensor, length: int = 1, eps: float = EPS) -> None:
    """Within 8 eps sqrt(length) of the largest entry."""
    assert found.shape == expected.shape
    scale = float(expected.abs().max()) if expected.numel() else 0.0
    assert float((found - expected).abs().max()) <= 8 * eps * length**0.5 * max(scale, 1e-300)


# ---- the standard permutations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", STANDARD)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_dense_is_the_product_of_its_permutation_and_block_matrices(blocks: list, dtype: torch.dtype) -> None:
    m = monarch_of(blocks, dtype)
    assert_close(m.to_dense(), reference.standard(m.factors), sum(b[2] for b in blocks))


@pytest.mark.parametrize("b", [1, 2, 3, 5])
def test_order_two_entry_by_entry(b: int) -> None:
    m = monarch_of([(b, b, b)] * 2)
    assert_close(m.to_dense(), reference.order_two(*m.factors))


@pytest.mark.parametrize("blocks", STANDARD)
def test_agrees_with_the_op(blocks: list) -> None:
    from m2gen.ops.monarch_matmul import monarch_matmul

    m = monarch_of(blocks)
    x = draw(2, 3, m.shape[1])
    assert_close(m(x), monarch_matmul(x, list(m.factors)), sum(b[2] for b in blocks))


def test_between_stages_the_later_block_in_must_divide_nblocks() -> None:
    with pytest.raises(ProblemError, match=r"its 4 blocks do not split into groups of 3"):
        monarch_of([(6, 2, 1), (4, 3, 3), (4, 1, 3)])


# ---- permutations ---------------------------------------------------------------------------------------------------


def test_permutation_matrix_transpose_and_product() -> None:
    p = Permutation(torch.tensor([2, -1, 0, 1]), 5)
    q = stride_permutation(2, 2)
    dense = reference.permutation_matrix(p.index.tolist(), 5)
    x = draw(3, 5)
    assert torch.equal(p(x), x @ dense.T)
    assert torch.equal(p.T(draw(4)), dense.T @ draw(4))
    assert torch.equal((q @ p)(x), q(p(x)))
    assert not p.is_full
    assert (q @ q.T).is_identity


def test_resize_pads_and_crops() -> None:
    x = draw(3)
    assert torch.equal(resize(3, 5)(x), torch.cat((x, torch.zeros(2, dtype=x.dtype))))
    assert torch.equal(resize(3, 2)(x), x[:2])
    assert torch.equal(resize(3, 5).T(resize(3, 5)(x)), x)


def test_padding_keeps_infinity_out() -> None:
    assert torch.equal(resize(1, 3)(torch.tensor([torch.inf])), torch.tensor([torch.inf, 0.0, 0.0]))


def test_general_permutations_are_used_as_given() -> None:
    indices = [torch.randperm(12, generator=torch.Generator().manual_seed(s)) for s in range(3)]
    m = Monarch([draw(3, 4, 4), draw(4, 3, 3)], indices)
    p0, p1, p2 = (reference.permutation_matrix(i.tolist(), 12) for i in indices)
    b1, b2 = (reference.block_diagonal(f) for f in m.factors)
    assert_close(m.to_dense(), p2 @ b2 @ p1 @ b1 @ p0, 7)


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([0, 0, 1, 2]),
        torch.tensor([0.0, 1, 2, 3]),
        torch.tensor([[0, 1, 2, 3]]),
        torch.tensor([1, 2, 3, 4]),
    ],
)
def test_what_is_no_permutation(index: Tensor) -> None:
    with pytest.raises(ProblemError, match="permutation"):
        Monarch([draw(2, 2, 2)], [index, torch.arange(4)])


# ---- the algebra ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", STANDARD)
def test_shape_counts_and_repr(blocks: list) -> None:
    m = monarch_of(blocks)
    assert m.shape == (blocks[-1][0] * blocks[-1][1], blocks[0][0] * blocks[0][2])
    assert m.order == len(blocks)
    assert m.n_params == sum(f.numel() for f in m.factors)
    assert m.flops == 2 * m.n_params
    assert m.to(dtype=torch.complex128).flops == 8 * m.n_params
    for piece in (f"{m.shape[0]}x{m.shape[1]}", f"order {m.order}", "float64", "cpu", str(m.n_params)):
        assert piece in repr(m)


@pytest.mark.parametrize(("n", "b", "order"), [(4096, 64, 2), (4096, 16, 3), (4096, 8, 4), (4096, 2, 12)])
def test_flops_are_two_p_n_to_the_one_plus_one_over_p(n: int, b: int, order: int) -> None:
    assert monarch_of([(n // b, b, b)] * order, torch.float32).flops == 2 * order * n * b


def test_applying_to_the_last_axis_and_to_the_first() -> None:
    m = monarch_of([(2, 6, 3), (4, 5, 3)])
    dense, x = m.to_dense(), draw(2, 3, 6)
    assert_close(m(x), x @ dense.T, 6)
    assert m(x[:0]).shape == (0, 3, 20)
    assert_close(m @ x[0, 0], dense @ x[0, 0], 6)
    assert_close(m @ x[0].T, dense @ x[0].T, 6)


def test_dtypes_are_promoted() -> None:
    m = monarch_of([(2, 2, 2)] * 2, torch.float32)
    assert m(draw(4)).dtype == torch.float64
    assert m(draw(4, dtype=torch.complex64)).dtype == torch.complex64
    assert (m @ m.to(dtype=torch.complex64)).dtype == torch.complex64


@pytest.mark.parametrize("shape", [(5,), (2, 5), ()])
def test_wrong_length_names_the_right_one(shape: tuple[int, ...]) -> None:
    m = monarch_of([(2, 2, 2)] * 2)
    with pytest.raises(ProblemError, match="4"):
        m(torch.ones(shape))
    with pytest.raises(ProblemError, match="4"):
        m @ torch.ones(shape)


@pytest.mark.parametrize("blocks", STANDARD)
def test_transpose_conjugate_and_adjoint(blocks: list) -> None:
    m = monarch_of(blocks, torch.complex128)
    dense, length = m.to_dense(), sum(b[2] for b in blocks)
    assert_close(m.T.to_dense(), dense.T, length)
    assert_close(m.conj().to_dense(), dense.conj(), length)
    assert_close(m.H.to_dense(), dense.mH, length)


@pytest.mark.parametrize("blocks", STANDARD)
def test_real_part(blocks: list) -> None:
    m = monarch_of(blocks, torch.complex128)
    real = m.real_part()
    assert real.dtype == torch.float64
    assert real.order == m.order
    assert_close(real.to_dense(), m.to_dense().real, 2 * sum(b[2] for b in blocks))


def test_inverse() -> None:
    for blocks in [[(3, 4, 4)], [(4, 4, 4)] * 2, [(3, 5, 5), (5, 3, 3)], [(9, 3, 3)] * 3]:
        shifted = [draw(*s) / s[1] ** 0.5 + 4 * torch.eye(s[1], dtype=torch.float64) for s in blocks]
        m = Monarch(shifted)
        inverse = m.inverse()
        assert inverse.order == m.order
        assert_close((inverse @ m).to_dense(), torch.eye(m.shape[0], dtype=torch.float64), m.shape[0])


def test_inverse_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ProblemError, match="not square"):
        monarch_of([(2, 6, 3), (4, 5, 3)]).inverse()
    singular = draw(3, 4, 4)
    singular[2, 0] = singular[2, 1] + singular[2, 3]
    with pytest.raises(ProblemError, match="block 2 of factor 0 is singular"):
        Monarch([singular]).inverse()
    with pytest.raises(ProblemError, match="singular"):
        Monarch([torch.zeros(1, 2, 2)]).inverse()
    with pytest.raises(ProblemError, match="pads or crops"):
        Monarch([draw(2, 2, 2)], [resize(3, 4), resize(4, 3)]).inverse()


def test_products_merge_where_the_middle_is_block_diagonal_again() -> None:
    a, b = monarch_of([(4, 4, 4)] * 2, seed=5), monarch_of([(4, 4, 4)] * 2, seed=9)
    c = monarch_of([(3, 5, 5), (5, 3, 3)])
    for left, right in [(a.T, b), (a, b.T), (a, b), (c.T, c), (c, c.T)]:
        assert (left @ right).order == 3  # the permutations that meet cancel: the classes M*M, MM* and, equal b, MM
        assert_close((left @ right).to_dense(), left.to_dense() @ right.to_dense(), 64)
    assert (Monarch([draw(4, 3, 5)]) @ Monarch([draw(4, 5, 2)])).blocks == [(4, 3, 2)]
    assert (c @ c).order == 4  # with unequal blocks P_2 and P_0 do not cancel
    assert_close((c @ c).to_dense(), c.to_dense() @ c.to_dense(), 64)


def test_a_standard_product_of_equal_blocks_keeps_its_order_only_where_it_must() -> None:
    a = Monarch([draw(4, 4, 4)])
    shuffled_blocks = Monarch([draw(4, 4, 4)], [torch.arange(16).view(4, 4)[[2, 0, 3, 1]].flatten(), torch.arange(16)])
    within_blocks = Monarch([draw(4, 4, 4)], [torch.arange(16).view(4, 4).flip(1).flatten(), torch.arange(16)])
    across = Monarch([draw(4, 4, 4)], [stride_permutation(4, 4), torch.arange(16)])
    for left, order in [(shuffled_blocks, 1), (within_blocks, 1), (across, 2)]:
        assert (left @ a).order == order
        assert_close((left @ a).to_dense(), left.to_dense() @ a.to_dense(), 16)


def test_a_diagonal_is_absorbed_on_either_side() -> None:
    m = monarch_of([(2, 6, 3), (4, 5, 3)])
    left, right = Monarch.diagonal(draw(20)), Monarch.diagonal(draw(6))
    product = left @ m @ right
    assert product.blocks == m.blocks
    assert_close(product.to_dense(), draw(20)[:, None] * m.to_dense() * draw(6), 6)


def test_products_of_padded_monarchs() -> None:
    a = Monarch([draw(2, 3, 2)], [resize(3, 4), resize(6, 5)])
    b = Monarch([draw(4, 2, 2)], [torch.randperm(8), resize(8, 3)])
    assert_close((a @ b).to_dense(), a.to_dense() @ b.to_dense(), 8)
    d = Monarch([draw(3, 1, 1)], [resize(2, 3), resize(3, 4)])
    e = Monarch([draw(2, 2, 2)], [torch.arange(4), resize(4, 2)])
    assert_close((d @ e).to_dense(), d.to_dense() @ e.to_dense(), 8)
    assert_close((e @ d).to_dense(), e.to_dense() @ d.to_dense(), 8)


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        ([], "no factors"),
        ([torch.ones(2, 2)], "is no factor"),
        ([torch.ones(2, 0, 2)], "is no factor"),
        ([torch.ones(2, 2, 2, dtype=torch.int64)], "dtypes"),
        ([torch.ones(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.float64)], "dtypes"),
        ([torch.ones(2, 3, 2), torch.ones(2, 2, 2)], "factor 0 gives 6 values, the next one takes 4"),
    ],
)
def test_what_is_no_monarch(factors: list[Tensor], found: str) -> None:
    with pytest.raises(ProblemError, match=found):
        Monarch(factors)


def test_sizes_of_permutations_and_products_are_checked() -> None:
    with pytest.raises(ProblemError, match="3 permutations"):
        Monarch([draw(2, 2, 2)], [torch.arange(4)] * 3)
    with pytest.raises(ProblemError, match="sizes 6 and 4"):
        Monarch([draw(2, 2, 2)], [torch.arange(6), torch.arange(4)])
    with pytest.raises(ProblemError, match="A's columns"):
        monarch_of([(2, 2, 2)]) @ monarch_of([(2, 3, 3)])


def test_gradients_reach_factors_and_input() -> None:
    factors = [draw(2, 6, 3).requires_grad_(), draw(4, 5, 3).requires_grad_()]
    x = draw(2, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda r, left, x: Monarch([r, left])(x), (*factors, x))
    assert torch.autograd.gradcheck(lambda r, left: (Monarch([r, left]).T @ Monarch([r, left])).to_dense(), factors)


@pytest.mark.parametrize("make", [lambda: monarch_of([(2, 6, 3), (4, 5, 3)]), lambda: Monarch.convolution(draw(7), 13)])
def test_applying_compiles_into_one_graph(make: Callable[[], Monarch]) -> None:
    m = make()
    x = draw(2, m.shape[1])
    compiled = torch.compile(lambda x: m(x), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), m(x))

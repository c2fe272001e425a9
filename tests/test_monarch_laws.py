"""Laws of the Monarch algebra on drawn orders, blocks (unequal and rectangular), permutations and dtypes."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2gen.monarch import Monarch

EPS = torch.finfo(torch.float64).eps
DTYPES = st.sampled_from([torch.float64, torch.complex128])
SEEDS = st.integers(0, 2**31)
laws = settings(max_examples=200, deadline=None)

Blocks = list[tuple[int, int, int]]


# ---- what is drawn --------------------------------------------------------------------------------------------------


@st.composite
def chains(draw: st.DrawFn, n_in: int | None = None, square: bool = False) -> Blocks:
    """Blocks that follow on one another, with permutations of their own choice between them."""
    size = draw(st.integers(1, 24)) if n_in is None else n_in
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        nblocks = draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
        block_in = size // nblocks
        block_out = block_in if square else draw(st.integers(1, max(1, 24 // nblocks)))
        blocks.append((nblocks, block_out, block_in))
        size = nblocks * block_out
    return blocks


@st.composite
def standard_chains(draw: st.DrawFn) -> Blocks:
    """Blocks that suit the standard permutations: built from the digits that each stage reads and writes."""
    order = draw(st.integers(1, 3))
    ins = [draw(st.integers(1, 4)) for _ in range(order)]
    outs = [draw(st.integers(1, 4)) for _ in range(order)]
    blocks = [(math.prod(outs[:i]) * math.prod(ins[i + 1 :]), outs[i], ins[i]) for i in range(order)]
    return blocks if order > 1 else [(draw(st.integers(1, 5)), outs[0], ins[0])]


def build(blocks: Blocks, seed: int, dtype: torch.dtype, standard: bool = False, shift: float = 0.0) -> Monarch:
    """Noise, and `shift` on the diagonals of square blocks."""
    g = torch.Generator().manual_seed(seed)
    factors = [torch.randn(*b, dtype=dtype, generator=g) for b in blocks]
    if shift:
        factors = [f / f.shape[2] ** 0.5 + shift * torch.eye(f.shape[2], dtype=dtype) for f in factors]
    if standard:
        return Monarch(factors)
    sizes = [blocks[0][0] * blocks[0][2], *(nblocks * block_out for nblocks, block_out, _ in blocks)]
    # one in three is the identity, so that merging happens
    keep = torch.randint(3, (len(sizes),), generator=g).tolist()
    indices = [torch.randperm(n, generator=g) if k else torch.arange(n) for n, k in zip(sizes, keep, strict=True)]
    return Monarch(factors, indices)


def vector(n: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(n, dtype=dtype, generator=torch.Generator().manual_seed(seed + 1))


def absolute(m: Monarch) -> Monarch:
    return Monarch([f.abs() for f in m.factors], m.permutations)


def depth(*monarchs: Monarch) -> int:
    """How many terms are summed one after the other on the way through."""
    return sum(block_in for m in monarchs for _, _, block_in in m.blocks)


def assert_within(found: Tensor, expected: Tensor, magnitude: Tensor, length: int) -> None:
    """|found - expected| <= 4 eps sqrt(length) magnitude, entry by entry; magnitude is the sum of absolute terms."""
    assert found.shape == expected.shape
    slack = (found - expected).abs() - 4 * EPS * length**0.5 * magnitude
    assert float(slack.max()) <= 0


# ---- the laws -------------------------------------------------------------------------------------------------------


@laws
@given(st.data(), SEEDS, DTYPES)
def test_a_product_acts_like_one_after_the_other(data: st.DataObject, seed: int, dtype: torch.dtype) -> None:
    b = build(data.draw(chains()), seed, dtype)
    a = build(data.draw(chains(n_in=b.shape[0])), seed + 1, dtype)
    x = vector(b.shape[1], seed, dtype)
    product = a @ b
    assert product.order in (a.order + b.order, a.order + b.order - 1)
    assert_within(product @ x, a @ (b @ x), absolute(a) @ (absolute(b) @ x.abs()), depth(a, b))


@laws
@given(st.data(), SEEDS, DTYPES)
def test_the_dense_product_is_the_product_of_the_dense(data: st.DataObject, seed: int, dtype: torch.dtype) -> None:
    b = build(data.draw(chains()), seed, dtype)
    a = build(data.draw(chains(n_in=b.shape[0])), seed + 1, dtype)
    magnitude = absolute(a).to_dense() @ absolute(b).to_dense()
    assert_within((a @ b).to_dense(), a.to_dense() @ b.to_dense(), magnitude, depth(a, b) + b.shape[0])


@laws
@given(chains() | standard_chains(), SEEDS, DTYPES)
def test_the_transpose_is_the_adjoint(blocks: Blocks, seed: int, dtype: torch.dtype) -> None:
    m = build(blocks, seed, dtype)
    x, y = vector(m.shape[1], seed, dtype), vector(m.shape[0], seed + 1, dtype)
    magnitude = torch.dot(absolute(m) @ x.abs(), y.abs())
    assert_within(torch.dot(m @ x, y), torch.dot(x, m.T @ y), magnitude, depth(m) + sum(m.shape))
    assert_within(torch.vdot(y, m @ x), torch.vdot(m.H @ y, x), magnitude, depth(m) + sum(m.shape))
    assert torch.equal(m.T.T.to_dense(), m.to_dense())


@laws
@given(chains(square=True), SEEDS, DTYPES)
def test_the_inverse_undoes(blocks: Blocks, seed: int, dtype: torch.dtype) -> None:
    m = build(blocks, seed, dtype, shift=4.0)
    inverse, x = m.inverse(), vector(m.shape[1], seed, dtype)
    magnitude = absolute(inverse) @ (absolute(m) @ x.abs())
    # each block's inversion has an error of its own, the block's condition times eps: below 4 with this shift
    length = 4 * depth(m, inverse)
    assert_within(inverse @ (m @ x), x, magnitude, length)
    assert_within(m @ (inverse @ x), x, absolute(m) @ (absolute(inverse) @ x.abs()), length)


@laws
@given(chains() | standard_chains(), SEEDS, st.integers(1, 3))
def test_it_is_linear(blocks: Blocks, seed: int, columns: int) -> None:
    m = build(blocks, seed, torch.float64)
    x = vector(m.shape[1] * columns, seed, torch.float64).reshape(m.shape[1], columns)
    weights = vector(columns, seed + 1, torch.float64)
    magnitude = absolute(m) @ (x.abs() @ weights.abs())
    assert_within(m @ (x @ weights), (m @ x) @ weights, magnitude, depth(m) + columns)


@laws
@given(standard_chains(), SEEDS, DTYPES)
def test_standard_blocks_act_as_their_dense_matrix(blocks: Blocks, seed: int, dtype: torch.dtype) -> None:
    from m2gen.reference.monarch import standard

    m = build(blocks, seed, dtype, standard=True)
    x = vector(m.shape[1], seed, dtype)
    magnitude = absolute(m) @ x.abs()
    assert_within(m @ x, standard(m.factors) @ x, magnitude, depth(m) + m.shape[1])


@laws
@given(chains() | standard_chains(), SEEDS)
def test_the_real_part_acts_as_the_real_part(blocks: Blocks, seed: int) -> None:
    m = build(blocks, seed, torch.complex128)
    x = vector(m.shape[1], seed, torch.float64)
    assert_within(m.real_part() @ x, (m @ x).real, absolute(m) @ x.abs(), 2 * depth(m))


@laws
@given(st.data(), SEEDS, DTYPES, st.booleans())
def test_projection_is_idempotent_and_its_residual_the_distance(
    data: st.DataObject, seed: int, dtype: torch.dtype, permute_input: bool
) -> None:
    (nb1, in_1), (nb2, out_2) = (data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5))) for _ in range(2))
    inner = math.lcm(nb1, nb2) * data.draw(st.integers(1, 4))
    a = vector(nb2 * out_2 * nb1 * in_1, seed, dtype).reshape(nb2 * out_2, nb1 * in_1)
    options = {"nblocks": (nb1, nb2), "permute_input": permute_input, "inner": inner}
    m, residual = Monarch.from_dense(a, **options)
    dense, norm = m.to_dense(), float(a.norm())
    # an SVD is an iteration of orthogonal transforms from both sides: four times the constant of one product
    error = 16 * EPS * (sum(a.shape) + inner) ** 0.5 * norm
    assert abs(residual - float((a - dense).abs().square().sum())) <= error * norm
    again, second = Monarch.from_dense(dense, **options)
    assert second <= error**2
    assert float((again.to_dense() - dense).norm()) <= error


@laws
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), SEEDS)
def test_the_dft_of_any_radices_is_the_fft(radices: list[int], seed: int) -> None:
    n = math.prod(radices)
    x = vector(n, seed, torch.complex128)
    m, inverse = Monarch.dft(n, radices, torch.complex128), Monarch.idft(n, radices, torch.complex128)
    magnitude = x.abs().sum().expand(n)
    assert m.order == len(radices)
    assert_within(m @ x, torch.fft.fft(x), magnitude, sum(radices))
    assert_within(inverse @ x, torch.fft.ifft(x), magnitude / n, sum(radices))


@laws
@given(st.integers(1, 60), st.integers(1, 60), SEEDS, DTYPES)
def test_toeplitz_is_a_convolution(n_out: int, n_in: int, seed: int, dtype: torch.dtype) -> None:
    taps, x = vector(n_out + n_in - 1, seed, dtype), vector(n_in, seed + 1, dtype)
    m = Monarch.toeplitz(taps[n_in - 1 :], taps[:n_in].flip(0))
    windows = taps.unfold(0, n_in, 1)  # row i holds the taps i .. i + n_in - 1
    # the transforms mix everything: the bound is on the norms
    magnitude = (taps.norm() * x.norm()).expand(n_out)
    assert_within(m @ x, windows @ x.flip(0), magnitude, n_out + n_in)

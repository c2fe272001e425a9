"""The factors nearest to a dense matrix, in closed form (arXiv 2204.00595, section 3 and appendix)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch.construct import divisor_pair
from m2gen.ops.values import traced


def from_dense(
    matrix: Tensor, nblocks: int | tuple[int, int] | None, order: int, permute_input: bool, inner: int | None
) -> tuple[list[Tensor], float]:
    """The factors and the squared distance, as `Monarch.from_dense` gives them."""
    asked = f"the order-{order} Monarch nearest to a matrix of shape {tuple(matrix.shape)}"
    _check_matrix(asked, matrix)
    work = matrix.detach()
    if work.dtype in (torch.float16, torch.bfloat16):
        work = work.float()  # there is no SVD in half precision
    if order == 1:
        factors, residual = _diagonal_blocks(asked, work, nblocks)
    elif order == 2:
        factors, residual = _order_two(asked, work, nblocks, permute_input, inner)
    else:
        raise ProblemError(
            asked,
            "only orders 1 and 2 have a closed form",
            "use order=2, or start from a Monarch of that order and fit its factors by gradient descent",
        )
    return [f.to(matrix.dtype) for f in factors], residual


def _check_matrix(asked: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.numel() == 0 or not (matrix.is_floating_point() or matrix.is_complex()):
        raise ProblemError(asked, f"dtype {matrix.dtype}", "give a non-empty (n_out, n_in), floating or complex")
    if traced():
        found = "it is being traced, and the error of a projection is a number"
        raise ProblemError(asked, found, "project before, and trace what follows")
    if not bool(matrix.isfinite().all()):
        raise ProblemError(asked, "it holds NaN or infinity", "project finite values only")


def _diagonal_blocks(asked: str, matrix: Tensor, nblocks: int | tuple[int, int] | None) -> tuple[list[Tensor], float]:
    n_out, n_in = matrix.shape
    count = divisor_pair(math.gcd(n_out, n_in))[1] if nblocks is None else nblocks
    if not isinstance(count, int) or count < 1 or n_out % count or n_in % count:
        raise ProblemError(asked, f"nblocks={nblocks}", f"give one number that divides {n_out} and {n_in}")
    grid = matrix.reshape(count, n_out // count, count, n_in // count)
    blocks = torch.arange(count, device=matrix.device)
    outside = grid.clone()
    outside[blocks, :, blocks] = 0
    return [grid[blocks, :, blocks]], _sum_of_squares(outside)


def _order_two(
    asked: str, matrix: Tensor, nblocks: int | tuple[int, int] | None, permute_input: bool, inner: int | None
) -> tuple[list[Tensor], float]:
    n_out, n_in = matrix.shape
    nb1, nb2 = _block_counts(asked, n_out, n_in, nblocks)
    inner = _inner_size(asked, n_out, n_in, nb1, nb2, inner)
    u, s, vh = torch.linalg.svd(_slices(matrix, nb1, nb2, permute_input), full_matrices=False)
    factors, kept = _assemble(u, s, vh, inner)
    return factors, _sum_of_squares(s.masked_fill(kept, 0))


def _block_counts(asked: str, n_out: int, n_in: int, nblocks: int | tuple[int, int] | None) -> tuple[int, int]:
    if nblocks is None:
        return divisor_pair(n_in) if n_in == n_out else (divisor_pair(n_in)[1], divisor_pair(n_out)[1])
    nb1, nb2 = (nblocks, nblocks) if isinstance(nblocks, int) else nblocks
    if min(nb1, nb2) < 1 or n_in % nb1 or n_out % nb2:
        do = f"give nblocks = (a divisor of n_in = {n_in}, a divisor of n_out = {n_out})"
        raise ProblemError(asked, f"nblocks={nblocks}", do)
    return nb1, nb2


def _inner_size(asked: str, n_out: int, n_in: int, nb1: int, nb2: int, inner: int | None) -> int:
    if inner is None:
        if n_out == n_in and n_in % nb2 == 0:
            return n_in
        return nb1 * nb2 * -(-min(n_out, n_in) // (nb1 * nb2))
    if inner < 1 or inner % nb1 or inner % nb2:
        raise ProblemError(asked, f"inner={inner}", f"give a multiple of {math.lcm(nb1, nb2)}")
    return inner


def _slices(matrix: Tensor, nb1: int, nb2: int, permute_input: bool) -> Tensor:
    """What block b1 of the first factor sends to block b2 of the second: (nb2, nb1, block_out of 2, block_in of 1).

    The output index is (block_out, nb2); the input index is (block_in, nb1), or (nb1, block_in) without P_0.
    """
    n_out, n_in = matrix.shape
    if permute_input:
        return matrix.reshape(n_out // nb2, nb2, n_in // nb1, nb1).permute(1, 3, 0, 2)
    return matrix.reshape(n_out // nb2, nb2, nb1, n_in // nb1).permute(1, 2, 0, 3)


def _assemble(u: Tensor, s: Tensor, vh: Tensor, inner: int) -> tuple[list[Tensor], Tensor]:
    """Both factors, and which singular values (nb2, nb1, rank) they hold.

    Value m between the factors comes from block m % nb1 of the first and goes to block m // block_in of the second.
    One slice therefore owns every nb1-th value of a block: the t-th of them carries its t-th singular value. So the
    rank is block_in / nb1 where that divides, and differs by one between slices where it does not.
    """
    nb2, nb1, block_out, rank = u.shape
    block_in = inner // nb2
    m = torch.arange(inner, device=u.device)
    b1, b2, t = m % nb1, m // block_in, m % block_in // nb1
    used = t < rank  # a slice may own more values than it has singular values: those stay zero
    b1_used, b2_used, t_used, m_used = b1[used], b2[used], t[used], m[used]
    kept = torch.zeros_like(s, dtype=torch.bool)
    kept[b2_used, b1_used, t_used] = True
    root = s[b2_used, b1_used, t_used].sqrt()[:, None]
    first = vh.new_zeros(nb1, inner // nb1, vh.shape[-1])
    second = u.new_zeros(nb2, block_in, block_out)
    first[b1_used, m_used // nb1] = root * vh[b2_used, b1_used, t_used]
    second[b2_used, m_used % block_in] = root * u[b2_used, b1_used, :, t_used]
    return [first, second.mT.contiguous()], kept


def _sum_of_squares(x: Tensor) -> float:
    wide = x.to(torch.complex128 if x.is_complex() else torch.float64)
    return float(wide.abs().square().sum())

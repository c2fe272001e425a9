"""Dense oracles for Monarch matrices: one obvious line per formula, float64, slow on purpose."""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def block_diagonal(factor: Tensor) -> Tensor:
    """(nblocks, block_out, block_in) as the matrix it stands for."""
    nblocks, block_out, block_in = factor.shape
    matrix = factor.new_zeros(nblocks * block_out, nblocks * block_in)
    for t in range(nblocks):
        matrix[t * block_out : (t + 1) * block_out, t * block_in : (t + 1) * block_in] = factor[t]
    return matrix


def permutation_matrix(index: Sequence[int], size_in: int) -> Tensor:
    """y[i] = x[index[i]], or 0 where index[i] is -1."""
    matrix = torch.zeros(len(index), size_in, dtype=torch.float64)
    for row, column in enumerate(index):
        if column >= 0:
            matrix[row, column] = 1
    return matrix


def gather_matrix(outer: int, block_in: int, stride: int) -> Tensor:
    """Before a stage: entry (a, j, c) of the vector viewed as (outer, block_in, stride) goes to (a, c, j)."""
    matrix = torch.zeros(outer * block_in * stride, outer * block_in * stride, dtype=torch.float64)
    for a in range(outer):
        for j in range(block_in):
            for c in range(stride):
                matrix[(a * stride + c) * block_in + j, (a * block_in + j) * stride + c] = 1
    return matrix


def scatter_matrix(nblocks: int, block_out: int) -> Tensor:
    """After a stage: output o of block t goes to (o, t)."""
    matrix = torch.zeros(nblocks * block_out, nblocks * block_out, dtype=torch.float64)
    for t in range(nblocks):
        for o in range(block_out):
            matrix[o * nblocks + t, t * block_out + o] = 1
    return matrix


def standard(factors: Sequence[Tensor]) -> Tensor:
    """The dense matrix of a standard Monarch (arXiv 2310.12109, section 3), a permutation matrix at a time."""
    if len(factors) == 1:
        return block_diagonal(factors[0])
    dtype = factors[0].dtype
    matrix = torch.eye(factors[0].shape[0] * factors[0].shape[2], dtype=dtype)
    for stage, factor in enumerate(factors):
        nblocks, block_out, block_in = factor.shape
        stride = nblocks if stage == 0 else math.prod(f.shape[2] for f in factors[stage + 1 :])
        gather = gather_matrix(nblocks // stride, block_in, stride).to(dtype)
        matrix = scatter_matrix(nblocks, block_out).to(dtype) @ block_diagonal(factor) @ gather @ matrix
    return matrix


def order_two(first: Tensor, second: Tensor) -> Tensor:
    """P L P R P entry by entry, b blocks of b x b: M[(i1, i0), (j1, j0)] = L_i0[i1, j0] R_j0[i0, j1]."""
    b = first.shape[0]
    matrix = first.new_zeros(b * b, b * b)
    for i in range(b * b):
        for j in range(b * b):
            (i1, i0), (j1, j0) = divmod(i, b), divmod(j, b)
            matrix[i, j] = second[i0, i1, j0] * first[j0, i0, j1]
    return matrix


def dft(n: int) -> Tensor:
    """exp(-2 pi i j k / n)."""
    rows = [[cmath.exp(-2j * math.pi * (j * k % n) / n) for k in range(n)] for j in range(n)]
    return torch.tensor(rows, dtype=torch.complex128)


def hadamard(n: int) -> Tensor:
    """(-1) to the number of ones that i and j have in common."""
    rows = [[(-1.0) ** (i & j).bit_count() for j in range(n)] for i in range(n)]
    return torch.tensor(rows, dtype=torch.float64)


def circulant(c: Tensor) -> Tensor:
    n = c.numel()
    return torch.stack([torch.stack([c[(i - j) % n] for j in range(n)]) for i in range(n)])


def toeplitz(column: Tensor, row: Tensor) -> Tensor:
    entry = [[column[i - j] if i >= j else row[j - i] for j in range(row.numel())] for i in range(column.numel())]
    return torch.stack([torch.stack(line) for line in entry])


def convolution(k: Tensor, n: int) -> Tensor:
    """y[i] = sum over j <= i of k[i - j] x[j]."""
    zero = k.new_zeros(())
    entry = [[k[i - j] if 0 <= i - j < k.numel() else zero for j in range(n)] for i in range(n)]
    return torch.stack([torch.stack(line) for line in entry])


def afdf(a: Tensor, d: Tensor) -> Tensor:
    """diag(a) F diag(d) F^-1."""
    f = dft(a.numel())
    wide = torch.complex128
    return torch.diag(a.to(wide)) @ f @ torch.diag(d.to(wide)) @ f.conj() / a.numel()


def projection_distance(matrix: Tensor, nblocks: tuple[int, int], rank: int, permute_input: bool) -> float:
    """The squared distance to the nearest order-2 Monarch whose slices have the given rank, a slice at a time."""
    n_in, (nb1, nb2) = matrix.shape[1], nblocks
    total = 0.0
    for b2 in range(nb2):
        for b1 in range(nb1):
            columns = range(b1, n_in, nb1) if permute_input else range(b1 * n_in // nb1, (b1 + 1) * n_in // nb1)
            values = torch.linalg.svdvals(matrix[b2::nb2][:, list(columns)])
            total += float(values[rank:].square().sum())
    return total

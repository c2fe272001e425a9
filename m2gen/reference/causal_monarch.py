"""Causal Monarch matrices in M-form, dense and in complex128 (arXiv 2310.12109, section 4 and appendix).

Digits j = sum_a j_a s_a with s_a = b_0 ... b_(a-1), lowest first. `coefficients[a]` is (s_a, b_a, b_a): for the lower
digits (as one number below s_a) the coefficient of X_a^t in the polynomial of digit j_a stands at [lower, t, j_a].
Basis polynomial j is q_j(Z) = prod_a f_a(Z^(s_a)), and M[i, j] = q_j(w_N^i) at the N-th roots of unity.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Sequence

import torch
from torch import Tensor


def digits(number: int, bases: Sequence[int]) -> list[int]:
    """Lowest digit first."""
    found = []
    for base in bases:
        number, digit = divmod(number, base)
        found.append(digit)
    return found


def coefficient_matrix(coefficients: Sequence[Tensor]) -> Tensor:
    """T[t, j]: the coefficient of Z^t in q_j, an entry at a time."""
    bases = [c.shape[-1] for c in coefficients]
    size = math.prod(bases)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for t in range(size):
        for j in range(size):
            entry, stride = 1.0, 1
            for c, base, t_a, j_a in zip(coefficients, bases, digits(t, bases), digits(j, bases), strict=True):
                entry *= float(c[j % stride, t_a, j_a])
                stride *= base
            matrix[t, j] = entry
    return matrix


def evaluation_matrix(coefficients: Sequence[Tensor]) -> Tensor:
    """M[i, j] = q_j(w_N^i), the product of its univariate factors, each evaluated where it stands."""
    bases = [c.shape[-1] for c in coefficients]
    size = math.prod(bases)
    matrix = torch.ones(size, size, dtype=torch.complex128)
    for i in range(size):
        for j in range(size):
            stride = 1
            for c, base, j_a in zip(coefficients, bases, digits(j, bases), strict=True):
                column = c[j % stride, :, j_a]
                powers = [cmath.exp(-2j * math.pi * (i * stride * t % size) / size) for t in range(base)]
                matrix[i, j] *= sum(float(column[t]) * powers[t] for t in range(base))
                stride *= base
    return matrix


def bilinear_form(m0: Tensor, m1: Tensor, m2: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """The first n entries of M0^-1 (M1 [k; 0] . M2 [u; 0]), complex; k and u are (n,) with 2 n <= N."""
    size, n = m0.shape[0], u.numel()
    padded = torch.zeros(2, size, dtype=torch.complex128)
    padded[0, :n], padded[1, :n] = k, u
    solved: Tensor = torch.linalg.solve(m0, (m1 @ padded[0]) * (m2 @ padded[1]))
    return solved[:n]


def jacobian(m0: Tensor, m1: Tensor, m2: Tensor, k: Tensor) -> Tensor:
    """d y / d u of `bilinear_form`, (n, n) complex, from its columns on the unit vectors."""
    units = torch.eye(k.numel(), dtype=torch.float64)
    return torch.stack([bilinear_form(m0, m1, m2, k, unit) for unit in units], 1)


def triangular_form(transform: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """T^-1 ((T k) * (T u)) with the causal linear convolution, sum by sum; transform (n, n) lower triangular."""
    n = u.numel()
    tk, tu = transform @ k, transform @ u
    product = torch.stack([torch.dot(tk[: i + 1].flip(0), tu[: i + 1]) for i in range(n)])
    solved: Tensor = torch.linalg.solve(transform, product)
    return solved

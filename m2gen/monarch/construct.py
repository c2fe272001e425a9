"""Well-known matrices in the smallest Monarch class that holds them: their factors, and their permutations where these
are not the standard ones. The docstrings are those of `Monarch`.

Circulant and Toeplitz matrices are F^-1 diag(F c) F on a circle that is large enough: here are c and the circle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch.permutation import Permutation, identity, resize, standard_permutations, stride_permutation

Parts = tuple[list[Tensor], list[Permutation] | None]
Circle = tuple[Tensor, tuple[int, int], int, int]  # first column c of a circulant, radices of its DFT, n_out, n_in


def diagonal(d: Tensor) -> Tensor:
    check_vector("diag(d)", "d", d)
    return d.reshape(-1, 1, 1)


def dft(n: int, radices: Sequence[int] | None, dtype: torch.dtype) -> list[Tensor]:
    if not dtype.is_complex:
        raise ProblemError(f"a DFT of size {n}", f"dtype {dtype}", "use torch.complex64 or torch.complex128")
    return [f.to(dtype) for f in _dft_factors(_radices("a DFT", n, radices))]


def idft(n: int, radices: Sequence[int] | None, dtype: torch.dtype) -> list[Tensor]:
    # 1/n goes a radix at a time, so that no factor is out of scale
    return [(f.conj() / f.shape[2]).to(dtype) for f in dft(n, radices, torch.complex128)]


def hadamard(n: int, radices: Sequence[int] | None, dtype: torch.dtype) -> Parts:
    radices = _radices("a Hadamard matrix", n, radices)
    if any(r & (r - 1) for r in radices):
        raise ProblemError(f"a Hadamard matrix of size {n}", f"radices {radices}", "use powers of two only")
    factors = [_sylvester(r, dtype).expand(n // r, r, r).contiguous() for r in radices]
    if len(radices) == 1:
        return factors, None
    # each stage transforms the last digit and turns it to the front: after all of them the order is natural again
    return factors, [identity(n), *(stride_permutation(n // r, r) for r in radices)]


def circulant(c: Tensor) -> Circle:
    check_vector("a circulant matrix", "c", c)
    n = c.numel()
    exact, padded = _exact_split(n), _padded_split(n, n)
    if _cost(exact, n, n) > _cost(padded, n, n):
        return toeplitz(c, torch.cat((c[:1], c[1:].flip(0))))
    return c, exact, n, n


def toeplitz(column: Tensor, row: Tensor) -> Circle:
    check_vector("a Toeplitz matrix", "column", column)
    check_vector("a Toeplitz matrix", "row", row)
    n_out, n_in = column.numel(), row.numel()
    split = _padded_split(n_out, n_in)
    dtype = torch.promote_types(column.dtype, row.dtype)
    gap = column.new_zeros(math.prod(split) - n_out - n_in + 1, dtype=dtype)
    # the circulant's first column: down the column, then the row backwards, wrapped around the end
    c = torch.cat((column.to(dtype), gap, row[1:].flip(0).to(dtype)))
    return c, split, n_out, n_in


def convolution(k: Tensor, n: int) -> Circle:
    check_vector("a convolution", "k", k)
    if n < 1:
        raise ProblemError(f"a convolution of length {n}", "no inputs", "use n >= 1")
    column = torch.nn.functional.pad(k[:n], (0, max(0, n - k.numel())))
    return toeplitz(column, torch.zeros_like(column))


def cut_dft(split: tuple[int, int], n_in: int, device: torch.device) -> Parts:
    """The first n_in columns of the DFT of size n1 n2, complex128.

    The input index is (digit of n1, digit of n2), so padding at the end only ever meets the last columns of the first
    factor's blocks, and those are left out.
    """
    _, n2 = split
    used = -(-n_in // n2)
    first, second = _dft_factors(split, device)
    factors = [first[:, :, :used], second]
    if used * n2 == n_in:
        return factors, None
    before, *others = (
        p.to(device) for p in standard_permutations([(f.shape[0], f.shape[1], f.shape[2]) for f in factors])
    )
    return factors, [before @ resize(n_in, used * n2).to(device), *others]


# ---- the pieces -----------------------------------------------------------------------------------------------


def check_vector(asked: str, name: str, x: Tensor) -> None:
    if x.ndim != 1 or x.numel() == 0 or not (x.is_floating_point() or x.is_complex()):
        found = f"{name} has shape {tuple(x.shape)} and dtype {x.dtype}"
        raise ProblemError(asked, found, "give a non-empty vector, floating or complex")


def _radices(what: str, n: int, radices: Sequence[int] | None) -> tuple[int, ...]:
    if n < 1:
        raise ProblemError(f"{what} of size {n}", "no entries", "use n >= 1")
    if radices is None:
        pair = divisor_pair(n)
        return pair if pair[1] > 1 else pair[:1]
    if not radices or min(radices) < 1 or math.prod(radices) != n:
        found = f"radices {tuple(radices)} with product {math.prod(radices)}"
        raise ProblemError(f"{what} of size {n}", found, f"give positive radices whose product is {n}")
    return tuple(radices)


def divisor_pair(n: int) -> tuple[int, int]:
    """The factor pair of n nearest sqrt(n), the larger one first."""
    small = next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0)
    return n // small, small


def _dft_factors(radices: Sequence[int], device: torch.device | None = None) -> list[Tensor]:
    """complex128 blocks. With A = product of the earlier radices and C = product of the later ones, stage i holds

    B[(a, c)][k, j] = w_n^(C j (a + A k)): the DFT of its radix times the twiddle of the digits a already transformed.
    """
    n, done, factors = math.prod(radices), 1, []
    for radix in radices:
        rest = n // (done * radix)
        a = torch.arange(done, device=device)[:, None, None]
        k, j = (torch.arange(radix, device=device).reshape(s) for s in ((1, -1, 1), (1, 1, -1)))
        # reduced in integers: the angle stays below 2 pi and loses no digit
        angle = (rest * j * (a + done * k)).remainder(n).double() * (-2 * math.pi / n)
        block = torch.polar(torch.ones_like(angle), angle)
        factors.append(block.repeat_interleave(rest, dim=0))
        done *= radix
    return factors


def _sylvester(n: int, dtype: torch.dtype) -> Tensor:
    h, two = torch.ones(1, 1, dtype=dtype), torch.tensor([[1, 1], [1, -1]], dtype=dtype)
    while h.shape[0] < n:
        h = torch.kron(two, h)
    return h


def _cost(split: tuple[int, int], n_out: int, n_in: int) -> int:
    """Real parameters of F^-1 diag(F c) F, cut to n_out x n_in."""
    n1, n2 = split
    return 2 * n1 * n2 * (-(-n_in // n2) - (-n_out // n2)) + 4 * n1 * n2 * n2


def _exact_split(n: int) -> tuple[int, int]:
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    pairs = [(n // d, d) for d in small] + [(d, n // d) for d in small]
    return min(pairs, key=lambda split: _cost(split, n, n))


def _padded_split(n_out: int, n_in: int) -> tuple[int, int]:
    """Two radices with product >= n_out + n_in - 1, from where a circulant holds the Toeplitz matrix unwrapped."""
    least = n_out + n_in - 1
    # the cheapest n2 is about sqrt(least) / 2; twice sqrt(least) is far enough
    splits = ((-(-least // n2), n2) for n2 in range(1, 2 * math.isqrt(least) + 2))

    def cost(split: tuple[int, int]) -> float:
        # a tenth more where the blocks do not divide the sizes: the outermost permutations must pad and crop then
        whole = n_in % split[1] == 0 and n_out % split[1] == 0
        return _cost(split, n_out, n_in) * (1 if whole else 1.1)

    return min(splits, key=cost)

"""Monarch matrices as values: apply, multiply, transpose, invert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch import construct, project
from m2gen.monarch.blocks import (
    check_chain,
    check_factors,
    check_permutations,
    inverse_blocks,
    real_blocks,
)
from m2gen.monarch.permutation import Permutation, from_index, identity, standard_permutations
from m2gen.ops._check import factors_of
from m2gen.ops.blockdiag_linear import matmul_blocks
from m2gen.ops.values import traced


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Monarch:
    """An order-p Monarch matrix M = P_p B_p ... P_1 B_1 P_0 (arXiv 2310.12109, section 3; arXiv 2204.00595, section 3).

    `factors[0]` = B_1 is applied first. Each factor is a tensor (nblocks, block_out, block_in) and stands for the
    block-diagonal matrix of its nblocks dense blocks; nblocks * block_out of one factor is nblocks * block_in of the
    next. Blocks may be rectangular and differ between factors. All factors share one floating or complex dtype.

    `permutations` are the p + 1 fixed permutations P_0 ... P_p: gather indices (y[i] = x[index[i]]) or `Permutation`
    objects. Without them the standard ones are taken, those of `m2gen.monarch_matmul`; see `standard_permutations`.
    For order 2 with b blocks of b x b they give M[(i1, i0), (j1, j0)] = L_i0[i1, j0] R_j0[i0, j1], where
    factors = (R, L); order 1 has none and is a plain block-diagonal matrix.

    Raises ProblemError when the factors do not chain or the permutations do not fit.
    """

    factors: tuple[Tensor, ...]
    permutations: tuple[Permutation, ...]

    def __init__(self, factors: Sequence[Tensor], permutations: Sequence[Permutation | Tensor] | None = None) -> None:
        factors = factors_of("a Monarch", factors)
        check_factors(factors)
        # set once here; a frozen dataclass has no other way
        object.__setattr__(self, "factors", tuple(factors))
        if permutations is None:
            check_chain(self.blocks)
            chosen = standard_permutations(self.blocks)
        else:
            chosen = tuple(p if isinstance(p, Permutation) else from_index(p) for p in permutations)
        check_permutations(self.blocks, chosen)
        object.__setattr__(self, "permutations", tuple(p.to(self.device) for p in chosen))

    # ---- what it is -------------------------------------------------------------------------------------------

    @property
    def order(self) -> int:
        return len(self.factors)

    @property
    def blocks(self) -> list[tuple[int, int, int]]:
        """(nblocks, block_out, block_in) of each factor, in order of application."""
        return [(f.shape[0], f.shape[1], f.shape[2]) for f in self.factors]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_out, n_in)."""
        return self.permutations[-1].size_out, self.permutations[0].size_in

    @property
    def dtype(self) -> torch.dtype:
        return self.factors[0].dtype

    @property
    def device(self) -> torch.device:
        return self.factors[0].device

    @property
    def n_params(self) -> int:
        """Entries of all factors; a complex entry counts once."""
        return sum(f.numel() for f in self.factors)

    @property
    def flops(self) -> int:
        """Operations to apply it to one vector: 2 per entry (multiply, add); 8 per entry when the factors are complex.

        For p factors with blocks of N^(1/p) this is 2 p N^(1 + 1/p) in real arithmetic.
        """
        return (8 if self.dtype.is_complex else 2) * self.n_params

    def __repr__(self) -> str:
        rows, columns = self.shape
        blocks = ", ".join(f"{nblocks} of {out}x{in_}" for nblocks, out, in_ in self.blocks)
        name = str(self.dtype).removeprefix("torch.")
        counts = f"{self.n_params} parameters where dense has {rows * columns}, {self.flops} flops a vector"
        return f"Monarch({rows}x{columns}, order {self.order}, {name} on {self.device}, blocks [{blocks}], {counts})"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Monarch:
        """The same matrix on another device, in another dtype, or both."""
        factors = [f.to(device=device, dtype=dtype) for f in self.factors]
        return Monarch(factors, [p.to(device) for p in self.permutations])

    # ---- what it does -----------------------------------------------------------------------------------------

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last axis: x (..., n_in) gives (..., n_out), in the promoted dtype of x and the factors."""
        if x.ndim == 0 or x.shape[-1] != self.shape[1]:
            raise ProblemError(
                f"a Monarch of shape {self.shape} on the last axis of x",
                f"x has shape {tuple(x.shape)}",
                f"give x with a last axis of {self.shape[1]}",
            )
        dtype = torch.promote_types(x.dtype, self.dtype)
        y = self.permutations[0](x.to(dtype).reshape(-1, self.shape[1]))
        for factor, permutation in zip(self.factors, self.permutations[1:], strict=True):
            y = permutation(matmul_blocks(y, factor.to(dtype)))
        return y.reshape(*x.shape[:-1], self.shape[0])

    @overload
    def __matmul__(self, other: Monarch) -> Monarch: ...
    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...
    def __matmul__(self, other: Monarch | Tensor) -> Monarch | Tensor:
        """Like a matrix: on a tensor (n_in,) or (n_in, m) it acts on the first axis; with a Monarch it is the product.

        The product's order is the sum of the orders, less one where the two factors that meet are one block-diagonal
        matrix again: equal blocks that the permutation between them keeps together, or a diagonal on either side.
        """
        if isinstance(other, Monarch):
            return _product(self, other)
        if other.ndim not in (1, 2) or other.shape[0] != self.shape[1]:
            raise ProblemError(
                f"a Monarch of shape {self.shape} times a tensor",
                f"the tensor has shape {tuple(other.shape)}",
                f"give ({self.shape[1]},) or ({self.shape[1]}, m); call the Monarch to act on the last axis",
            )
        return self(other) if other.ndim == 1 else self(other.mT).mT

    def to_dense(self) -> Tensor:
        """The matrix itself, (n_out, n_in)."""
        return self(torch.eye(self.shape[1], dtype=self.dtype, device=self.device)).mT

    @property
    def T(self) -> Monarch:
        """The transpose: the factors transposed and in reverse."""
        return Monarch([f.mT for f in reversed(self.factors)], [p.T for p in reversed(self.permutations)])

    def conj(self) -> Monarch:
        return Monarch([f.conj().resolve_conj() for f in self.factors], self.permutations)

    @property
    def H(self) -> Monarch:
        """The conjugate transpose."""
        return self.conj().T

    def inverse(self) -> Monarch:
        """The inverse, again of the same order: P_0^-1 B_1^-1 P_1^-1 ... (each block inverted in its own dtype).

        Raises ProblemError where a block is not square or is singular to working precision, or a permutation pads or
        crops. A product of rectangular blocks may still be invertible, only not inside its own class.
        """
        self._check_invertible_form()
        inverses = [inverse_blocks(f, stage) for stage, f in enumerate(self.factors)]
        return Monarch(inverses[::-1], [p.T for p in reversed(self.permutations)])

    def _check_invertible_form(self) -> None:
        asked, do = f"the inverse of {self!r}", "take torch.linalg.inv or pinv of to_dense()"
        for stage, (_, block_out, block_in) in enumerate(self.blocks):
            if block_out != block_in:
                raise ProblemError(asked, f"the blocks of factor {stage} are {block_out}x{block_in}, not square", do)
        if not all(p.is_full for p in self.permutations):
            raise ProblemError(asked, "one of its permutations pads or crops", do)

    def real_part(self) -> Monarch:
        """The real Monarch R with R x = Re(M x) for every real x; M itself when M is real.

        A complex number becomes two neighbouring reals, so the inner blocks double; the first factor reads reals and
        the last one writes only the real parts, so those two double in one direction. Where complex arithmetic has four
        real products for every entry, they have two.
        """
        if not self.dtype.is_complex:
            return self
        last = self.order - 1
        factors = [real_blocks(f, stage > 0, stage < last) for stage, f in enumerate(self.factors)]
        inner = [p.repeat_interleave(2) for p in self.permutations[1:-1]]
        return Monarch(factors, [self.permutations[0], *inner, self.permutations[-1]])

    # ---- well-known matrices (their factors: construct.py) -------------------------------------------------------

    @staticmethod
    def diagonal(d: Tensor) -> Monarch:
        """diag(d), order 1 with 1x1 blocks; d is (n,). In a product it is absorbed by its neighbour."""
        return Monarch([construct.diagonal(d)])

    @staticmethod
    def dft(n: int, radices: Sequence[int] | None = None, dtype: torch.dtype = torch.complex64) -> Monarch:
        """The discrete Fourier transform exp(-2 pi i j k / n), natural order in and out, unnormalised.

        Order p = len(radices), with product n: stage i is a DFT of size radices[i] times twiddles (Bailey's four-step
        FFT, repeated). In the form of arXiv 2310.12109 (section 3), whose P_0 permutes the input, it is a single
        Monarch of any order; in the form without P_0 (arXiv 2204.00595) only with its columns permuted.
        Twiddles are computed in float64, then cast. Default: the factor pair nearest sqrt(n); a prime n is one block.
        Raises ProblemError for n < 1, radices whose product is not n, and dtypes that are not complex.
        """
        return Monarch(construct.dft(n, radices, dtype))

    @staticmethod
    def idft(n: int, radices: Sequence[int] | None = None, dtype: torch.dtype = torch.complex64) -> Monarch:
        """The inverse of `dft(n, radices)`: exp(2 pi i j k / n) / n, of the same order and the same permutations."""
        return Monarch(construct.idft(n, radices, dtype))

    @staticmethod
    def hadamard(n: int, radices: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Monarch:
        """The n x n Hadamard matrix of Sylvester's order, entries +1 and -1; n a power of two.

        It is a Kronecker product of the Hadamard matrices of the radices (default: two of them, nearest sqrt(n)), so
        order 2 holds it: the class M of arXiv 2204.00595, section 3, which has no permutation of the input. (The
        standard permutations, whose P_0 suits the DFT, do not: see `from_dense` with either `permute_input`.)
        Raises ProblemError unless n and every radix are powers of two and the radices multiply to n.
        """
        return Monarch(*construct.hadamard(n, radices, dtype))

    @staticmethod
    def circulant(c: Tensor) -> Monarch:
        """The circulant matrix with first column c (n,): C[i, j] = c[(i - j) mod n]. Float or complex.

        F^-1 diag(F c) F with F a DFT of order 2; the inner two factors and the diagonal merge, so order 3. That is
        the class MM* (arXiv 2204.00595, section 3), and a single Monarch does not contain it. For real c the factors
        are real, with complex numbers held as pairs. Sizes without a good factor pair are computed as a Toeplitz
        matrix inside a larger circulant. Differentiable in c. It costs about 8 n^1.5 parameters: more than dense
        below n = 64. Raises ProblemError unless c is a non-empty vector.
        """
        return _fourier_sandwich(*construct.circulant(c))

    @staticmethod
    def toeplitz(column: Tensor, row: Tensor) -> Monarch:
        """The Toeplitz matrix with first column (m,) and first row (n,); row[0] is not read, as in scipy.

        The corner of a circulant of size N >= m + n - 1, so MM* with expansion (arXiv 2204.00595, section 3), order
        3: the outer blocks are rectangular, which is where the zero padding of the input and the cropping of the
        output go; what the block sizes do not divide is padded or cropped by the outermost permutations.
        Float or complex, real in real out, differentiable. Raises ProblemError unless both are non-empty vectors.
        """
        return _fourier_sandwich(*construct.toeplitz(column, row))

    @staticmethod
    def convolution(k: Tensor, n: int) -> Monarch:
        """The causal linear convolution y[i] = sum_{j <= i} k[i - j] x[j] as an n x n matrix, k (K,) of any length.

        A lower triangular Toeplitz matrix; class, dtypes and errors as in `toeplitz`. A k longer than n is cut.
        """
        return _fourier_sandwich(*construct.convolution(k, n))

    @staticmethod
    def afdf(a: Tensor, d: Tensor) -> Monarch:
        """diag(a) F diag(d) F^-1 with F the unnormalised DFT of size n; a and d are (n,), real or complex.

        F diag(d) F^-1 is the circulant with first column F d / n, and diag(a) is absorbed: order 3, the class MM*
        (arXiv 2204.00595, section 3). Complex. Raises ProblemError unless both are vectors of one length.
        """
        construct.check_vector("AFDF", "a", a)
        construct.check_vector("AFDF", "d", d)
        if a.shape != d.shape:
            raise ProblemError("AFDF", f"a has {a.numel()} entries and d has {d.numel()}", "give two of one length")
        dtype = torch.promote_types(torch.promote_types(a.dtype, d.dtype), torch.complex64)
        column = torch.fft.fft(d.to(torch.complex128)) / d.numel()
        return (Monarch.diagonal(a.to(torch.complex128)) @ Monarch.circulant(column)).to(dtype=dtype)

    @staticmethod
    def from_dense(
        matrix: Tensor,
        nblocks: int | tuple[int, int] | None = None,
        order: int = 2,
        permute_input: bool = True,
        inner: int | None = None,
    ) -> tuple[Monarch, float]:
        """The Monarch nearest to `matrix` (n_out, n_in) in the Frobenius norm, and the squared distance to it.

        Order 2, in closed form (arXiv 2204.00595, section 3): the matrix splits into nblocks[0] * nblocks[1] slices,
        each (block_out of the second factor) x (block_in of the first), which a Monarch makes of fixed rank; the best
        one truncates each slice's SVD, and the distance is the sum of the squares of all discarded singular values.
        The root of each kept singular value goes to either factor. `permute_input=True` projects on P L P R P,
        False on P L P R, the form of arXiv 2204.00595 with no permutation of the input.

        nblocks: blocks of the first and the second factor, one number for both; default: the divisor pair nearest
        sqrt(n) (for a rectangular matrix, the divisor nearest the root of either side). `inner` is the length between
        the factors. Default: n for a square matrix, which makes the blocks square and the rank
        n / (nblocks[0] * nblocks[1]); otherwise the least that gives every slice one rank and all of them together
        min(n_out, n_in). Order 1 keeps the diagonal blocks. float16 and bfloat16 are computed in float32.
        Raises ProblemError for other orders, sizes that do not divide, and values that are not finite.
        """
        factors, residual = project.from_dense(matrix, nblocks, order, permute_input, inner)
        found = Monarch(factors)
        if order == 2 and not permute_input:
            found = Monarch(factors, [identity(matrix.shape[1]), *found.permutations[1:]])
        return found, residual


def _fourier_sandwich(c: Tensor, split: tuple[int, int], n_out: int, n_in: int) -> Monarch:
    """The n_out x n_in corner of the circulant of c, in c's dtype: order 3, since the product merges the middle."""
    spectrum = torch.fft.fft(c.to(torch.complex128)) / c.numel()
    right = Monarch(*construct.cut_dft(split, n_in, c.device))
    left = Monarch(*construct.cut_dft(split, n_out, c.device)).H
    product = left @ Monarch.diagonal(spectrum) @ right
    return product.to(dtype=c.dtype) if c.is_complex() else product.real_part().to(dtype=c.dtype)


def _product(second: Monarch, first: Monarch) -> Monarch:
    if second.shape[1] != first.shape[0]:
        raise ProblemError(
            "the product A @ B of two Monarchs",
            f"A is {second.shape} and B is {first.shape}",
            "make A's columns equal B's rows",
        )
    dtype = torch.promote_types(second.dtype, first.dtype)
    second, first = second.to(dtype=dtype), first.to(dtype=dtype)
    middle = second.permutations[0] @ first.permutations[-1]
    merged = _merge(first, middle, second)
    if merged is not None:
        return merged
    permutations = [*first.permutations[:-1], middle, *second.permutations[1:]]
    return Monarch([*first.factors, *second.factors], permutations)


def _merge(first: Monarch, middle: Permutation, second: Monarch) -> Monarch | None:
    """The product with its two middle factors made one, where that one is block-diagonal again; else None."""
    x, y = first.factors[-1], second.factors[0]
    before, after = first.permutations[-2], second.permutations[1]
    if x.shape[1:] == (1, 1):  # a diagonal scales the columns of y ...
        factor, before = (
            y * x.reshape(-1)[middle.index.clamp(min=0)].reshape(y.shape[0], 1, y.shape[2]),
            middle @ before,
        )
    elif y.shape[1:] == (1, 1):  # ... or the rows of x; the permutation moves to the other side
        factor, after = x * y.reshape(-1)[middle.T.index.clamp(min=0)].reshape(*x.shape[:2], 1), after @ middle
    else:
        moved = _moved_blocks(middle, x.shape[0], x.shape[1])
        if moved is None or y.shape[0] != x.shape[0]:
            return None
        rows = x.reshape(-1, x.shape[2]).index_select(0, middle.index)
        factor, before = y @ rows.reshape(x.shape), moved.repeat_interleave(x.shape[2]) @ before
    factors = [*first.factors[:-1], factor, *second.factors[1:]]
    return Monarch(factors, [*first.permutations[:-2], before, after, *second.permutations[2:]])


def _moved_blocks(permutation: Permutation, nblocks: int, size: int) -> Permutation | None:
    """Which block each block comes from, if the permutation keeps blocks of `size` entries together; else None."""
    if not permutation.is_full:
        return None
    sources = permutation.index.reshape(nblocks, size) // size
    if traced() or bool((sources != sources[:, :1]).any()):  # the next call's may be others
        return None
    return Permutation(sources[:, 0], nblocks)

"""The fixed permutations between the block-diagonal factors, as gather indices."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.ops.monarch_matmul import inner_widths
from m2gen.ops.values import ensured, traced


@dataclass(frozen=True, eq=False)
class Permutation:
    """A permutation, or a partial one: a 0/1 matrix with at most one 1 in each row and each column.

    `P(x)[..., i] = x[..., index[i]]`, and 0 where `index[i]` is -1. A partial one pads (rows of zeros) or crops
    (inputs that no row reads); both are needed where a size is not a product of the block sizes.
    `index` is int64 of shape (size_out,); `size_in` is the length of what it is applied to.
    """

    index: Tensor
    size_in: int
    is_full: bool = field(init=False)  # a proper permutation: square, nothing padded, nothing cropped
    is_identity: bool = field(init=False)
    zero_rows: Tensor | None = field(init=False)  # None where there are none: the common case pays for no mask

    def __post_init__(self) -> None:
        # once and here, not on first use, so that applying it reads no values and torch.compile can trace it
        zero = self.index < 0
        padded, ordered = bool(zero.any()), torch.arange(self.size_out, device=self.index.device)
        full = self.size_out == self.size_in and not padded
        # an index that torch.jit.trace was given may be another in the next call
        general = traced()
        object.__setattr__(self, "zero_rows", zero if padded or general else None)
        object.__setattr__(self, "is_full", full)
        object.__setattr__(self, "is_identity", full and not general and torch.equal(self.index, ordered))

    @property
    def size_out(self) -> int:
        return self.index.numel()

    @property
    def T(self) -> Permutation:
        """The transpose, which for a full permutation is the inverse."""
        rows = torch.arange(self.size_out, device=self.index.device)
        kept = self.index >= 0
        index = torch.full((self.size_in,), -1, dtype=torch.int64, device=self.index.device)
        index[self.index[kept]] = rows[kept]
        return Permutation(index, self.size_out)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to the last axis of x (..., size_in); the result is (..., size_out)."""
        if self.is_identity:
            return x
        if self.zero_rows is None:
            return x.index_select(-1, self.index)
        gathered = x.index_select(-1, self.index.clamp(min=0))
        return gathered.masked_fill(self.zero_rows, 0)

    def __matmul__(self, first: Permutation) -> Permutation:
        """The product of the two matrices: `first` is applied first."""
        if self.is_identity:
            return first
        index = first.index[self.index.clamp(min=0)]
        return Permutation(torch.where(self.index >= 0, index, -1), first.size_in)

    def to(self, device: torch.device | str | None) -> Permutation:
        return self if device is None else Permutation(self.index.to(device), self.size_in)

    def repeat_interleave(self, count: int) -> Permutation:
        """The same permutation of groups of `count` neighbouring entries (the Kronecker product with an identity)."""
        within = torch.arange(count, device=self.index.device)
        index = self.index[:, None] * count + within
        return Permutation(index.where(self.index[:, None] >= 0, -1).reshape(-1), self.size_in * count)


def identity(size: int) -> Permutation:
    return Permutation(torch.arange(size), size)


def stride_permutation(rows: int, columns: int, batch: int = 1) -> Permutation:
    """View (batch, rows, columns), swap the last two axes, flatten: P of arXiv 2204.00595, section 3."""
    index = torch.arange(batch * rows * columns).view(batch, rows, columns).transpose(1, 2)
    return Permutation(index.reshape(-1), batch * rows * columns)


def resize(size_in: int, size_out: int) -> Permutation:
    """Pad with zeros at the end (size_out > size_in), or keep the first size_out entries."""
    index = torch.arange(size_out)
    return Permutation(index.where(index < size_in, -1), size_in)


def from_index(index: Tensor) -> Permutation:
    """A full permutation from a gather index. Raises ProblemError if it is not one."""
    if index.ndim != 1 or index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ProblemError(
            "a permutation",
            f"a tensor of shape {tuple(index.shape)} and dtype {index.dtype}",
            "give a vector of integers, a gather index: y[i] = x[index[i]]",
        )
    index = index.long()
    index = ensured(
        index,
        index.sort().values == torch.arange(index.numel(), device=index.device),
        f"a permutation of {index.numel()} entries",
        "an index that does not hold each of 0..n-1 once",
        "build it with torch.randperm or by argsort",
    )
    return Permutation(index, index.numel())


def standard_permutations(shapes: list[tuple[int, int, int]]) -> tuple[Permutation, ...]:
    """The permutations of a standard order-p Monarch whose factors have the shapes (nblocks, block_out, block_in).

    Before stage i the vector is viewed as (A_i, block_in, C_i) and the middle axis moves last; after it the blocks'
    outputs (nblocks, block_out) are transposed. C is nblocks for the first stage, 1 for the last and the product of
    the later block_in between. Order 1 has none. For order 2 with equal blocks this is P L P R P (arXiv 2310.12109,
    section 3); for any order the natural-order DFT is in the class.
    """
    if len(shapes) == 1:
        nblocks, block_out, block_in = shapes[0]
        return identity(nblocks * block_in), identity(nblocks * block_out)
    strides = inner_widths(shapes)
    gathers = [
        stride_permutation(block_in, stride, nblocks // stride)
        for (nblocks, _, block_in), stride in zip(shapes, strides, strict=True)
    ]
    scatters = [stride_permutation(nblocks, block_out) for nblocks, block_out, _ in shapes]
    between = [gather @ scatter for gather, scatter in zip(gathers[1:], scatters[:-1], strict=True)]
    return gathers[0], *between, scatters[-1]

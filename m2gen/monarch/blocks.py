"""What is done to one factor, and what a list of factors must satisfy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.monarch.permutation import Permutation
from m2gen.ops.values import ensured, look


def check_factors(factors: Sequence[Tensor]) -> None:
    shapes = [tuple(f.shape) for f in factors]
    asked = f"a Monarch with factors of shapes {shapes}"
    if not factors:
        raise ProblemError("a Monarch", "no factors", "give at least one, of shape (nblocks, block_out, block_in)")
    for f in factors:
        if f.ndim != 3 or f.numel() == 0:
            raise ProblemError(asked, f"{tuple(f.shape)} is no factor", "give (nblocks, block_out, block_in), all >= 1")
        if not (f.is_floating_point() or f.is_complex()) or f.dtype != factors[0].dtype:
            raise ProblemError(asked, f"dtypes {[f.dtype for f in factors]}", "give one floating or complex dtype")
        if f.device != factors[0].device:
            raise ProblemError(asked, f"devices {[str(f.device) for f in factors]}", "put them on one device")


def check_chain(blocks: list[tuple[int, int, int]]) -> None:
    """What the standard permutations need; others may pad or crop between the factors, and are checked themselves."""
    for stage, (first, second) in enumerate(pairwise(blocks)):
        if first[0] * first[1] != second[0] * second[2]:
            raise ProblemError(
                f"a Monarch with factors of shapes {blocks}",
                f"factor {stage} gives {first[0] * first[1]} values, the next one takes {second[0] * second[2]}",
                "make nblocks * block_out of each equal to nblocks * block_in of the next",
            )


def check_permutations(blocks: list[tuple[int, int, int]], permutations: Sequence[Permutation]) -> None:
    asked = f"a Monarch with factors {blocks}"
    if len(permutations) != len(blocks) + 1:
        raise ProblemError(asked, f"{len(permutations)} permutations", f"give {len(blocks) + 1}, one more than factors")
    for stage, (nblocks, block_out, block_in) in enumerate(blocks):
        before, after = permutations[stage].size_out, permutations[stage + 1].size_in
        if (before, after) != (nblocks * block_in, nblocks * block_out):
            raise ProblemError(
                asked,
                f"the permutations around factor {stage} have sizes {before} and {after}",
                f"give permutations of {nblocks * block_in} and {nblocks * block_out} entries there",
            )


def inverse_blocks(factor: Tensor, stage: int) -> Tensor:
    inverse: Tensor
    inverse, info = torch.linalg.inv_ex(factor)
    norms = torch.linalg.matrix_norm(factor, ord=1) * torch.linalg.matrix_norm(inverse, ord=1)
    # the condition number in the 1-norm; beyond 1/eps not one digit of the inverse means anything
    singular = (info != 0) | ~(norms * torch.finfo(factor.dtype).eps < 1)
    seen = look(singular, wait=True)
    which = f"block {int(seen.nonzero()[0, -1])}" if seen is not None and bool(seen.any()) else "a block"
    return ensured(
        inverse,
        ~singular,
        "the inverse of a Monarch",
        f"{which} of factor {stage} is singular to working precision",
        "change that block, or take torch.linalg.pinv of to_dense()",
    )


def real_blocks(factor: Tensor, pairs_in: bool, pairs_out: bool) -> Tensor:
    """Complex blocks as real ones; a value is a (real, imaginary) pair where the flag says so, else a real number."""
    nblocks, block_out, block_in = factor.shape
    real, imaginary = factor.real, factor.imag
    to_real = torch.stack((real, -imaginary), -1) if pairs_in else real[..., None]
    to_imaginary = torch.stack((imaginary, real), -1) if pairs_in else imaginary[..., None]
    rows = torch.stack((to_real, to_imaginary), 2) if pairs_out else to_real[:, :, None]
    return rows.reshape(nblocks, block_out * (1 + pairs_out), block_in * (1 + pairs_in))

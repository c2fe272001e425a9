"""DFT matrices and twiddle factors: computed in float64, cast once, kept per device."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from m2gen.planner.plan import Transform


def roots_of_unity(exponents: Tensor, n: int) -> Tensor:
    """exp(-2 pi i e / n) in complex128 for integer exponents e; exact reduction modulo n first."""
    angle = (exponents % n).to(torch.float64) * (-2 * math.pi / n)
    return torch.complex(torch.cos(angle), torch.sin(angle))


@lru_cache(maxsize=256)
def dft_matrix(radix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (radix, radix) DFT matrix, symmetric, unscaled."""
    index = torch.arange(radix)
    return roots_of_unity(torch.outer(index, index), radix).to(device=device, dtype=dtype)


@lru_cache(maxsize=256)
def twiddles(radix: int, rest: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The (radix, rest) twiddle factors between a stage of `radix` and the transforms of size `rest` inside it."""
    exponents = torch.outer(torch.arange(radix), torch.arange(rest))
    return roots_of_unity(exponents, radix * rest).to(device=device, dtype=dtype)


def stages(transform: Transform) -> list[tuple[int, int]]:
    """(radix, size of the transforms that remain inside) for each stage, outermost first."""
    rest = transform.size
    found = []
    for radix in transform.radices:
        rest //= radix
        found.append((radix, rest))
    return found

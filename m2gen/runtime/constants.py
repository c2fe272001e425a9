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


@lru_cache(maxsize=64)
def ring_weights(ring: str, size: int, device: torch.device) -> Tensor | None:
    """theta^n for n < size, theta = exp(i pi / (2 size)), of the causal ring t^size = i; none for the cyclic one."""
    return roots_of_unity(-torch.arange(size), 4 * size).to(device, torch.complex64) if ring == "causal" else None


@lru_cache(maxsize=64)
def order2_matrices(
    ring: str, n1: int, n2: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """A1, B2 in `dtype` and the twiddles (2, n1, n2) in float32 of the fused kernel; all transforms unitary.

    A1 (2 n1, rows n1) maps stacked real rows to [Yr; Yi], B2 (2 n2, 2 n2) maps [Yr | Yi] to [Zr | Zi]. On the causal
    ring the weights theta^(n1 index * n2) are inside A1 and theta^(n2 index) inside the twiddles.
    """
    i1, i2 = torch.arange(n1), torch.arange(n2)
    f1 = roots_of_unity(torch.outer(i1, i1), n1) / math.sqrt(n1)
    f2 = roots_of_unity(torch.outer(i2, i2), n2) / math.sqrt(n2)
    twiddle = roots_of_unity(torch.outer(i1, i2), n1 * n2)
    if ring == "causal":
        f1 = f1 * roots_of_unity(-i1 * n2, 4 * n1 * n2)
        twiddle = twiddle * roots_of_unity(-i2, 4 * n1 * n2)
    a1 = torch.cat([f1.real, f1.imag]) if ring == "causal" else _real_blocks(f1)
    twiddle = torch.view_as_real(twiddle).movedim(-1, 0)
    return (
        a1.to(device, dtype).contiguous(),
        _real_blocks(f2).T.to(device, dtype).contiguous(),
        twiddle.to(device, torch.float32).contiguous(),
    )


def _real_blocks(f: Tensor) -> Tensor:
    """The complex matrix as a real one on stacked real and imaginary parts."""
    return torch.cat([torch.cat([f.real, -f.imag], 1), torch.cat([f.imag, f.real], 1)])

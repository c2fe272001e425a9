"""DFT matrices and twiddle factors: computed in float64, cast once, kept per device."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from m2gen.planner.fftconv.transform import Transform


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
def left_matrix(ring: str, radix: int, rest: int, dtype: torch.dtype, device: torch.device, stack: int = 1) -> Tensor:
    """A (2 R, rows * R), R = stack * radix: real rows above one another to [Yr; Yi], unitary DFTs down columns.

    On the causal ring, of one row, the weights theta^(n1 * rest) are inside; elsewhere two rows make a complex one.
    What is stacked does not mix: the DFT is block-diagonal.
    """
    index = torch.arange(radix)
    f = roots_of_unity(torch.outer(index, index), radix) / math.sqrt(radix)
    if ring == "causal":
        f = f * roots_of_unity(-index * rest, 4 * radix * rest)
    f = torch.kron(torch.eye(stack, dtype=f.dtype), f)
    if ring == "causal":
        return torch.cat([f.real, f.imag]).to(device, dtype).contiguous()
    return _real_blocks(f).to(device, dtype).contiguous()


@lru_cache(maxsize=64)
def right_matrix(radix: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """B (2 radix, 2 radix): [Yr | Yi] to [Zr | Zi], a unitary DFT along rows."""
    return left_matrix("cyclic", radix, 1, dtype, device).T.contiguous()


@lru_cache(maxsize=64)
def ring_twiddles(ring: str, radix: int, rest: int, device: torch.device) -> Tensor:
    """(2, radix, rest) in float32: real and imaginary twiddles; on the causal ring with the weights theta^n2."""
    twiddle = roots_of_unity(torch.outer(torch.arange(radix), torch.arange(rest)), radix * rest)
    if ring == "causal":
        twiddle = twiddle * roots_of_unity(-torch.arange(rest), 4 * radix * rest)
    return torch.view_as_real(twiddle).movedim(-1, 0).to(device, torch.float32).contiguous()


def _real_blocks(f: Tensor) -> Tensor:
    """The complex matrix as a real one on stacked real and imaginary parts."""
    return torch.cat([torch.cat([f.real, -f.imag], 1), torch.cat([f.imag, f.real], 1)])


@lru_cache(maxsize=64)
def pass_twiddles(ring: str, radix: int, rest: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`ring_twiddles` as products, in float32, for rings whose table would be as large as a sequence: near (2, radix,
    columns) of each column of a block, and far (rest / columns, 2, radix) of each block's first column."""
    k0, size = torch.arange(radix), radix * rest

    def table(column: Tensor) -> Tensor:
        exponents = torch.outer(k0, column)  # of w_size; the causal ring's weight theta is its -1/4th power
        exponents = 4 * exponents - column if ring == "causal" else exponents
        return torch.view_as_real(roots_of_unity(exponents, 4 * size if ring == "causal" else size))

    near = table(torch.arange(columns)).permute(2, 0, 1)
    far = table(torch.arange(0, rest, columns)).permute(1, 2, 0)
    near, far = (x.to(device, torch.float32).contiguous() for x in (near, far))
    return near, far

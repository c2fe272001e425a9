"""Discrete Fourier transforms, as plans name them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Transform:
    """A discrete Fourier transform of `size` points: by the library (no radices) or by Monarch factors."""

    kind: Literal["fft", "monarch"]
    size: int
    radices: tuple[int, ...]

    @property
    def order(self) -> int:
        """The number of block-diagonal factors, 0 for the library."""
        return len(self.radices)

    @property
    def blocks(self) -> tuple[tuple[int, int, int], ...]:
        """(nblocks, block_out, block_in) of each block-diagonal factor; their product of permutations is the DFT."""
        return tuple((self.size // radix, radix, radix) for radix in self.radices)

    def __str__(self) -> str:
        if self.kind == "fft":
            return f"(fft {self.size})"
        return f"(monarch {self.size} (radices {' '.join(map(str, self.radices))}))"

"""The two DFTs that run anywhere: torch.fft, and the order-p Monarch as batched matrix products.

Both turn real rows (..., m), m <= size, zero-padded to `size`, into a spectrum and back. The order of the bins
is the transform's own affair: spectra only ever meet elementwise, and the inverse undoes what the forward did.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.planner.fftconv.transform import Transform
from m2gen.runtime.bindings.constants import dft_matrix, stages, twiddles


class Dft(Protocol):
    def forward(self, x: Tensor) -> Tensor: ...

    def inverse(self, spectrum: Tensor) -> Tensor: ...


class FftDft:
    """Real-to-complex FFT of the tensor library."""

    def __init__(self, transform: Transform) -> None:
        self.size = transform.size

    def forward(self, x: Tensor) -> Tensor:
        spectrum: Tensor = torch.fft.rfft(x, n=self.size)
        return spectrum

    def inverse(self, spectrum: Tensor) -> Tensor:
        rows: Tensor = torch.fft.irfft(spectrum, n=self.size)
        return rows


class MonarchDft:
    """The DFT as an order-p Monarch matrix (Bailey's four-step FFT, recursively): per stage one product with a DFT
    matrix of the stage's radix and one elementwise product with twiddle factors. The bins are left in the order of the
    recursion, so neither direction permutes anything.
    """

    def __init__(self, transform: Transform) -> None:
        self.size = transform.size
        self.stages = stages(transform)

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        z = F.pad(x, (0, self.size - x.shape[-1])).to(dtype)
        for radix, rest in self.stages:
            z = _product(dft_matrix(radix, dtype, x.device), z.reshape(-1, radix, rest))
            if rest > 1:
                z *= twiddles(radix, rest, dtype, x.device)
        return z.reshape(*x.shape[:-1], self.size)

    def inverse(self, spectrum: Tensor) -> Tensor:
        # Conjugate on the way in (physically: see spectral.py) and take the real part on the way out, as
        # IDFT(s) = conj(DFT(conj s)) / n; the stages run backwards because each one is a symmetric matrix.
        dtype, device, z = spectrum.dtype, spectrum.device, spectrum.conj_physical()
        for radix, rest in reversed(self.stages):
            z = z.reshape(-1, radix, rest)
            if rest > 1:
                z = z * twiddles(radix, rest, dtype, device)
            z = _product(dft_matrix(radix, dtype, device), z)
        return (z.real / self.size).reshape(*spectrum.shape[:-1], self.size)


def _product(matrix: Tensor, z: Tensor) -> Tensor:
    """matrix @ z for a symmetric (radix, radix) matrix and z (rows, radix, rest)."""
    if z.shape[-1] == 1:
        return (z.squeeze(-1) @ matrix).unsqueeze(-1)
    return matrix @ z


def bind(transform: Transform) -> Dft:
    return FftDft(transform) if transform.kind == "fft" else MonarchDft(transform)

"""What m2gen is measured against: the causal long convolution y = conv(u, k) as others do it, u (B, H, L), k (H, L)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

Conv = Callable[[Tensor, Tensor], Tensor]


def torch_fft(u: Tensor, k: Tensor, k_rev: Tensor | None = None) -> Tensor:
    """As most models write it: one rfft, product and irfft over the whole tensor, padded to 2 L."""
    length, size = u.shape[-1], 2 * u.shape[-1]
    if k_rev is not None:
        k = torch.nn.functional.pad(k, (0, length)) + torch.nn.functional.pad(k_rev.flip(-1), (length, 0))
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., :length]


def scipy_fft(u: Tensor, k: Tensor) -> Tensor:
    """The same through scipy.fft (pocketfft), whole tensors, on one worker."""
    from scipy import fft

    size = 2 * u.shape[-1]
    spectrum = fft.rfft(u.numpy(), n=size) * fft.rfft(k.numpy(), n=size)
    return torch.from_numpy(fft.irfft(spectrum, n=size))[..., : u.shape[-1]]


class Fftw:
    """FFTW 3 through pyfftw, planned with MEASURE, `channels` rows at a time, buffers reused."""

    def __init__(self, length: int, channels: int = 16) -> None:
        import pyfftw

        self.length, self.channels, size = length, channels, 2 * length
        self.rows = pyfftw.zeros_aligned((channels, size), dtype="float32")
        self.bins = pyfftw.zeros_aligned((channels, length + 1), dtype="complex64")
        self.dft = pyfftw.FFTW(self.rows, self.bins, flags=("FFTW_MEASURE",))
        self.inverse = pyfftw.FFTW(self.bins, self.rows, direction="FFTW_BACKWARD", flags=("FFTW_MEASURE",))

    def _transform(self, rows: np.ndarray) -> None:
        self.rows[:, : self.length] = rows
        self.rows[:, self.length :] = 0
        self.dft.execute()

    def __call__(self, u: Tensor, k: Tensor) -> Tensor:
        y = torch.empty_like(u)
        rows, taps, out = u.numpy(), k.numpy(), y.numpy()
        for first in range(0, u.shape[1], self.channels):
            part = slice(first, first + self.channels)
            self._transform(taps[part])
            kf = self.bins * np.float32(1 / (2 * self.length))
            for b in range(u.shape[0]):
                self._transform(rows[b, part])
                self.bins *= kf
                self.inverse.execute()
                out[b, part] = self.rows[:, : self.length]
        return y


def available(length: int) -> dict[str, Conv]:
    """Every baseline that is installed, by name."""
    found: dict[str, Conv] = {"torch.fft": torch_fft}
    if find_spec("scipy"):
        found["scipy.fft"] = scipy_fft
    if find_spec("pyfftw"):
        found["FFTW"] = Fftw(length)
    return found

"""Long filters for the fused convolution, by PyTorch's FFT: spectra, and gradients of taps from sums of spectra.

About ten launches each; spectrum_triton.py does the same in one or two.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.runtime.bindings.constants import ring_weights
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands

TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "bf16_emulated": torch.float32}


class Filters(Protocol):
    """The way from taps to a kernel's spectrum, and back from sums of spectra to the taps' gradients."""

    def spectrum(self, x: Operands) -> tuple[Tensor, Tensor]:
        """kf (H, 2, n0, n1, n2) in the kernel's order and dtype, and the powers of two (H,) it was divided by.

        After that no bin exceeds 1, and with unitary transforms half precision overflows only where the sequence's own
        spectrum does.
        """

    def gradients(self, sums: Tensor, of_skip: Tensor, wrote: FftConvSpec, out: Gradients) -> None:
        """Fill the gradients wanted of taps and skip: from partial sums of spectra (H, splits, 2, stack, n0, n1, n2),
        in the order of the kernel that wrote them, and from those of the skip (H, splits)."""


class LibraryFilters:
    """By PyTorch's FFT."""

    def __init__(self, ring: Ring, spec: FftConvSpec) -> None:
        self.ring, self.spec = ring, spec

    def spectrum(self, x: Operands) -> tuple[Tensor, Tensor]:
        spec = self.spec
        k, k_rev = x.k.float(), None if x.k_rev is None else x.k_rev.float()
        taps = self.ring.place_complex(k, k_rev, spec.ring == "causal")
        if x.skip is not None:
            taps[:, 0] += x.skip  # an impulse at lag 0
        weights = ring_weights(spec.ring, spec.size, taps.device)
        kf = torch.fft.fft(taps if weights is None else taps.mul_(weights))
        # bin k0 + n0 * (k1 + n1 * k2) stands at [k0, k1, k2]
        kf = torch.view_as_real(kf.reshape(-1, spec.n2, spec.n1, spec.n0).permute(0, 3, 2, 1)).movedim(-1, 1)
        largest = torch.linalg.vector_norm(kf, torch.inf, (1, 2, 3, 4))
        scale = largest.view(torch.int32).add_(2 << 23).bitwise_and_(255 << 23).view(torch.float32)  # its exponent + 2
        ordered = kf.new_empty(kf.shape, dtype=TORCH[spec.compute])
        return torch.div(kf, scale.view(-1, 1, 1, 1, 1), out=ordered), scale

    def gradients(self, sums: Tensor, of_skip: Tensor, wrote: FftConvSpec, out: Gradients) -> None:
        if out.skip is not None:
            out.skip.copy_(of_skip.sum(1))
        if not out.filter:
            return
        channels, parts = sums.shape[0], sums.shape[1] * sums.shape[3]
        total = sums.sum((1, 3)) if parts > 1 else sums.view(channels, 2, wrote.n0, wrote.n1, wrote.n2)
        ordered = total.permute(0, 4, 3, 2, 1).contiguous().view(channels, wrote.size, 2)
        taps = torch.fft.ifft(torch.view_as_complex(ordered), norm="forward")  # the sum itself, over no size
        weights = ring_weights(wrote.ring, wrote.size, taps.device)
        if weights is not None:
            taps = taps.mul_(weights.conj_physical())
        behind = taps.real if weights is None else -taps.imag
        self.ring.write_gradients(taps.real, slice(None), out.k, out.k_rev, behind)

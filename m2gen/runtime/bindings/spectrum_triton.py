"""Long filters for the fused convolution by generated kernels: one launch for a spectrum, or two, and so for gradients.

Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.runtime.bindings.constants import ring_twiddles, roots_of_unity
from m2gen.runtime.bindings.filters import TORCH
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.triton_kernel import emulated, interned, launch

_Variant = tuple[tuple[int, ...], int, bool, bool]


class FusedFilters:
    """By generated kernels."""

    def __init__(
        self, ring: Ring, spec: FftConvSpec, forward: Sequence[SpectrumSpec], back: Sequence[SpectrumSpec]
    ) -> None:
        """`spec`: the kernel that reads the spectra, as it is launched."""
        self.ring, self.spec, self._back = ring, spec, tuple(back)
        compute = spec.compute  # rounded by the last kernel
        self._forward = [interned(replace(one, compute=compute) if one.order else one) for one in forward]
        self._variants: dict[_Variant, list[SpectrumSpec]] = {}

    def spectrum(self, x: Operands) -> tuple[Tensor, Tensor]:
        spec, (channels, _), device = self.spec, x.k.shape, x.k.device
        taps = taps_of(self.ring, x.k.resolve_neg(), None if x.k_rev is None else x.k_rev.resolve_neg(), x.skip)
        shape = channels, 2, spec.n0, spec.n1, spec.n2
        kf, scale = x.k.new_empty(shape, dtype=TORCH[spec.compute]), x.k.new_empty(channels, dtype=torch.float32)
        first, last = self._forward[0], self._forward[-1]
        if first is last:
            launch(first, channels, *taps.tensors, kf, scale, *constants(first, device), *taps.numbers)
            return kf, scale
        rows = scale.new_empty((channels, 2 * spec.size))
        moduli = scale.new_empty((channels, first.n0 * first.parts))
        between = rows, moduli
        launch(first, channels * first.programs, *taps.tensors, *between, *constants(first, device), *taps.numbers)
        launch(last, channels * last.programs, *between, kf, scale, *constants(last, device))
        return kf, scale

    def gradients(self, sums: Tensor, of_skip: Tensor, wrote: FftConvSpec, out: Gradients) -> None:
        (channels, splits), device = sums.shape[:2], sums.device
        taps = taps_of(self.ring, out.k, out.k_rev, out.skip)
        by_hand = any(emulated(t.dtype) for t in taps.tensors)
        specs = self._gradient_kernels((wrote.radices, sums.shape[3], out.skip is not None, by_hand))
        first, last = specs[0], specs[-1]
        if first is not last:
            rows = sums.new_empty((channels, 2 * wrote.size))
            launch(first, channels * first.programs, sums, rows, *constants(first, device), splits)
            sums = rows
        arguments = (sums, of_skip, *taps.tensors, *constants(last, device), splits, *taps.numbers)
        launch(last, channels * last.programs, *arguments)

    def _gradient_kernels(self, variant: _Variant) -> list[SpectrumSpec]:
        """Those for sums of a kernel with these radices, with so many stacked."""
        found = self._variants.get(variant)
        if found is None:
            order, stack, skip, by_hand = variant
            of_sums = [replace(one, order=order, stack=stack) if one.order else one for one in self._back]
            of_sums[-1] = replace(of_sums[-1], skip=skip, emulated=by_hand)
            found = self._variants[variant] = list(map(interned, of_sums))
        return found


class _Taps(NamedTuple):
    """Taps or their gradients as the kernels take them."""

    tensors: tuple[Tensor, Tensor, Tensor]  # k, that of the negative lags, skip; any tensor where there is none
    numbers: tuple[int, ...]  # of taps on either side, where they begin, and strides


def taps_of(ring: Ring, k: Tensor | None, k_rev: Tensor | None, skip: Tensor | None) -> _Taps:
    """Lag d is tap centre + d of k, lag -m tap m - 1 of k_rev or, in mode "same", tap centre - m of k."""
    ahead = next(t for t in (k, k_rev, skip) if t is not None)
    stride_h, stride = (1, 1) if k is None else (k.stride(0), k.stride(1))
    behind, first, stride_revh, stride_rev = ahead, 0, stride_h, stride
    count = 0
    if k_rev is not None:
        behind, first, (stride_revh, stride_rev), count = k_rev, -k_rev.stride(1), k_rev.stride(), ring.lo
    elif k is not None and ring.centre:
        behind, first, stride_rev, count = k, ring.centre * stride, -stride, ring.lo
    numbers = (0 if k is None else ring.hi + 1, count, ring.centre * stride, first)
    strides = (stride_h, stride, stride_revh, stride_rev, 1 if skip is None else skip.stride(0))
    return _Taps((ahead, behind, ahead if skip is None else skip.resolve_neg()), (*numbers, *strides))


def constants(spec: SpectrumSpec, device: torch.device) -> list[Tensor]:
    """Matrices and twiddles of a kernel, in the order of its arguments."""
    back = spec.part.startswith("inverse")
    if spec.part.endswith("outer"):
        rest = spec.n1 * spec.n2
        return [matrix(spec.ring, spec.n0, rest, back, device), ring_twiddles(spec.ring, spec.n0, rest, device)]
    left = matrix(spec.ring, spec.n1, spec.n2, back, device)
    return [left, matrix("cyclic", spec.n2, 1, back, device), ring_twiddles(spec.ring, spec.n1, spec.n2, device)]


@lru_cache(maxsize=64)
def matrix(ring: str, radix: int, rest: int, transposed: bool, device: torch.device) -> Tensor:
    """(2, radix, radix) in float32: real and imaginary part of the unscaled DFT [k, n]; on the causal ring with the
    weights theta^(n rest), theta = exp(i pi / (2 radix rest))."""
    index = torch.arange(radix)
    f = roots_of_unity(torch.outer(index, index), radix)
    if ring == "causal":
        f = f * roots_of_unity(-index * rest, 4 * radix * rest)
    f = f.T if transposed else f
    return torch.stack([f.real, f.imag]).to(device, torch.float32).contiguous()

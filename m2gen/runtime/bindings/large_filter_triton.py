"""Filters on large rings by generated kernels: a launch for each outer stage and one for the rows that are left.

Rows (C, N) complex in float32, [row][real, imaginary part][point] in memory as the sums of the filter's gradient have
them: every outer stage works in place. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from m2gen.kernels.filter_pass import FilterPassSpec
from m2gen.planner.fftconv.large_filters import LargeFilterKernels
from m2gen.runtime.bindings.constants import pass_twiddles
from m2gen.runtime.bindings.filters import TORCH
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.spectrum_triton import constants, matrix, taps_of
from m2gen.runtime.build.triton_kernel import emulated, interned, launch


class GeneratedLargeFilters:
    """Spectra of some channels, and their gradients back to taps."""

    def __init__(self, ring: Ring, of: LargeFilterKernels, compute: str) -> None:
        """`compute`: of the kernel that reads the spectra, as it is launched."""
        self.ring, self.dtype = ring, TORCH[compute]
        rows, rows_back = of.on_chip
        self.passes, self.rows = [interned(one) for one in of.passes], interned(replace(rows, compute=compute))
        self.rows_back, self.back = interned(rows_back), of.back

    def spectrum(self, x: Operands, part: slice) -> tuple[Tensor, Tensor]:
        """kf (C, K, 2, M) of the channels `part` in the consumer's order, and the powers of two (C,) it was divided by,
        after which no bin passes 1."""
        k = x.k.resolve_neg()[part]
        k_rev, skip = (None if t is None else t.resolve_neg()[part] for t in (x.k_rev, x.skip))
        taps, rows, channels, device = taps_of(self.ring, k, k_rev, skip), self.rows, k.shape[0], k.device
        between = k.new_empty((channels, 2 * self.ring.size), dtype=torch.float32)
        moduli = between.new_empty((channels, *rows.bounds))
        count = channels
        for spec in self.passes:
            own = [*([] if spec.nested else taps.tensors), between, *([moduli] if spec.last else [])]
            numbers = () if spec.nested else taps.numbers
            launch(spec, count * spec.splits, *own, *_pass_constants(spec, device), *numbers)
            count *= spec.n0
        kf = x.k.new_empty((channels, rows.rows, 2, rows.size), dtype=self.dtype)
        scale = moduli.new_empty(channels)
        launch(rows, channels * rows.programs, between, moduli, kf, scale, *constants(rows, device))
        return kf, scale

    def write(self, sums: Tensor, part: slice, out: Gradients, order: tuple[int, ...]) -> None:
        """The gradients of the taps of the channels `part`, from sums (C K, 2, M) of spectra in the order of the kernel
        that wrote them, whose radices are `order`. The sums are written over."""
        k, k_rev = (None if t is None else t[part] for t in (out.k, out.k_rev))
        taps, device = taps_of(self.ring, k, k_rev, None), sums.device
        rows = interned(replace(self.rows_back, order=order))
        between = sums if rows.n0 == 1 else torch.empty_like(sums)  # one program reads a row and writes it, or several
        count = sums.shape[0] * rows.n0
        launch(rows, count, sums, between, *constants(rows, device), 1)
        by_hand = any(emulated(t.dtype) for t in taps.tensors[:2])
        for spec in self.back:
            count //= spec.n0
            if spec.nested:
                launch(interned(spec), count * spec.splits, between, *_pass_constants(spec, device))
                continue
            spec = interned(replace(spec, emulated=by_hand))
            own = [between, *taps.tensors[:2]]
            launch(spec, count * spec.splits, *own, *_pass_constants(spec, device), *taps.numbers[:-1])


def _pass_constants(spec: FilterPassSpec, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Matrix and twiddles of a pass."""
    rest = spec.n1 * spec.n2
    near, far = pass_twiddles(spec.ring, spec.n0, rest, spec.columns, device)
    return matrix(spec.ring, spec.n0, rest, spec.part == "inverse", device), near, far

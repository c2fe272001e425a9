"""Convolution by spectra, in chunks of channels: the computation behind the solvers `library` and `composed`.

Every mode is one convolution with lags -lo .. hi (`FftConvProblem.taps`): the taps are laid on a ring of the
transform's size, lag d at position d mod size, and what the ring wraps around falls outside the L outputs that are
kept. A circular problem done on a longer ring (`fold`) keeps the tail and adds it onto the head. Only a chunk's
temporaries exist at any time, so that they stay in cache; arithmetic is float32, or float64 for float64 tensors.

Conjugates are physical, never torch's lazy ones: inside an operator that a compiled graph calls, the lazy conjugate's
dispatch key is masked, and the conjugation would silently not happen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import SpectralConv
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.transforms import Dft, bind


@dataclass(frozen=True)
class Operands:
    """The tensors of one call: u, gates and add (B, H, L) with any strides, k and k_rev (H, K), skip (H,)."""

    u: Tensor
    k: Tensor
    k_rev: Tensor | None = None
    pre_gate: Tensor | None = None
    post_gate: Tensor | None = None
    skip: Tensor | None = None
    add: Tensor | None = None


@dataclass(frozen=True)
class Gradients:
    """Which gradients are wanted, and the tensors they are written to; None where one is not wanted."""

    u: Tensor | None = None
    k: Tensor | None = None
    k_rev: Tensor | None = None
    pre_gate: Tensor | None = None
    post_gate: Tensor | None = None
    skip: Tensor | None = None

    @property
    def filter(self) -> bool:
        return self.k is not None or self.k_rev is not None

    @property
    def input(self) -> bool:
        return self.u is not None or self.pre_gate is not None


class SpectralKernel:
    """One planned convolution, forward and backward."""

    def __init__(self, problem: FftConvProblem, step: SpectralConv) -> None:
        self.step, self.n, self.taps = step, problem.n, problem.taps
        self.ring = Ring(problem, step.transform.size)
        self.dft: Dft = bind(step.transform)

    def forward(self, x: Operands) -> Tensor:
        """y = post_gate * (conv(u * pre_gate, k) + skip * u * pre_gate) + add, laid out in memory like u."""
        y = torch.empty_like(x.u)
        for part in self._chunks(x.u):
            z = _gated(x.u, x.pre_gate, part)
            c = self._conv(self.dft.forward(z).mul_(self._filter_spectrum(x, part, z.dtype)), z, x.skip, part)
            if x.post_gate is not None:
                c *= x.post_gate[:, part]
            if x.add is not None:
                c += x.add[:, part]
            y[:, part] = c
        return y

    def backward(self, dy: Tensor, x: Operands, out: Gradients) -> None:
        """Fill the wanted gradients of <dy, forward(x)>; the forward's intermediates are computed again."""
        for part in self._chunks(x.u):
            z, dc = _gated(x.u, x.pre_gate, part), _gated(dy, x.post_gate, part)
            absent = z.new_empty(0)
            z_f = self.dft.forward(z) if out.filter or out.post_gate is not None else absent
            dc_f = self.dft.forward(self._unfold(dc)) if out.filter or out.input else absent
            kf = self._filter_spectrum(x, part, z.dtype) if out.input or out.post_gate is not None else absent
            if out.post_gate is not None:
                out.post_gate[:, part] = self._conv(z_f * kf, z, x.skip, part).mul_(dy[:, part])
            if out.input:
                dz = self.dft.inverse(dc_f * kf.conj_physical())[..., : self.n]
                _write_input_gradients(_with_skip(dz, dc, x.skip, part), x, part, out)
            if out.filter:
                taps = self.dft.inverse((dc_f * z_f.conj_physical()).sum(0))
                self.ring.write_gradients(taps, part, out.k, out.k_rev)
            if out.skip is not None:
                out.skip[part] = (z * dc).sum((0, 2))

    def _chunks(self, u: Tensor) -> Iterator[slice]:
        for start in range(0, u.shape[1], self.step.channels):
            yield slice(start, start + self.step.channels)

    def _filter_spectrum(self, x: Operands, part: slice, dtype: torch.dtype) -> Tensor:
        k = x.k[part].to(dtype)
        k_rev = None if x.k_rev is None else x.k_rev[part].to(dtype)
        return self.dft.forward(self.ring.place(k, k_rev))

    def _conv(self, spectrum: Tensor, z: Tensor, skip: Tensor | None, part: slice) -> Tensor:
        """conv(z, k) + skip * z from the product of the spectra; a tensor of its own."""
        full = self.dft.inverse(spectrum)
        if self.step.fold:
            tail = self.taps[1]
            full[..., :tail] += full[..., self.n : self.n + tail]
        return _with_skip(full[..., : self.n], z, skip, part)

    def _unfold(self, dc: Tensor) -> Tensor:
        """The adjoint of folding: the head repeats behind the tail."""
        return torch.cat([dc, dc[..., : self.taps[1]]], dim=-1) if self.step.fold else dc


def _gated(x: Tensor, gate: Tensor | None, part: slice) -> Tensor:
    """The chunk of x, times its gate, contiguous in the dtype of the arithmetic."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    z = x[:, part].to(dtype, memory_format=torch.contiguous_format)
    return z if gate is None else z * gate[:, part]


def _with_skip(c: Tensor, z: Tensor, skip: Tensor | None, part: slice) -> Tensor:
    """c + skip * z, in place."""
    return c if skip is None else c.addcmul_(z, skip[part].to(z.dtype).unsqueeze(-1))


def _write_input_gradients(dz: Tensor, x: Operands, part: slice, out: Gradients) -> None:
    if out.u is not None:
        out.u[:, part] = dz if x.pre_gate is None else dz * x.pre_gate[:, part]
    if out.pre_gate is not None:
        out.pre_gate[:, part] = dz * x.u[:, part]

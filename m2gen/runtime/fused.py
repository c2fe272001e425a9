"""The fused convolution: launches of generated kernels for the forward pass and every gradient.

The convolution's matrix is Toeplitz, so its transpose is the same kernel with time reversed, and every gradient but the
filter's is one launch of the forward kernel with other gates:

    y     = post * C(u * pre)          d post = dy   * C(u * pre)
    d u   = pre  * C'(dy * post)       d pre  = u    * C'(dy * post)

The skip is part of the filter's spectrum (an impulse at lag 0), so its gradient is that of the tap at lag 0.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.plan import FusedConv
from m2gen.planner.problem import Problem
from m2gen.runtime.constants import order2_matrices, ring_weights
from m2gen.runtime.ring import Ring
from m2gen.runtime.spectral import Gradients, Operands
from m2gen.runtime.triton_kernel import load

_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class FusedKernel:
    """One planned fused convolution, forward and backward."""

    def __init__(self, problem: Problem, step: FusedConv) -> None:
        self.spec, self.splits, self.n = step.spec, step.splits, problem.n
        self.ring = Ring(problem, step.spec.size)
        self.shift = problem.taps[1] if step.spec.wrap else 0

    def forward(self, x: Operands) -> Tensor:
        y = torch.empty_like(x.u)
        self._convolve(self.spec, x.u, x.pre_gate, x.post_gate, y, self._spectrum(x))
        return y

    def backward(self, dy: Tensor, x: Operands, out: Gradients) -> None:
        """Fill the wanted gradients; the forward's intermediates are computed again."""
        transpose = replace(self.spec, reverse=True, pre_gate=x.post_gate is not None)
        spectrum = self._spectrum(x) if out.input or out.post_gate is not None else None
        if out.u is not None and spectrum is not None:
            spec = replace(transpose, post_gate=x.pre_gate is not None)
            self._convolve(spec, dy, x.post_gate, x.pre_gate, out.u, spectrum)
        if out.pre_gate is not None and spectrum is not None:
            self._convolve(replace(transpose, post_gate=True), dy, x.post_gate, x.u, out.pre_gate, spectrum)
        if out.post_gate is not None and spectrum is not None:
            self._convolve(replace(self.spec, post_gate=True), x.u, x.pre_gate, dy, out.post_gate, spectrum)
        if out.filter or out.skip is not None:
            taps = self._filter_gradient(dy, x)
            self.ring.write_gradients(taps, slice(None), out.k, out.k_rev)
            if out.skip is not None:
                out.skip.copy_(taps[:, 0])

    def _spectrum(self, x: Operands) -> tuple[Tensor, Tensor]:
        """kf (H, 2, n1, n2) in the kernel's order and dtype, and the powers of two (H,) it was divided by.

        After that no bin exceeds 1, and with unitary transforms half precision overflows only where the sequence's own
        spectrum does.
        """
        spec = self.spec
        taps = self.ring.place(x.k.float(), None if x.k_rev is None else x.k_rev.float())
        weights = ring_weights(spec.ring, spec.size, taps.device)
        if weights is not None:
            taps = taps * weights[: taps.shape[-1]]
        kf = torch.fft.fft(taps, n=spec.size)
        if x.skip is not None:
            kf = kf + x.skip.float().unsqueeze(-1)
        kf = torch.view_as_real(kf.reshape(-1, spec.n2, spec.n1).mT).movedim(-1, 1)
        scale = torch.exp2(torch.frexp(kf.abs().amax((1, 2, 3)))[1] + 1.0)
        kf = (kf / scale.view(-1, 1, 1, 1)).to(_TORCH[spec.compute]).contiguous()
        return kf, scale.float()

    def _convolve(
        self,
        spec: FftConvSpec,
        u: Tensor,
        pre: Tensor | None,
        post: Tensor | None,
        y: Tensor,
        spectrum: tuple[Tensor, Tensor],
    ) -> None:
        pre, post, (kf, scale) = u if pre is None else pre, u if post is None else post, spectrum
        a1, b2, twiddle = order2_matrices(spec.ring, spec.n1, spec.n2, _TORCH[spec.compute], u.device)
        batch, channels, length = u.shape
        load(spec)[(channels * self.splits,)](
            u, pre, post, y, kf, scale, a1, b2, twiddle,
            batch, length, self.shift, self.splits,
            *u.stride(), *pre.stride(), *post.stride(), *y.stride(),
            num_warps=spec.num_warps, num_stages=spec.num_stages,
        )  # fmt: skip

    def _filter_gradient(self, dy: Tensor, x: Operands) -> Tensor:
        """The gradient of every tap of the ring (H, size), in float32."""
        spec = replace(
            self.spec, part="dk", pre_gate=x.pre_gate is not None, post_gate=x.post_gate is not None, reverse=False
        )
        batch, channels, length = x.u.shape
        pre, post = x.u if x.pre_gate is None else x.pre_gate, dy if x.post_gate is None else x.post_gate
        a1, b2, twiddle = order2_matrices(spec.ring, spec.n1, spec.n2, _TORCH[spec.compute], x.u.device)
        dkf = x.u.new_empty((channels, self.splits, 2, spec.n1, spec.n2), dtype=torch.float32)
        load(spec)[(channels * self.splits,)](
            x.u, pre, post, dy, dkf, a1, b2, twiddle,
            batch, length, self.shift, self.splits,
            *x.u.stride(), *pre.stride(), *post.stride(), *dy.stride(),
            num_warps=spec.num_warps, num_stages=spec.num_stages,
        )  # fmt: skip
        re, im = dkf.sum(1).mT.reshape(channels, 2, spec.size).unbind(1)
        taps = torch.fft.ifft(torch.complex(re.contiguous(), im.contiguous())) * spec.size
        weights = ring_weights(spec.ring, spec.size, taps.device)
        real: Tensor = (taps if weights is None else taps * weights.conj_physical()).real
        return real


def splits(batch: int, channels: int, rows: int, programs: int) -> int:
    """How many programs share a channel's tiles, so that about `programs` run."""
    tiles = math.ceil(batch / rows)
    return max(1, min(tiles, math.ceil(programs / channels)))

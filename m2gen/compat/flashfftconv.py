"""`FlashFFTConv` and `FlashDepthWiseConv1d` of flash-fft-conv, by m2gen's operators: same constructors and calls.

What differs from the original, beside speed and rounding:

- any length, any channels, any batch; float32 and float64, too; any strides; any device; one gate without the other
- float16 and bfloat16 filters are taken, and what is computed is differentiable to any order and by `torch.func`
- there are no buffers: a checkpoint that has the original's loads, and they are left out
- `FlashDepthWiseConv1d` loads and saves its parameters as any module does, where the original does nothing
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.ops.depthwise_conv1d import depthwise_conv1d
from m2gen.ops.fftconv import fftconv


class FlashFFTConv(nn.Module):
    """y = (circular convolution of u * pregate, padded to `seqlen`, with k, padded to `seqlen`)[..., :L] * postgate.

    With seqlen = 2 L and k of at most L taps that is the causal convolution; with L = seqlen the circular one. It is
    planned as what it is: nothing is padded, and there is no transform of `seqlen` points unless that is the quickest.

    Args:
        seqlen: size of the FFT, any number (the original has 15 sizes).
        dtype: of the original's kernels; u is computed in its own dtype here.
        use_32_butterfly: of no meaning here.

    Source: FlashFFTConv (arXiv 2311.05908), section 3.
    """

    def __init__(self, seqlen: int, dtype: torch.dtype = torch.float16, use_32_butterfly: bool = True) -> None:
        super().__init__()
        if not isinstance(seqlen, int) or isinstance(seqlen, bool) or seqlen < 1:
            raise ProblemError(f"FlashFFTConv(seqlen={seqlen!r})", "an FFT has at least one point", "give its size")
        self.seqlen, self.dtype, self.use_32_butterfly = seqlen, dtype, use_32_butterfly

    def forward(self, u: Tensor, k: Tensor, pregate: Tensor | None = None, postgate: Tensor | None = None) -> Tensor:
        """u, pregate, postgate (B, H, L), L at most seqlen; k (H, K) or (1, H, K), of which `seqlen` taps count -> y
        like u.

        Raises ProblemError for shapes that do not fit together.
        """
        length, size = u.shape[-1], self.seqlen
        if length > size:
            raise ProblemError(
                f"FlashFFTConv({size}) of {length} samples",
                "the FFT is shorter than the input, which would be cut off",
                f"make it FlashFFTConv({length}) for a circular, FlashFFTConv({2 * length}) for a causal convolution",
            )
        k = k[0] if k.dim() == 3 and k.shape[0] == 1 else k
        k = k[..., :size]
        if length == size:
            return fftconv(u, k, mode="circular", pre_gate=pregate, post_gate=postgate)
        # tap j is lag j, and lag j - seqlen, too: of the first the first L reach a result, of the others the last L - 1
        gates: dict[str, Any] = {"pre_gate": pregate, "post_gate": postgate}
        if k.shape[-1] <= size - length + 1:
            return fftconv(u, k[..., :length], mode="causal", **gates)
        ahead = F.pad(k, (0, size - k.shape[-1]))[..., size - length + 1 :].flip(-1)  # lags -1, -2, .. -(L - 1)
        taps = F.pad(k[..., :length], (0, max(0, length - k.shape[-1])))
        return fftconv(u, taps, mode="bidirectional", k_rev=F.pad(ahead, (0, 1)), **gates)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """The original's constants, which it keeps as buffers, are left out."""
        for name in [name for name in state_dict if name.startswith(prefix)]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.seqlen}, dtype={self.dtype}"


class FlashDepthWiseConv1d(nn.Module):
    """A depthwise convolution with short filters, as `torch.nn.Conv1d(channels, channels, kernel_size, groups=channels,
    padding=padding)`.

    Args:
        channels, kernel_size: as of `weights`.
        padding: zeros on each side; (kernel_size - 1) // 2 keeps the length, kernel_size - 1 and the first L results
            are causal.
        weights: of a Conv1d (channels, 1, kernel_size), or (channels, kernel_size).
        bias: (channels,).
        is_bhl: inputs are (B, channels, L), or (B, L, channels).
        device, dtype: of the parameters; by default those of `weights` and `bias`.

    The parameter `weights` is (channels, kernel_size), or (kernel_size, channels) where `is_bhl` is False, as in the
    original.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        padding: int,
        weights: Tensor,
        bias: Tensor,
        is_bhl: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        asked = f"FlashDepthWiseConv1d(channels={channels}, kernel_size={kernel_size})"
        if weights.numel() != channels * kernel_size or weights.shape[0] != channels or bias.shape != (channels,):
            raise ProblemError(
                asked,
                f"weights are {tuple(weights.shape)} and bias is {tuple(bias.shape)}",
                f"give weights ({channels}, 1, {kernel_size}), as a Conv1d with groups={channels} has, and its bias",
            )
        self.d, self.k, self.padding, self.is_bhl = channels, kernel_size, padding, is_bhl
        taps = weights.detach().reshape(channels, kernel_size)
        taps = taps if is_bhl else taps.T
        self.weights = nn.Parameter(taps.to(device, dtype, copy=True).contiguous())
        self.bias = nn.Parameter(bias.detach().to(device, dtype, copy=True))

    def forward(self, input: Tensor) -> Tensor:
        """input (B, channels, L) -> (B, channels, L + 2 padding - kernel_size + 1), or the same with channels last.

        Of another dtype than the parameters' they are rounded to it, and so is the result, as under autocast.
        """
        weight = self.weights if self.is_bhl else self.weights.T
        layout = "BHL" if self.is_bhl else "BLH"
        return depthwise_conv1d(
            input, weight.to(input.dtype), self.bias.to(input.dtype), padding=self.padding, layout=layout
        )

    def extra_repr(self) -> str:
        return f"{self.d}, {self.k}, padding={self.padding}, is_bhl={self.is_bhl}"

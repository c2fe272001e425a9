"""The result of a long convolution and its gradients by FFT in float64, and how far a kernel may be from them.

tests/ops holds the FFT against the direct sum; here it is quick, on any device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NAMES = ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")  # those with gradients to compute: add's is the result's
# relative l2 of the whole result; a bfloat16 tensor rounds at 1.65e-3 by itself
BOUND = {"fp16": 1e-3, "bf16": 3e-3, "fp32": 1e-5, "fp64": 1e-12}
STAGED = 1.5  # times the bound, for kernels with an outer stage through memory
NESTED = 2.0  # and with several


def exact(args: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The float64 result (B, H, L), and the float64 leaves that it was computed from by their names, add not among
    them."""
    leaves = {n: args[n].detach().double().requires_grad_() for n in NAMES if args.get(n) is not None}
    k, n = leaves["k"], args["u"].shape[-1]
    z = leaves["u"] * leaves.get("pre_gate", 1.0)
    mode = args["mode"]
    if mode == "circular":
        size, ring = n, k
    else:
        size = 2 * n + 2 * k.shape[1]
        first = (k.shape[1] - 1) // 2 if mode == "same" else 0
        ring = torch.nn.functional.pad(k, (0, size - k.shape[1])).roll(-first, -1)
        if mode == "bidirectional":
            rev = leaves["k_rev"]
            ring = ring + torch.nn.functional.pad(rev.flip(-1), (size - rev.shape[1], 0))
    y = torch.fft.irfft(torch.fft.rfft(z, n=size) * torch.fft.rfft(ring, n=size), n=size)[..., :n]
    if "skip" in leaves:
        y = y + leaves["skip"].unsqueeze(-1) * z
    y = y * leaves.get("post_gate", 1.0)
    return (y + args["add"].double() if args.get("add") is not None else y), leaves


def relative(found: Tensor, expected: Tensor) -> float:
    """The l2 norm of the error over that of what was expected."""
    return float((found.double() - expected.detach()).norm() / expected.detach().norm().clamp_min(1e-30))

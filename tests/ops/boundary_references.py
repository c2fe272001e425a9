"""What each operator computes, in float64; with `magnitudes` of sizes, its activation one that bounds all others."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.reference import fftconv as oracle

ACTIVATIONS: dict[str | None, Any] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, None: lambda x: x}


def fftconv(
    u: Tensor, k: Tensor, k_rev: Any, pre: Any, post: Any, skip: Any, mode: str, precision: str, add: Any,
    magnitudes: bool,
) -> Tensor:  # fmt: skip
    if u.numel() == 0:
        return u * 1
    return oracle.fftconv(u, k, mode=mode, k_rev=k_rev, pre_gate=pre, post_gate=post, skip=skip, add=add)


def gradients(y: Tensor, inputs: list[Any], dy: Tensor, needs: list[bool]) -> tuple[Tensor, ...]:
    wanted = [x for x, need in zip(inputs, needs, strict=True) if need and x is not None]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True) if wanted else ())
    return tuple(
        next(found) if need and x is not None else y.new_empty(0) for x, need in zip(inputs, needs, strict=True)
    )


def fftconv_bwd(dy: Tensor, *args: Any, magnitudes: bool) -> tuple[Tensor, ...]:
    *inputs, mode, precision, needs = args
    return gradients(fftconv(*inputs, mode, precision, None, magnitudes), inputs, dy, needs)


def fftconv_dk(z: Tensor, dc: Tensor, length: int, mode: str, precision: str, magnitudes: bool) -> Tensor:
    both = mode == "bidirectional"
    taps = z.new_zeros(2 if both else 1, z.shape[1], length).requires_grad_()
    y = fftconv(z, taps[0], taps[1] if both else None, None, None, None, mode, precision, None, magnitudes)
    return gradients(y, [taps], dc, [True])[0]


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Any, left: int, right: int, magnitudes: bool) -> Tensor:
    padded = F.pad(x, (int(left), int(right)))
    length = padded.shape[2] - weight.shape[1] + 1
    y = sum(weight[:, w, None] * padded[..., w : w + length] for w in range(weight.shape[1]))
    return y if bias is None else y + bias.unsqueeze(-1)


def depthwise_conv1d_dw(x: Tensor, dy: Tensor, width: int, left: int, right: int, magnitudes: bool) -> Tensor:
    padded = F.pad(x, (int(left), int(right)))
    sums = [(padded[..., w : w + dy.shape[2]] * dy).sum((0, 2)) for w in range(width)]
    return torch.stack([*sums, dy.sum((0, 2))], 1)


def gated_depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Any, last: bool, offset: Any, mask: Any, magnitudes: bool
) -> tuple[Tensor, Tensor]:
    x = x if offset is None else x + offset[:, None]
    there = torch.ones(()) if mask is None else mask[:, None]
    x1, x2, v = depthwise_conv1d(x * there, weight, bias, weight.shape[1] - 1, 0, magnitudes).chunk(3, 1)
    return x1 * v * there, x2


def gated_depthwise_conv1d_bwd(
    dz: Tensor, dg: Tensor, x: Tensor, weight: Tensor, bias: Any, offset: Any, mask: Any, needs: list[bool],
    magnitudes: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    results = torch.stack(gated_depthwise_conv1d(x, weight, bias, False, offset, mask, magnitudes))
    return gradients(results, [x, weight, bias, offset], torch.stack([dz, dg]), needs)


def turn(x: Tensor, first: bool, magnitudes: bool) -> Tensor:
    return x.transpose(1, 2)


def blockdiag_linear(x: Tensor, weight: Tensor, bias: Any, residual: Any, magnitudes: bool) -> Tensor:
    blocks = x.unflatten(-1, (weight.shape[0], weight.shape[2]))
    y = torch.einsum("...bi,boi->...bo", blocks, weight).flatten(-2)
    y = y if bias is None else y + bias
    return y if residual is None else y + residual


def blockdiag_epilogue(
    x: Tensor, weight: Tensor, bias: Any, residual: Any, activation: str | None, glu: bool, magnitudes: bool
) -> Tensor:
    z = blockdiag_linear(x, weight, bias, None, magnitudes)
    y = z + z.square() if magnitudes else ACTIVATIONS[activation](z)
    y = gated(z, activation, magnitudes) if glu else y
    return y if residual is None else y + residual


def blockdiag_epilogue_bwd(dy: Tensor, *args: Any, magnitudes: bool) -> tuple[Tensor, ...]:
    *inputs, activation, glu, needs = args
    return gradients(blockdiag_epilogue(*inputs, None, activation, glu, magnitudes), inputs, dy, needs)


def blockdiag_outer(dy: Tensor, x: Tensor, nblocks: int, magnitudes: bool) -> Tensor:
    parts = [t.reshape(t.shape[0], nblocks, t.shape[1] // nblocks) for t in (dy, x)]
    return torch.einsum("rcn,rck->cnk", *parts)


def gated(z: Tensor, activation: str | None, magnitudes: bool) -> Tensor:
    gate, value = z.chunk(2, -1)
    return (gate + gate.square() if magnitudes else ACTIVATIONS[activation](gate)) * value


def gated_bwd(dy: Tensor, z: Tensor, activation: str | None, magnitudes: bool) -> Tensor:
    return gradients(gated(z, activation, magnitudes), [z], dy, [True])[0]


def monarch_matmul(x: Tensor, factors: list[Tensor], magnitudes: bool) -> Tensor:
    """Stage by stage: the vector as (A, block_in, C), block_in moved last, each block times its matrix, transposed."""
    width = factors[0].shape[0]
    for i, factor in enumerate(factors):
        nblocks, _, block_in = factor.shape
        if len(factors) > 1:
            width = nblocks if i == 0 else _product(f.shape[2] for f in factors[i + 1 :])
            x = x.unflatten(-1, (nblocks // max(1, width), block_in, width)).transpose(-1, -2)
            x = x.reshape(*x.shape[:-3], nblocks * block_in)
        y = blockdiag_linear(x, factor, None, None, magnitudes)
        x = y.unflatten(-1, (nblocks, factor.shape[1])).transpose(-1, -2).flatten(-2) if len(factors) > 1 else y
    return x


def monarch_backward(
    dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool], magnitudes: bool
) -> tuple[Tensor, ...]:
    return gradients(monarch_matmul(x, factors, magnitudes), [x, *factors], dy, needs)


def _product(numbers: Any) -> int:
    found = 1
    for number in numbers:
        found *= number
    return found


REFERENCES = {
    function.__name__: function
    for function in (
        fftconv, fftconv_bwd, fftconv_dk, depthwise_conv1d, depthwise_conv1d_dw, blockdiag_linear, blockdiag_epilogue,
        blockdiag_epilogue_bwd, blockdiag_outer, gated, gated_bwd, gated_depthwise_conv1d, gated_depthwise_conv1d_bwd,
        monarch_matmul, monarch_backward, turn,
    )
}  # fmt: skip

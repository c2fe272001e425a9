"""gated: activation(first half) * second half, the gate of a gated linear unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, forward_mode, register
from m2gen.runtime import executor
from m2gen.runtime.bindings import gate


def silu(z: Tensor) -> Tensor:
    """z sigmoid(z). PyTorch cannot differentiate its own one's gradient in forward mode."""
    return z * z.sigmoid() if forward_mode() else F.silu(z)


ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {**gate.ACTIVATIONS, "silu": silu}


def gated(z: Tensor, activation: str | None) -> Tensor:
    """z (..., 2 n) floating -> activation(z[..., :n]) * z[..., n:], dtype as z; activation of ACTIVATIONS or None.

    On a CPU one generated kernel forward and one backward; in 16 bits the result is rounded once. Elsewhere two
    elementwise operators, which a compiler fuses. Differentiable to any order. Source: Monarch Mixer (arXiv
    2310.12109), the gated dimension mixer of M2-BERT.
    """
    if isinstance(z, Tensor) and z.device.type == "cpu" and not torch.compiler.is_compiling():
        y: Tensor = gated_op(z, activation)
        return y
    operands.gated(z, activation)
    return gated_op(z, activation) if z.device.type == "cpu" else by_steps(z, activation)


def by_steps(z: Tensor, activation: str | None) -> Tensor:
    """The same as plain differentiable torch."""
    half, value = z.chunk(2, dim=-1)
    return ACTIVATIONS[activation](half) * value


def through(z: Tensor, change: Tensor, activation: str | None) -> Tensor:
    """change * activation'(z), by differentiable operators, in 16 bits rounded once."""
    found: Tensor = _through(_wide(z), _wide(change), activation).to(z.dtype)
    return found


def _through(half: Tensor, change: Tensor, activation: str | None) -> Tensor:
    """change * activation'(half), by PyTorch's own differentiable operators."""
    if activation is None:
        return change
    if activation == "relu":
        return change * (half > 0)
    if activation == "silu":
        below = half.sigmoid()
        return change * below * (1 + half * (1 - below))
    through: Tensor = torch.ops.aten.gelu_backward(change, half)
    return through


def _impl(z: Tensor, activation: str | None) -> Tensor:
    return executor.gated(z, activation) if z.numel() else by_steps(z, activation).contiguous()


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    return [gated_bwd_op(dy, *args), None]


def tangent(z: Tensor, dz: Tensor, activation: str | None) -> Tensor:
    """That of `gated`'s result, given that of z, by differentiable operators."""
    half, value = _wide(z).chunk(2, dim=-1)
    dhalf, dvalue = _wide(dz).chunk(2, dim=-1)
    found: Tensor = _through(half, dhalf * value, activation) + ACTIVATIONS[activation](half) * dvalue
    return found.to(z.dtype)


def _bwd_composed(dy: Tensor, z: Tensor, activation: str | None) -> Tensor:
    half, value = _wide(z).chunk(2, dim=-1)
    dy = _wide(dy)
    return torch.cat([_through(half, dy * value, activation), dy * ACTIVATIONS[activation](half)], -1).to(z.dtype)


def _wide(x: Tensor) -> Tensor:
    """For products of 16-bit numbers, which are not rounded, or lost, in between."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _bwd_impl(dy: Tensor, z: Tensor, activation: str | None) -> Tensor:
    found = executor.gate_gradient(dy, z, activation) if z.numel() else None
    return _bwd_composed(dy, z, activation) if found is None else found


gated_op: Any = register(
    Definition(
        schema="gated(Tensor z, str? activation) -> Tensor",
        check=operands.gated,
        impl=_impl,
        fake=lambda z, activation: z.new_empty((*z.shape[:-1], z.shape[-1] // 2)),
        vjp=_vjp,
        jvp=lambda args, tangents: tangent(args[0], tangents[0], args[1]),
        vmap=lambda info, dims, z, activation: (gated_op(z.movedim(dims[0], 0), activation), 0),
    )
)


def _bwd_vmap(info: Any, dims: tuple[Any, ...], dy: Tensor, z: Tensor, activation: str | None) -> tuple[Tensor, int]:
    pairs = ((dy, dims[0]), (z, dims[1]))
    dy, z = (t.expand(info.batch_size, *t.shape) if d is None else t.movedim(d, 0) for t, d in pairs)
    return gated_bwd_op(dy, z, activation), 0


gated_bwd_op: Any = register(
    Definition(
        schema="gated_bwd(Tensor dy, Tensor z, str? activation) -> Tensor",
        check=operands.gated_bwd,
        impl=_bwd_impl,
        fake=lambda dy, z, activation: z.new_empty(z.shape),
        composed=_bwd_composed,
        vmap=_bwd_vmap,
    )
)

"""What is done to an argument: a harmless change of how its numbers lie in memory, or one that spoils it."""

from __future__ import annotations

from typing import Any

import torch
from boundary_arguments import Draw
from torch import Tensor


class Tagged(Tensor):
    """A subclass without a meaning of its own."""


def first_tensor(change: Any) -> Any:
    """Of a list of tensors, one is changed."""

    def changed(draw: Draw, arg: Any) -> Any:
        if isinstance(arg, list) and arg and isinstance(arg[0], Tensor):
            i = draw.one(range(len(arg)))
            return [*arg[:i], change(draw, arg[i]), *arg[i + 1 :]]
        return change(draw, arg) if isinstance(arg, Tensor) else other_value(draw, arg)

    return changed


def expanded(draw: Draw, x: Tensor) -> Tensor:
    if x.dim() == 0 or x.shape[0] == 0:
        return x
    dim = draw.one(range(x.dim()))
    return x.narrow(dim, 0, min(1, x.shape[dim])).expand(x.shape) if x.shape[dim] else x


def overlapping(draw: Draw, x: Tensor) -> Tensor:
    """Neighbouring rows share memory."""
    if x.dim() < 2 or x.numel() == 0:
        return x
    sizes, strides = list(x.shape), [1] * x.dim()
    return x.contiguous().view(-1).as_strided(sizes, strides)


def stepping(draw: Draw, x: Tensor) -> Tensor:
    return torch.stack([x, torch.full_like(x, torch.nan)], -1).flatten(-2)[..., ::2] if x.dim() else x


def turned(draw: Draw, x: Tensor) -> Tensor:
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() else x


def offset(draw: Draw, x: Tensor) -> Tensor:
    padded = torch.full((x.numel() + 7,), torch.nan, dtype=x.dtype)
    return padded[3 : 3 + x.numel()].copy_(x.reshape(-1)).view(x.shape)


def backwards(draw: Draw, x: Tensor) -> Tensor:
    return x.flip(-1) if x.dim() else x


def negative(draw: Draw, x: Tensor) -> Tensor:
    return torch._neg_view(x) if x.is_floating_point() else x


def imaginary(draw: Draw, x: Tensor) -> Tensor:
    """The imaginary part of a conjugate: strided and lazily negative at once."""
    if x.dtype not in (torch.float32, torch.float64):
        return negative(draw, x)
    return torch.complex(torch.full_like(x, torch.nan), x).conj().imag


def tagged(draw: Draw, x: Tensor) -> Tensor:
    return x.as_subclass(Tagged)


def parameter(draw: Draw, x: Tensor) -> Tensor:
    return torch.nn.Parameter(x.detach(), requires_grad=False)


def inference(draw: Draw, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def zero_tensor(draw: Draw, x: Tensor) -> Tensor:
    return torch._efficientzerotensor(x.shape, dtype=x.dtype)


def dtype(draw: Draw, x: Tensor) -> Tensor:
    kinds = (
        "float32",
        "float64",
        "bfloat16",
        "float16",
        "int32",
        "int64",
        "bool",
        "uint8",
        "complex64",
        "float8_e4m3fn",
    )
    return x.to(getattr(torch, draw.one(kinds)))


def rank(draw: Draw, x: Tensor) -> Tensor:
    return draw.one([lambda: x.unsqueeze(0), lambda: x.flatten(), lambda: x.new_ones(()), lambda: x.unsqueeze(-1)])()


def shape(draw: Draw, x: Tensor) -> Tensor:
    if x.dim() == 0:
        return x.new_zeros(2)
    dim, size = draw.one(range(x.dim())), draw.one([0, 1, 2, 7])
    return x.new_ones([size if i == dim else n for i, n in enumerate(x.shape)])


def meta(draw: Draw, x: Tensor) -> Tensor:
    return x.to("meta")


def layout(draw: Draw, x: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.numel() and 0 < x.dim() < 5 and draw.chance(0.5):
        return x.contiguous().to_mkldnn()
    return x.to_sparse()


def nested(draw: Draw, x: Tensor) -> Tensor:
    return torch.nested.nested_tensor([x, x]) if x.dim() else x.to_sparse()


def freed(draw: Draw, x: Tensor) -> Tensor:
    """Its storage was taken away, in whole or in part."""
    x = x.clone()
    size = x.untyped_storage().nbytes()
    x.untyped_storage().resize_(draw.one([0, size // 2]))
    return x


def beyond(draw: Draw, x: Tensor) -> Tensor:
    """Strides that reach beyond a storage that shrank."""
    wide = torch.stack([x, x], -1).flatten(-2)[..., ::2] if x.dim() else x.clone()
    wide.untyped_storage().resize_(wide.untyped_storage().nbytes() // 2)
    return wide


def other_value(draw: Draw, arg: Any) -> Any:
    if isinstance(arg, str):
        return draw.one(["cyclic", "", "CAUSAL", "fp8", None, 3, "causal", "same", "gelu", b"causal"])
    if isinstance(arg, bool | int):
        return draw.one([-1, 0, 1, 2, 3, 7, 100, -(2**40), 2**62, None, 1.5, "2", True])
    if isinstance(arg, list):
        return draw.one([[], [True], [False] * 6, [True] * 7, None, [None], "no", [1.0], arg + arg])
    return draw.one([None, 3, "x", [1.0], [torch.ones(2)], torch.ones(2), torch.ones(2, 5), 2.5])


HARMLESS = {
    function.__name__: first_tensor(function)
    for function in (
        expanded, overlapping, stepping, turned, offset, backwards, negative, imaginary, tagged, parameter, inference,
        zero_tensor,
    )
}  # fmt: skip
SPOILERS = {
    function.__name__: first_tensor(function) for function in (dtype, rank, shape, meta, layout, nested, freed, beyond)
} | {"other_value": other_value}

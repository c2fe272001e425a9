"""Arguments that each operator takes, of random sizes, few enough that kernels are compiled once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MODES = ("causal", "bidirectional", "same", "circular")
ACTIVATIONS = ("gelu", "relu", "silu", None)
CAST = {
    "fftconv": (0, 3, 4, 8),
    "blockdiag_linear": (0, 1, 2, 3),
    "blockdiag_epilogue": (0, 1, 2, 3),
    "monarch_matmul": (0, 1),
    "depthwise_conv1d": (0, 1, 2),
    "gated_depthwise_conv1d": (0, 1, 2, 4),
    "turn": (0,),
}


class Draw:
    def __init__(self, source: random.Random) -> None:
        self.source = source

    def one(self, of: Sequence[T]) -> T:
        return self.source.choice(of)

    def chance(self, of: float) -> bool:
        return self.source.random() < of

    def size(self, *usual: int) -> int:
        return 0 if self.chance(0.03) else self.one(usual)

    def tensor(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    def maybe(self, *shape: int, dtype: torch.dtype) -> Tensor | None:
        return self.tensor(*shape, dtype=dtype) if self.chance(0.5) else None


def operands(draw: Draw) -> tuple[list[Any], str, str]:
    """u, k, k_rev, pre_gate, post_gate, skip of a convolution, its mode and precision."""
    dtype, mode, length = draw.one(DTYPES), draw.one(MODES), draw.size(6, 24)
    mode = mode if length else "causal"
    shape = draw.size(1, 3), draw.size(2, 20), length
    filters = draw.one([dtype, torch.float32, torch.float64, torch.bfloat16])
    taps = {"same": 5, "circular": max(1, length - 2)}.get(mode, draw.one([1, 5, 24, 30]))
    found: list[Any] = [draw.tensor(*shape, dtype=dtype), draw.tensor(shape[1], taps, dtype=filters)]
    found.append(draw.tensor(shape[1], taps, dtype=filters) if mode == "bidirectional" else None)
    found += [draw.maybe(*shape, dtype=dtype), draw.maybe(*shape, dtype=dtype), draw.maybe(shape[1], dtype=filters)]
    return found, mode, draw.one(["auto", "wide"])


def fftconv(draw: Draw) -> list[Any]:
    found, *rest = operands(draw)
    return [*found, *rest, draw.maybe(*found[0].shape, dtype=found[0].dtype)]


def fftconv_bwd(draw: Draw) -> list[Any]:
    found, *rest = operands(draw)
    dy = draw.tensor(*found[0].shape, dtype=found[0].dtype)
    return [dy, *found, *rest, [draw.chance(0.7) for _ in found]]


def fftconv_dk(draw: Draw) -> list[Any]:
    (z, k, *_), mode, precision = operands(draw)
    return [z, draw.tensor(*z.shape, dtype=z.dtype), k.shape[1], mode, precision]


def pads(draw: Draw, length: int, width: int) -> tuple[int, int]:
    left = draw.one([width - 1, (width - 1) // 2, 0, 1, 9, -1 if length else 0])
    right = draw.one([width - 1 - left if left < width else 0, left, 0])
    return (left, right) if length + left + right >= width - 1 and right >= -length else (width - 1, 0)


def depthwise_conv1d(draw: Draw) -> list[Any]:
    dtype, width = draw.one(DTYPES), draw.one([1, 4])
    x = draw.tensor(draw.size(1, 3), draw.size(2, 20), draw.size(5, 40), dtype=dtype)
    bias = draw.maybe(x.shape[1], dtype=dtype)
    return [x, draw.tensor(x.shape[1], width, dtype=dtype), bias, *pads(draw, x.shape[2], width)]


def depthwise_conv1d_dw(draw: Draw) -> list[Any]:
    x, weight, _, left, right = depthwise_conv1d(draw)
    width = weight.shape[1]
    dy = draw.tensor(x.shape[0], x.shape[1], x.shape[2] + left + right - width + 1, dtype=x.dtype)
    return [x, dy, width, left, right]


def streams(draw: Draw) -> list[Any]:
    dtype, width = draw.one(DTYPES), draw.one([1, 4])
    x = draw.tensor(draw.size(1, 3), 3 * draw.size(2, 20), draw.size(5, 40), dtype=dtype)
    return [x, draw.tensor(x.shape[1], width, dtype=dtype), draw.maybe(x.shape[1], dtype=dtype)]


def heard(draw: Draw, x: Tensor) -> list[Any]:
    """Offset and mask."""
    mask = torch.rand(x.shape[0], x.shape[2]) < 0.7
    return [draw.maybe(x.shape[1], dtype=x.dtype), mask if draw.chance(0.5) else None]


def gated_depthwise_conv1d(draw: Draw) -> list[Any]:
    x, *filters = streams(draw)
    return [x, *filters, draw.chance(0.5), *heard(draw, x)]


def gated_depthwise_conv1d_bwd(draw: Draw) -> list[Any]:
    x, *filters = streams(draw)
    grads = [draw.tensor(x.shape[0], x.shape[1] // 3, x.shape[2], dtype=x.dtype) for _ in range(2)]
    return [*grads, x, *filters, *heard(draw, x), [draw.chance(0.7) for _ in range(4)]]


def turn(draw: Draw) -> list[Any]:
    x = draw.tensor(draw.size(1, 3), draw.size(5, 40), draw.size(2, 20), dtype=draw.one(DTYPES))
    return [x, draw.chance(0.5)]


def rows(draw: Draw) -> tuple[int, ...]:
    return draw.one([(), (3,), (30,), (2, 15), (0,), (3, 0), (1, 2, 3)])


def blockdiag_linear(draw: Draw, nblocks: Sequence[int] = (1, 2, 4), halves: int = 1) -> list[Any]:
    dtype, many, out, into = draw.one(DTYPES), draw.size(*nblocks), draw.size(2, 16), draw.size(3, 20)
    above = rows(draw)
    x, weight = draw.tensor(*above, many * into, dtype=dtype), draw.tensor(many, out, into, dtype=dtype)
    return [x, weight, draw.maybe(many * out, dtype=dtype), draw.maybe(*above, many * out // halves, dtype=dtype)]


def blockdiag_epilogue(draw: Draw) -> list[Any]:
    glu = draw.chance(0.5)
    return [*(blockdiag_linear(draw, (2, 4), 2) if glu else blockdiag_linear(draw)), draw.one(ACTIVATIONS), glu]


def blockdiag_epilogue_bwd(draw: Draw) -> list[Any]:
    x, weight, bias, _, activation, glu = blockdiag_epilogue(draw)
    dy = draw.tensor(*x.shape[:-1], weight.shape[0] * weight.shape[1] // (2 if glu else 1), dtype=x.dtype)
    return [dy, x, weight, bias, activation, glu, [draw.chance(0.7) for _ in range(3)]]


def blockdiag_outer(draw: Draw) -> list[Any]:
    dtype, nblocks, many = draw.one(DTYPES), draw.one([1, 2]), draw.size(3, 30)
    dy, x = (draw.tensor(many, nblocks * draw.size(3, 16), dtype=dtype) for _ in range(2))
    return [dy, x, nblocks]


def gated(draw: Draw) -> list[Any]:
    return [draw.tensor(*rows(draw), 2 * draw.size(3, 16, 33), dtype=draw.one(DTYPES)), draw.one(ACTIVATIONS)]


def gated_bwd(draw: Draw) -> list[Any]:
    z, activation = gated(draw)
    return [draw.tensor(*z.shape[:-1], z.shape[-1] // 2, dtype=z.dtype), z, activation]


def monarch_matmul(draw: Draw) -> list[Any]:
    dtype = draw.one(DTYPES)
    shapes = draw.one(
        [[(2, 4, 3)], [(2, 4, 3), (4, 2, 2)], [(6, 2, 2), (4, 3, 3), (6, 2, 2)], [(0, 2, 2)], [(2, 0, 3), (4, 2, 0)]]
    )
    x = draw.tensor(*rows(draw), shapes[0][0] * shapes[0][2], dtype=dtype)
    return [x, [draw.tensor(*shape, dtype=dtype) for shape in shapes]]


def monarch_backward(draw: Draw) -> list[Any]:
    x, factors = monarch_matmul(draw)
    last = factors[-1]
    dy = draw.tensor(*x.shape[:-1], last.shape[0] * last.shape[1], dtype=x.dtype)
    return [dy, x, factors, [draw.chance(0.7) for _ in range(1 + len(factors))]]


BUILDERS = {
    function.__name__: function
    for function in (
        fftconv, fftconv_bwd, fftconv_dk, depthwise_conv1d, depthwise_conv1d_dw, blockdiag_linear, blockdiag_epilogue,
        blockdiag_epilogue_bwd, blockdiag_outer, gated, gated_bwd, gated_depthwise_conv1d, gated_depthwise_conv1d_bwd,
        monarch_matmul, monarch_backward, turn,
    )
}  # fmt: skip

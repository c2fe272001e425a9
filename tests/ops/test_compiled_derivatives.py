"""Derivatives of transforms that are compiled: graphs enter functorch's levels in ways of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev

import m2gen

TRANSFORMS = {"jacfwd": jacfwd, "hessian": hessian, "grad": grad, "jacrev of grad": lambda f: jacrev(grad(f))}
OPS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "fftconv": (lambda k: m2gen.fftconv(torch.arange(30.0).view(2, 3, 5), k), (3, 5)),
    "fftconv add": (lambda k: m2gen.fftconv(torch.arange(30.0).view(2, 3, 5), k, add=(k * k).expand(2, 3, 5)), (3, 5)),
    "fftconv nothing but add": (
        lambda a: m2gen.fftconv(torch.arange(30.0).view(2, 3, 5), torch.ones(3, 5), add=a.expand(2, 3, 5)),
        (3, 5),
    ),
    "depthwise_conv1d": (lambda w: m2gen.depthwise_conv1d(torch.arange(30.0).view(2, 3, 5), w), (3, 2)),
    "blockdiag_linear": (lambda w: m2gen.blockdiag_linear(torch.arange(24.0).view(4, 6), w), (2, 3, 3)),
    "blockdiag_linear residual": (
        lambda w: m2gen.blockdiag_linear(
            torch.arange(24.0).view(4, 6), w, None, "silu", (w * w).view(3, 6)[[0, 1, 2, 0]]
        ),
        (2, 3, 3),
    ),
    "monarch_matmul": (lambda w: m2gen.monarch_matmul(torch.arange(16.0).view(4, 4), [w, w]), (2, 2, 2)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("op", OPS)
def test_compiled_transforms_equal_eager_ones(op: str, transform: str) -> None:
    """Forward-mode derivatives above all: a tangent that is lost leaves the other term's alone."""
    torch._dynamo.reset()
    function, shape = OPS[op]
    w = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    derivative = TRANSFORMS[transform](lambda w: (function(w).sum() + w.sum()) ** 2 / 100)
    torch.testing.assert_close(torch.compile(derivative, backend="eager")(w), derivative(w))


@pytest.mark.parametrize("op", OPS)
def test_a_level_entered_in_a_compiled_function(op: str) -> None:
    """`dual_level` inside what is compiled: the operator's tangent is there, not only the other term's."""
    torch._dynamo.reset()
    function, shape = OPS[op]
    w, tangent = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))

    def derivative(w: Tensor, tangent: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(w, tangent)
            return forward_ad.unpack_dual(function(dual).sum() + dual.sum()).tangent

    torch.testing.assert_close(torch.compile(derivative, backend="aot_eager")(w, tangent), derivative(w, tangent))

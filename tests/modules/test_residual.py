"""What is added behind a block-diagonal layer is added in its kernel, where nobody looks at the layer's own result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import m2gen
from m2gen.modules import BlockDiagLinear, DimensionMixer
from m2gen.reference.monarch import block_diagonal

D = 16
X = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Calls(TorchDispatchMode):
    """The operators that are called, with how many tensors m2gen's are given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = sum(isinstance(arg, Tensor) for arg in args) if func.namespace == "m2gen" else 0
        self.found.append((func.overloadpacket.__name__, given))
        return func(*args, **(kwargs or {}))


def mixer(**options: Any) -> DimensionMixer:
    torch.manual_seed(0)
    return DimensionMixer(D, 2, **options).double().eval()


def last(m: DimensionMixer) -> nn.Module:
    return m.wo if m.kind == "glu" else m.m4


@pytest.mark.parametrize("activation", [None, "gelu", "relu", "silu"])
def test_a_layer_and_what_is_added(activation: str | None) -> None:
    """One operator without gradients, the same result with them; a residual's gradient is the result's."""
    layer = BlockDiagLinear(8, 12, 4, activation=activation).double()
    x, residual = torch.randn(3, 8).double(), torch.randn(3, 12).double().requires_grad_()
    z = x @ block_diagonal(layer.weight).T + layer.bias
    want = (z if activation is None else getattr(F, activation)(z)) + residual
    y = layer(x, residual)
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    dy = torch.randn(3, 12).double()
    assert torch.equal(torch.autograd.grad(y, residual, dy)[0], dy)
    with torch.no_grad(), Calls() as calls:
        found = layer(x, residual)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    name = "blockdiag_linear" if activation is None else "blockdiag_epilogue"
    assert [one for one in calls.found if one[1]] == [(name, 4)]
    assert not {"gelu", "relu", "silu", "add", "add_"} & {one for one, _ in calls.found}


@pytest.mark.parametrize("kind", ["glu", "plain"])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("gradients", [False, True])
def test_a_mixer_s_last_product_takes_its_input(kind: str, norm: str, gradients: bool) -> None:
    m, many = mixer(kind=kind, norm=norm), 4 if kind == "glu" else 3
    with torch.set_grad_enabled(gradients), Calls() as calls:
        m(X)
    assert [one for one in calls.found if one[1]][-1] == ("blockdiag_linear", many)
    assert "add" not in {one for one, _ in calls.found}


@pytest.mark.parametrize("kind", ["glu", "plain"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_hooks_see_the_layer_s_own_result(kind: str, norm: str) -> None:
    m = mixer(kind=kind, norm=norm)
    want, seen = m(X), []
    layer = last(m)
    handle = layer.register_forward_hook(lambda module, args, out: seen.append((args, out)))
    torch.testing.assert_close(m(X), want, rtol=1e-12, atol=1e-12)
    handle.remove()
    ((args, out),) = seen
    assert len(args) == 1
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(out, args[0] @ block_diagonal(layer.weight).T + bias, rtol=1e-12, atol=1e-12)
    handle = layer.register_forward_hook(lambda module, args, out: 0 * out)
    nothing = m(X)
    handle.remove()
    torch.testing.assert_close(nothing, X if norm == "pre" else F.layer_norm(X, (D,), eps=1e-12))


class Adapted(BlockDiagLinear):
    """A layer with something beside it, which takes one argument as layers do."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 3 * super().forward(x)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("gradients", [False, True])
def test_what_stands_in_the_layer_s_place_is_called(norm: str, gradients: bool) -> None:
    m, other = mixer(norm=norm), mixer(norm=norm)
    adapted = Adapted(2 * D, D, 4).double()
    adapted.load_state_dict(m.wo.state_dict())
    m.wo = adapted
    with torch.no_grad():
        other.wo.weight.mul_(3)
        other.wo.bias.mul_(3)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(m(X), other(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["glu", "plain"])
def test_autocast_does_not_round_what_is_added(kind: str) -> None:
    """A residual stream stays in float32 under autocast: added in the kernel it would be bfloat16."""
    m, x = mixer(kind=kind, norm="pre").float(), 1000 + X.float()
    with torch.no_grad():
        last(m).weight.zero_()
        if last(m).bias is not None:
            last(m).bias.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(m(x), x)


@pytest.mark.parametrize("kind", ["glu", "plain"])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_gradients_of_a_mixer(kind: str, norm: str) -> None:
    m = mixer(kind=kind, norm=norm, activation="silu")
    x = X[0, :2].clone().requires_grad_()
    name = "wo.weight" if kind == "glu" else "m4.weight"

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(m, {name: weight}, (x,))

    weight = last(m).weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(function, (x, weight), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: m(x), (x,))


@pytest.mark.parametrize("gradients", [False, True])
def test_compiled_without_breaks(gradients: bool) -> None:
    """Any number of rows, a residual laid out otherwise, with and without gradients."""
    torch._dynamo.reset()
    layer, m = BlockDiagLinear(8, 12, 4, activation="gelu"), DimensionMixer(12, 2)

    def function(x: Tensor, residual: Tensor) -> Tensor:
        return m(layer(x, residual)) + m2gen.blockdiag_linear(x, layer.weight, None, None, residual)

    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.set_grad_enabled(gradients):
        for rows in (3, 40):
            x, residual = torch.randn(rows, 8), torch.randn(12, rows).t()
            torch.testing.assert_close(compiled(x, residual), function(x, residual))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found, want = compiled(x, residual), function(x, residual)
            torch.testing.assert_close(found, want)

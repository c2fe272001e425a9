"""Derivatives of every op: gradcheck and gradgradcheck in float64 (reverse and forward mode), functorch, opcheck."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import m2gen
from m2gen.ops.blockdiag_linear import (
    blockdiag_epilogue_bwd_op,
    blockdiag_epilogue_op,
    blockdiag_glu,
    blockdiag_linear_op,
    blockdiag_outer_op,
)
from m2gen.ops.depthwise_conv1d import depthwise_conv1d_dw_op, depthwise_conv1d_op
from m2gen.ops.fftconv import fftconv_bwd_op, fftconv_dk_op, fftconv_op
from m2gen.ops.gate import gated, gated_bwd_op, gated_op
from m2gen.ops.monarch_matmul import monarch_backward_op, monarch_matmul_op
from m2gen.planner.fftconv.problem import MODES, FftConvProblem
from m2gen.runtime import executor
from m2gen.testing.operands import operands

Function = Callable[..., Any]


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def permuted(x: Tensor) -> Tensor:
    """The same values, densely laid out with the axes in another order."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def fftconv_case(mode: str, k: int, gates: bool, skip: bool) -> tuple[Function, list[Tensor]]:
    gated = {"pre_gate": gates, "post_gate": gates}
    args = operands(FftConvProblem(n=6, k=k, mode=mode, h=2, b=2, dtype="fp64", **gated, skip=skip, add=skip))
    names = [name for name, x in args.items() if isinstance(x, Tensor)]
    fixed = {name: x for name, x in args.items() if not isinstance(x, Tensor)}
    return lambda *xs: m2gen.fftconv(**dict(zip(names, xs, strict=True)), **fixed), [args[name] for name in names]


CASES: dict[str, Callable[[], tuple[Function, list[Tensor]]]] = {
    **{
        f"fftconv {mode} k={k} gates={gates} skip={skip}": lambda mode=mode, k=k, gates=gates, skip=skip: fftconv_case(
            mode, k, gates, skip
        )
        for mode in MODES
        for k, gates, skip in ((5, False, False), (5, True, True), (9 if mode != "circular" else 1, True, False))
    },
    "fftconv one gate": lambda: (
        lambda u, k, g: m2gen.fftconv(u, k, post_gate=g),
        [normal(2, 2, 5), normal(2, 5), normal(2, 2, 5)],
    ),
    "fftconv one gate and what is added": lambda: (
        lambda u, k, g, a: m2gen.fftconv(u, k, post_gate=g, add=a, layout="BLH"),
        [normal(2, 5, 2), normal(2, 5), normal(2, 5, 2), normal(2, 5, 2)],
    ),
    "fftconv BLH": lambda: (lambda u, k: m2gen.fftconv(u, k, layout="BLH"), [normal(2, 5, 3), normal(3, 4)]),
    "blockdiag_linear": lambda: (m2gen.blockdiag_linear, [normal(4, 6), normal(2, 4, 3), normal(8)]),
    "blockdiag_linear no bias": lambda: (m2gen.blockdiag_linear, [normal(2, 2, 6), normal(3, 1, 2)]),
    **{
        f"blockdiag_linear {activation}": lambda activation=activation: (
            lambda x, w, b: m2gen.blockdiag_linear(x, w, b, activation),
            [normal(3, 4), normal(2, 2, 2), normal(4)],
        )
        for activation in ("gelu", "silu", "relu")
    },
    **{
        f"blockdiag_linear {activation} residual": lambda activation=activation: (
            lambda x, w, b, r: m2gen.blockdiag_linear(x, w, b, activation, r),
            [normal(2, 3, 4), normal(2, 2, 2), normal(4), normal(2, 3, 4)],
        )
        for activation in (None, "silu")
    },
    "blockdiag_glu residual": lambda: (
        lambda x, w, b, r: blockdiag_glu(x, w, "gelu", b, r),
        [normal(3, 4), normal(2, 3, 2), normal(6), normal(3, 3)],
    ),
    **{
        f"gated {activation}": lambda activation=activation: (lambda z: gated(z, activation), [normal(3, 10)])
        for activation in ("gelu", "silu", "relu", None)
    },
    "blockdiag_epilogue_bwd": lambda: (
        lambda *of: torch.cat(
            [grad.flatten() for grad in blockdiag_epilogue_bwd_op(*of, "gelu", True, [True, True, True])]
        ),
        [normal(3, 3), normal(3, 4), normal(2, 3, 2), normal(6)],
    ),
    "blockdiag_outer": lambda: (lambda dy, x: blockdiag_outer_op(dy, x, 2), [normal(3, 4), normal(3, 6)]),
    "blockdiag_linear of many rows": lambda: (m2gen.blockdiag_linear, [normal(24, 2), normal(2, 2, 1), normal(4)]),
    "monarch_matmul order 1": lambda: (lambda x, a: m2gen.monarch_matmul(x, [a]), [normal(3, 6), normal(2, 2, 3)]),
    "monarch_matmul order 2": lambda: (
        lambda x, a, b: m2gen.monarch_matmul(x, [a, b]),
        [normal(3, 6), normal(2, 4, 3), normal(4, 2, 2)],
    ),
    "monarch_matmul order 3": lambda: (
        lambda x, a, b, c: m2gen.monarch_matmul(x, [a, b, c]),
        [normal(2, 12), normal(6, 2, 2), normal(4, 3, 3), normal(6, 2, 2)],
    ),
    "monarch_backward": lambda: (
        lambda dy, x, a, b: torch.cat([g.flatten() for g in monarch_backward_op(dy, x, [a, b], [True] * 3)]),
        [normal(3, 8), normal(3, 6), normal(2, 4, 3), normal(4, 2, 2)],
    ),
    **{
        f"depthwise_conv1d {padding} {layout}": lambda padding=padding, layout=layout: (
            lambda x, w, b: m2gen.depthwise_conv1d(x, w, b, padding, layout),
            [normal(2, 5, 5), normal(5, 4), normal(5)],
        )
        for padding in ("causal", "same", 0, 1, 6)
        for layout in ("BHL", "BLH")
    },
    "depthwise_conv1d of channels that fill a vector": lambda: (
        lambda x, w, b: m2gen.depthwise_conv1d(x, w, b, "same", "BLH"),
        [normal(1, 3, 9), normal(9, 3), normal(9)],
    ),
    "depthwise_conv1d_dw": lambda: (
        lambda x, dy: depthwise_conv1d_dw_op(x, dy, 4, 1, 2),
        [normal(2, 3, 5), normal(2, 3, 5)],
    ),
}


OWN = ", its own gradients"  # as where kernels of a GPU give all of them: executor.own_gradients says so
CASES |= {name + OWN: found for name, found in CASES.items() if name.startswith(("blockdiag_linear", "blockdiag_glu"))}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Function, list[Tensor]]:
    if request.param.endswith(OWN):
        monkeypatch.setattr(executor, "own_gradients", lambda *_: True)
    function, inputs = CASES[request.param]()
    return function, [x.requires_grad_() for x in inputs]


def test_gradcheck(case: tuple[Function, list[Tensor]]) -> None:
    function, inputs = case
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)


def test_gradgradcheck(case: tuple[Function, list[Tensor]]) -> None:
    function, inputs = case
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_each_input_alone(case: tuple[Function, list[Tensor]]) -> None:
    """A gradient asked for alone equals the one found among all."""
    function, inputs = case
    y = function(*inputs)
    weight = normal(*y.shape)
    together = torch.autograd.grad(y, inputs, weight)
    for i, expected in enumerate(together):
        alone = [x.detach().requires_grad_(i == j) for j, x in enumerate(inputs)]
        (found,) = torch.autograd.grad(function(*alone), alone[i], weight)
        torch.testing.assert_close(found, expected)


def test_permuted_inputs_and_gradients(case: tuple[Function, list[Tensor]]) -> None:
    function, inputs = case
    y = function(*inputs)
    weight = normal(*y.shape)
    expected = torch.autograd.grad(y, inputs, weight)
    others = [permuted(x.detach()).requires_grad_() for x in inputs]
    found = torch.autograd.grad(function(*others), others, permuted(weight))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_jvp_is_the_jacobian(case: tuple[Function, list[Tensor]]) -> None:
    """torch.func.jvp, for each input alone, against the reverse-mode Jacobian: never a silent zero."""
    function, inputs = case
    inputs = [x.detach() for x in inputs]
    jacobians = torch.func.jacrev(function, argnums=tuple(range(len(inputs))))(*inputs)
    for i, x in enumerate(inputs):
        tangents = [normal(*x.shape) if i == j else torch.zeros_like(x) for j, x in enumerate(inputs)]
        _, tangent = torch.func.jvp(function, tuple(inputs), tuple(tangents))
        expected = torch.tensordot(jacobians[i], tangents[i], dims=x.dim())
        assert expected.abs().max() > 0
        torch.testing.assert_close(tangent, expected)


def test_vmap(case: tuple[Function, list[Tensor]]) -> None:
    """Over every input, over each alone, and over a dimension that is not the first; and through grad."""
    function, inputs = case
    inputs = [x.detach() for x in inputs]
    stacks = [torch.stack([x, 2 * x - 1, -x], dim=1) for x in inputs]
    patterns = [tuple([1] * len(inputs))] + [
        tuple(1 if i == j else None for j in range(len(inputs))) for i in range(len(inputs))
    ]

    def scalar(*xs: Tensor) -> Tensor:
        return function(*xs).square().sum()

    every = tuple(range(len(inputs)))
    for dims in patterns:
        batch = [s if d == 1 else x for s, x, d in zip(stacks, inputs, dims, strict=True)]
        samples = [[b.select(1, v) if d == 1 else b for b, d in zip(batch, dims, strict=True)] for v in range(3)]
        found = torch.vmap(function, in_dims=dims)(*batch)
        torch.testing.assert_close(found, torch.stack([function(*sample) for sample in samples]))
        grads = torch.vmap(torch.func.grad(scalar, argnums=every), in_dims=dims)(*batch)
        for i in every:
            expected = torch.stack([torch.func.grad(scalar, argnums=i)(*sample) for sample in samples])
            torch.testing.assert_close(grads[i], expected)


def opcheck_cases() -> list[tuple[str, Any, tuple[Any, ...]]]:
    u, k, g, s = normal(2, 3, 7), normal(3, 5), normal(2, 3, 7), normal(3)
    found: list[tuple[str, Any, tuple[Any, ...]]] = []
    for how, change in (("contiguous", lambda x: x.clone()), ("permuted", permuted)):

        def of(x: Tensor, change: Callable[[Tensor], Tensor] = change) -> Tensor:
            return change(x).requires_grad_()

        found += [
            (how, fftconv_op, (of(u), of(k), None, None, None, None, "causal", "auto")),
            (how, fftconv_op, (of(u), of(k), of(k), of(g), of(g), of(s), "bidirectional", "auto")),
            (how, fftconv_op, (of(u), of(k), None, None, of(g), of(s), "circular", "auto")),
            (how, fftconv_op, (of(u), of(k), None, None, of(g), of(s), "circular", "auto", of(g))),
            (how, fftconv_op, (u, k, None, None, None, None, "causal", "auto", of(g))),
            (how, fftconv_dk_op, (of(u), of(g), 5, "bidirectional", "auto")),
            (how, blockdiag_linear_op, (of(normal(4, 3, 6)), of(normal(2, 4, 3)), of(normal(8)))),
            (how, blockdiag_linear_op, (of(normal(4, 6)), of(normal(2, 4, 3)), None, of(normal(4, 8)))),
            (how, gated_op, (of(normal(2, 5, 6)), "silu")),
            (how, blockdiag_outer_op, (of(normal(30, 6)), of(normal(30, 4)), 2)),
            (how, monarch_matmul_op, (of(normal(4, 3, 6)), [of(normal(2, 4, 3)), of(normal(4, 2, 2))])),
            (how, depthwise_conv1d_op, (of(u), of(k), of(s), 4, 0)),
            (how, depthwise_conv1d_dw_op, (of(u), of(g), 5, 4, 0)),
        ]
    needs = [True, False, True, True, False, True]
    found.append(("no grad", fftconv_bwd_op, (g, u, k, k, g, g, s, "bidirectional", "auto", needs)))
    found.append(
        ("no grad", fftconv_bwd_op, (permuted(g), permuted(u), k, None, None, None, None, "same", "auto", [True] * 6))
    )
    factors = [permuted(normal(2, 4, 3)), normal(4, 2, 2)]
    found += [
        ("no grad", monarch_backward_op, (permuted(normal(4, 3, 8)), normal(4, 3, 6), factors, needs))
        for needs in ([True] * 3, [False, True, False], [True, False, False])
    ]
    found.append(("no grad", gated_bwd_op, (permuted(normal(4, 3)), normal(4, 6), "gelu")))
    x, weight, bias, residual = normal(30, 6), permuted(normal(2, 4, 3)), normal(8), permuted(normal(30, 4))
    found.append(("no grad", blockdiag_epilogue_op, (x, weight, None, None, "gelu", True)))
    found.append(("no grad", blockdiag_epilogue_op, (x, weight, bias, residual, "silu", True)))
    found.append(("no grad", blockdiag_epilogue_op, (x, weight, bias, permuted(normal(30, 8)), "relu", False)))
    for activation, glu, needs in (
        ("gelu", True, [True] * 3),
        ("silu", False, [True, False, True]),
        (None, False, [False, True, True]),
    ):
        dy = permuted(normal(30, 4 if glu else 8))
        found.append(("no grad", blockdiag_epilogue_bwd_op, (dy, x, weight, bias, activation, glu, needs)))
    return found


@pytest.mark.parametrize(("how", "op", "args"), opcheck_cases(), ids=lambda x: str(x)[:40])
def test_opcheck(how: str, op: Any, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(op, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", MODES)
def test_gradients_in_low_precision(mode: str, dtype: torch.dtype) -> None:
    """Gradients of 16-bit and float32 tensors, in the dtype of their tensor, against float64."""
    gates = {"pre_gate": True, "post_gate": True}
    problem = FftConvProblem(n=64, k=63, mode=mode, h=3, b=2, dtype="fp64", **gates, skip=True, add=True)
    exact = {n: x.requires_grad_() if isinstance(x, Tensor) else x for n, x in operands(problem).items()}
    low = {
        name: x.detach().to(torch.float32 if name in ("k", "k_rev", "skip") else dtype).requires_grad_()
        if isinstance(x, Tensor)
        else x
        for name, x in exact.items()
    }
    exact = {n: x.detach().double().requires_grad_() if isinstance(x, Tensor) else x for n, x in low.items()}
    names = [name for name, x in low.items() if isinstance(x, Tensor)]
    y = m2gen.fftconv(**low)
    weight = normal(*y.shape)
    found = torch.autograd.grad(y, [low[n] for n in names], weight.to(dtype))
    expected = torch.autograd.grad(m2gen.fftconv(**exact), [exact[n] for n in names], weight.to(dtype).double())
    for name, a, b in zip(names, found, expected, strict=True):
        assert a.dtype == low[name].dtype
        error = (a.double() - b).norm() / b.norm()
        assert error < 4 * torch.finfo(dtype).eps, (name, error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_with_a_graph_are_those_without(dtype: torch.dtype) -> None:
    """u * pre_gate is past the largest float16, or dy * post_gate below the least; the gradients are neither."""
    for u, pre, post, scale, k in ((300.0, 300.0, 1e-3, 1.0, 1e-3), (1.0, 1.0, 1e-4, 1e-4, 100.0)):
        shapes = {"u": (1, 2, 64), "pre_gate": (1, 2, 64), "post_gate": (1, 2, 64), "k": (2, 64)}
        values = {"u": u, "pre_gate": pre, "post_gate": post, "k": k}
        args = {n: torch.full(shapes[n], values[n], dtype=dtype).requires_grad_() for n in shapes}
        dy = torch.full((1, 2, 64), scale, dtype=dtype)
        found = [
            torch.autograd.grad(m2gen.fftconv(**args), args.values(), dy, create_graph=graph) for graph in (False, True)
        ]
        for name, one, other in zip(args, *found, strict=True):
            assert one.any() and one.isfinite().all(), name
            torch.testing.assert_close(one, other.detach(), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


# dy * z2 alone is more than float16 holds; times the activation's derivative there it is not
@pytest.mark.parametrize(("activation", "z1"), [("gelu", -3.0), ("relu", -1.0), ("silu", -20.0)])
def test_a_gate_s_gradients_with_a_graph_are_those_without(activation: str, z1: float) -> None:
    z = torch.full((3, 8), 300.0, dtype=torch.float16).requires_grad_()
    dy = torch.full((3, 4), 300.0, dtype=torch.float16)
    z.data[:, :4] = z1
    y = gated(z, activation)
    one, other = (torch.autograd.grad(y, z, dy, create_graph=graph, retain_graph=True)[0] for graph in (False, True))
    assert one.isfinite().all()
    torch.testing.assert_close(one, other.detach(), rtol=2e-3, atol=1e-6)


def _operations() -> list[tuple[str, Callable[..., Tensor], tuple[Tensor, ...]]]:
    factors = [torch.randn(4, 4, 4, dtype=torch.float64) for _ in range(2)]
    weight, taps = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    return [
        ("blockdiag_linear", lambda x: m2gen.blockdiag_linear(x, weight), (torch.randn(5, 8),)),
        ("monarch_matmul", lambda x: m2gen.monarch_matmul(x, factors), (torch.randn(5, 16),)),
        ("depthwise_conv1d", lambda x: m2gen.depthwise_conv1d(x, taps), (torch.randn(1, 2, 7),)),
        ("fftconv", lambda x: m2gen.fftconv(x, taps), (torch.randn(1, 2, 7),)),
    ]


@pytest.mark.parametrize(("name", "call", "inputs"), _operations(), ids=lambda one: one if isinstance(one, str) else "")
def test_vmap_over_no_samples(name: str, call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    (x,) = (one.double() for one in inputs)
    assert torch.func.vmap(call)(x.new_empty((0, *x.shape))).shape == (0, *call(x).shape)


@pytest.mark.parametrize(("name", "call", "inputs"), _operations(), ids=lambda one: one if isinstance(one, str) else "")
def test_jacobians_forward_and_vectorised(name: str, call: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    (x,) = (one.double() for one in inputs)
    forward = torch.autograd.functional.jacobian(call, x, strategy="forward-mode", vectorize=True)
    torch.testing.assert_close(forward, torch.autograd.functional.jacobian(call, x))


def test_what_is_added_is_not_kept_for_the_gradients() -> None:
    """A sum's gradient is that of its result: a layer's memory is that of what its gradients read."""
    u, k, add = torch.randn(2, 3, 8), torch.randn(3, 8), torch.randn(2, 3, 8)
    x, weight, rest = torch.randn(5, 8), torch.randn(4, 3, 2), torch.randn(5, 12)
    leaves = [t.requires_grad_() for t in (u, k, add, x, weight, rest)]
    convolved = m2gen.fftconv(u, k, add=add)
    product = m2gen.blockdiag_linear(x, weight, residual=rest)
    for y, unkept in ((convolved, add), (product, rest)):
        assert not any(saved.data_ptr() == unkept.data_ptr() for saved in y.grad_fn.saved_tensors)
    grads = torch.autograd.grad(convolved.sum() + product.sum(), leaves)
    assert torch.equal(grads[2], torch.ones_like(add)) and torch.equal(grads[5], torch.ones_like(rest))

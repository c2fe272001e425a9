"""Under autocast: the sequence goes to the autocast dtype, the filter keeps its own."""

from __future__ import annotations

import pytest
import torch

import m2gen
from m2gen.ops.blockdiag_linear import blockdiag_outer_op
from m2gen.ops.fftconv import fftconv_op
from m2gen.planner.problems import parse
from m2gen.reference import fftconv as oracle
from m2gen.testing.operands import operands


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fftconv_keeps_the_filter(dtype: torch.dtype) -> None:
    args = operands(parse("fftconv n=50 h=3 b=2 fp32 causal gated skip add"))
    cast = {n: args[n].to(dtype) if n in ("u", "pre_gate", "post_gate", "add") else x for n, x in args.items()}
    args["u"].requires_grad_()
    args["k"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = m2gen.fftconv(**args)
        given = (args[name] for name in ("pre_gate", "post_gate", "skip"))
        again = fftconv_op(args["u"], args["k"], None, *given, "causal", "auto", args["add"])
    assert y.dtype == dtype and torch.equal(y, again)
    assert torch.equal(y, m2gen.fftconv(**cast)), "the filter was rounded"
    y.float().sum().backward()
    assert args["u"].grad.dtype == args["k"].grad.dtype == torch.float32
    error = (y.double() - oracle.fftconv(**cast)).norm() / oracle.fftconv(**cast).norm()
    assert error < torch.finfo(dtype).eps


def test_float64_is_not_cast() -> None:
    args = operands(parse("fftconv n=50 h=3 b=2 fp64 causal"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert m2gen.fftconv(**args).dtype == torch.float64


@pytest.mark.parametrize("sequence", [torch.float64, torch.float32])
def test_float64_beside_what_autocast_casts_is_an_error(sequence: torch.dtype) -> None:
    """Through the public functions and the operators, which once read float64 memory as bfloat16."""
    other = torch.float32 if sequence == torch.float64 else torch.float64
    u, k, gate = torch.randn(2, 3, 40, dtype=sequence), torch.randn(3, 8), torch.randn(2, 3, 40, dtype=other)
    x, w = torch.randn(30, 6, dtype=sequence), torch.randn(2, 3, 3, dtype=other)
    m2gen.monarch_matmul(x, [w.to(sequence)])  # registers its operator
    calls = (
        lambda: m2gen.fftconv(u, k, pre_gate=gate),
        lambda: m2gen.fftconv(u, k, post_gate=gate),
        lambda: m2gen.fftconv(u, k, add=gate),
        lambda: fftconv_op(u, k, None, None, gate, None, "causal", "auto"),
        lambda: m2gen.blockdiag_linear(x, w),
        lambda: m2gen.blockdiag_linear(x, w.to(sequence), residual=x.to(other)),
        lambda: m2gen.blockdiag_linear(x, w.to(sequence), None, "gelu", x.to(other)),
        lambda: m2gen.monarch_matmul(x, [w]),
        lambda: m2gen.depthwise_conv1d(u, k.to(other)[:, :4]),
        lambda: torch.ops.m2gen.depthwise_conv1d(u, k.to(other)[:, :4], None, 3, 0),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for call in calls:
            with pytest.raises(m2gen.ProblemError, match=r"autocast leaves float64 as it is"):
                call()


def test_an_operator_that_autocast_does_not_cast_computes_in_its_dtype() -> None:
    """The products inside it, too: three rows are done by PyTorch's, which autocast would cast."""
    dy, x = torch.randn(3, 4), torch.randn(3, 6)
    expected = blockdiag_outer_op(dy, x, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(blockdiag_outer_op(dy, x, 2), expected)


def test_gradients_are_the_same_where_backward_runs_under_autocast() -> None:
    x, w = torch.randn(30, 6, requires_grad=True), torch.randn(2, 3, 3, requires_grad=True)
    expected = torch.autograd.grad(m2gen.monarch_matmul(x, [w]).square().sum(), (x, w))
    loss = m2gen.monarch_matmul(x, [w]).square().sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(loss, (x, w))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_linear_ops_cast_like_torch() -> None:
    x, w, b = torch.randn(2, 6), torch.randn(2, 3, 3), torch.randn(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert m2gen.blockdiag_linear(x, w, b).dtype == torch.bfloat16
        assert m2gen.blockdiag_linear(x.bfloat16(), w, b).dtype == torch.bfloat16
        for activation in (None, "gelu"):
            low = [t.bfloat16() for t in (x, w, b, x)]
            want = m2gen.blockdiag_linear(*low[:3], activation, low[3])
            assert torch.equal(m2gen.blockdiag_linear(x, w, b, activation, x), want)
            assert torch.equal(m2gen.blockdiag_linear(x, w, b, activation, x.bfloat16()), want)
        assert m2gen.monarch_matmul(x, [w, w]).dtype == torch.bfloat16
        assert m2gen.depthwise_conv1d(torch.randn(2, 3, 8), torch.randn(3, 3)).dtype == torch.bfloat16


def test_vmap_under_autocast_with_mixed_dtypes() -> None:
    """What is cast for one sample is cast for many: an ensemble's weights are float32."""
    x, w = torch.randn(4, 8).bfloat16(), torch.randn(3, 2, 3, 4)
    u, k, gate = torch.randn(2, 3, 8), torch.randn(4, 3, 8), torch.randn(2, 3, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for many, one in (
            (torch.vmap(lambda w: m2gen.blockdiag_linear(x, w))(w), lambda i: m2gen.blockdiag_linear(x, w[i])),
            (
                torch.vmap(lambda k: m2gen.fftconv(u, k, post_gate=gate))(k),
                lambda i: m2gen.fftconv(u, k[i], post_gate=gate),
            ),
        ):
            for i, sample in enumerate(many):
                torch.testing.assert_close(sample, one(i))

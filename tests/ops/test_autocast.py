"""Under autocast: the sequence goes to the autocast dtype, the filter keeps its own."""

from __future__ import annotations

import pytest
import torch

import m2gen
from m2gen.ops.fftconv import fftconv_op
from m2gen.planner.problem import Problem
from m2gen.reference import fftconv as oracle
from m2gen.testing.operands import operands


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_fftconv_keeps_the_filter(dtype: torch.dtype) -> None:
    args = operands(Problem.parse("fftconv n=50 h=3 b=2 fp32 causal gated skip"))
    cast = {n: args[n].to(dtype) if n in ("u", "pre_gate", "post_gate") else x for n, x in args.items()}
    args["u"].requires_grad_()
    args["k"].requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        y = m2gen.fftconv(**args)
        again = fftconv_op(
            args["u"], args["k"], None, args["pre_gate"], args["post_gate"], args["skip"], "causal", "auto"
        )
    assert y.dtype == dtype and torch.equal(y, again)
    assert torch.equal(y, m2gen.fftconv(**cast)), "the filter was rounded"
    y.float().sum().backward()
    assert args["u"].grad.dtype == args["k"].grad.dtype == torch.float32
    error = (y.double() - oracle.fftconv(**cast)).norm() / oracle.fftconv(**cast).norm()
    assert error < torch.finfo(dtype).eps


def test_float64_is_not_cast() -> None:
    args = operands(Problem.parse("fftconv n=50 h=3 b=2 fp64 causal"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert m2gen.fftconv(**args).dtype == torch.float64


def test_linear_ops_cast_like_torch() -> None:
    x, w, b = torch.randn(2, 6), torch.randn(2, 3, 3), torch.randn(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert m2gen.blockdiag_linear(x, w, b).dtype == torch.bfloat16
        assert m2gen.blockdiag_linear(x.bfloat16(), w, b).dtype == torch.bfloat16
        assert m2gen.monarch_matmul(x, [w, w]).dtype == torch.bfloat16
        assert m2gen.depthwise_conv1d(torch.randn(2, 3, 8), torch.randn(3, 3)).dtype == torch.bfloat16

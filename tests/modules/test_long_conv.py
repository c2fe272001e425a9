"""LongConv: filter, skip and gates in one convolution."""

from __future__ import annotations

import pytest
import torch

from m2gen.errors import ProblemError
from m2gen.modules import LongConv
from m2gen.modules.hyena_filter import long_conv
from m2gen.reference import fftconv as oracle


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "circular"])
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("gated", [False, True])
def test_against_the_sum(mode: str, layout: str, gated: bool) -> None:
    torch.manual_seed(0)
    conv = LongConv(6, 20, mode=mode, layout=layout, width=16).double()
    shape = (2, 6, 13) if layout == "BHL" else (2, 13, 6)
    u, pre, post = torch.randn(3, *shape, dtype=torch.float64)
    gates = {"pre_gate": pre, "post_gate": post} if gated else {}
    k, k_rev = conv.filter_fn(13)
    want = oracle.fftconv(u, k, mode=mode, k_rev=k_rev, skip=conv.filter_fn.bias, layout=layout, **gates)
    torch.testing.assert_close(conv(u, **gates), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [False, True])
def test_what_is_added(kept: bool) -> None:
    conv = LongConv(6, 20, layout="BLH", width=16).train(not kept)
    u, add = torch.randn(2, 2, 13, 6)
    with torch.no_grad():
        found = long_conv(conv.filter_fn, u, mode="causal", layout="BLH", add=add)
        torch.testing.assert_close(found, conv(u) + add)


def test_filter_options_reach_the_filter() -> None:
    conv = LongConv(6, 20, heads=2, width=8, emb_dim=3)
    assert conv.filter_fn.implicit_filter[-1].weight.shape == (3, 8)


def test_half_precision_input_with_a_float32_filter() -> None:
    conv = LongConv(4, 16)
    u = torch.randn(2, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(u.bfloat16()).dtype == torch.bfloat16
    half = conv(u.bfloat16())
    torch.testing.assert_close(half.float(), conv(u.bfloat16().float()), rtol=2**-7, atol=2**-7)


def test_refusals() -> None:
    with pytest.raises(ProblemError, match="has no such mode"):
        LongConv(4, 16, mode="same")
    with pytest.raises(ProblemError, match="at most 16"):
        LongConv(4, 16)(torch.randn(1, 4, 17))


def test_state_dict_round_trip() -> None:
    first, second = LongConv(4, 16, mode="bidirectional"), LongConv(4, 16, mode="bidirectional")
    second.load_state_dict(first.state_dict())
    u = torch.randn(1, 4, 16)
    assert torch.equal(first(u), second(u))

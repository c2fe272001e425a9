"""m2gen.compat.safari against torch.fft in float64, written from the formula in its docstring."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2gen.compat.safari import fftconv_func, fftconv_h3_ref, fftconv_ref
from m2gen.errors import ProblemError


def toeplitz(u: Tensor, k: Tensor, k_rev: Tensor | None = None) -> Tensor:
    """y[i] = sum over j <= i of k[i - j] u[j] + sum over j >= i of k_rev[j - i] u[j]."""
    length = u.shape[-1]
    lag = torch.arange(length)[:, None] - torch.arange(length)
    matrix = F.pad(k, (0, max(0, length - k.shape[-1])))[:, lag.clamp_min(0)] * (lag >= 0)
    if k_rev is not None:
        matrix = matrix + F.pad(k_rev, (0, max(0, length - k_rev.shape[-1])))[:, (-lag).clamp_min(0)] * (lag <= 0)
    return (matrix @ u.unsqueeze(-1)).squeeze(-1)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 50), st.none() | st.integers(1, 50), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["ref", "func"]), st.sampled_from([(2, 3), (1, 2, 3), (2, 2, 3)]),
)  # fmt: skip
def test_the_formula(
    length: int, taps: int, ahead: int | None, gelu: bool, dropped: bool, skipped: bool, which: str,
    sizes: tuple[int, ...],
) -> None:  # fmt: skip
    torch.manual_seed(length * 50 + taps)
    channels = sizes[-1]
    u, k, D = torch.randn(*sizes, length), torch.randn(channels, taps), torch.randn(channels)
    k_rev = None if ahead is None else torch.randn(channels, ahead)
    mask = (torch.rand(sizes[0], channels) > 0.5).float() * 2 if dropped and len(sizes) == 2 else None
    leaves = [t.requires_grad_() for t in (u, k, D, k_rev) if t is not None]
    exact = [t.detach().double().requires_grad_() for t in leaves]
    expected = toeplitz(exact[0], exact[1], exact[3] if ahead else None)
    expected = expected + exact[0] * exact[2].unsqueeze(-1) if skipped else expected
    expected = F.gelu(expected) if gelu else expected
    expected = expected if mask is None else expected * mask.double().unsqueeze(-1)
    call = fftconv_ref if which == "ref" else fftconv_func
    y = call(u, k, D if skipped else None, mask, gelu, k_rev=k_rev)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    dy = torch.randn(y.shape)
    found = torch.autograd.grad(y, leaves, dy, allow_unused=True)
    wanted = torch.autograd.grad(expected, exact, dy.double(), allow_unused=True)
    for one, want in zip(found, wanted, strict=True):
        assert (one is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(one.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (1, 3, 1)])
def test_shapes_of_the_skip_and_the_filter(shape: tuple[int, ...]) -> None:
    u, k, D = torch.randn(2, 3, 20), torch.randn(3, 20), torch.randn(3)
    y = fftconv_ref(u, k, D, None, gelu=False)
    torch.testing.assert_close(fftconv_ref(u, k[None], D.reshape(shape), None, gelu=False, layer_idx=3), y)


@pytest.mark.parametrize("head_dim", [1, 2, 4])
def test_heads_of_h3(head_dim: int) -> None:
    """q (conv(k v) + D k v), an outer product and a sum in each head, term by term."""
    torch.manual_seed(head_dim)
    heads, length = 3, 17
    k, v, q = (torch.randn(2, heads * head_dim, length) for _ in range(3))
    kernel, D = torch.randn(heads, length), torch.randn(heads)
    expected = torch.zeros(2, heads * head_dim, length, dtype=torch.float64)
    for d1 in range(head_dim):
        for d2 in range(head_dim):
            kv = (k[:, d1::head_dim] * v[:, d2::head_dim]).double()
            y = toeplitz(kv, kernel.double()) + D.double()[:, None] * kv
            expected[:, d2::head_dim] += y * q[:, d1::head_dim].double()
    for y in (
        fftconv_h3_ref(k, kernel, D, q, v, head_dim),
        fftconv_func(k, kernel, D, None, False, v=v, q=q, head_dim=head_dim),
    ):
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


def test_outputs_of_another_form() -> None:
    u, k, D = torch.randn(2, 3, 20), torch.randn(3, 20), torch.randn(3)
    y = fftconv_func(u, k, D)
    turned = fftconv_func(u, k, D, output_hbl_layout=True)
    assert torch.equal(turned, y) and turned.stride() == (20, 40, 1)
    assert fftconv_func(u, k, D, force_fp16_output=True).dtype == torch.float16


def test_what_cannot_be_done_says_what_to_do() -> None:
    u, k, D = torch.randn(2, 3, 20), torch.randn(3, 20), torch.randn(3)
    with pytest.raises(ProblemError, match="k_rev"):
        fftconv_ref(u, k, D, None, bidirectional=True)
    with pytest.raises(ProblemError, match="no argument dropout"):
        fftconv_ref(u, k, D, dropout=3)
    with pytest.raises(ProblemError, match="q is missing"):
        fftconv_func(u, k, D, v=u)
    with pytest.raises(ProblemError, match="heads"):
        fftconv_func(u, k, D, v=u, q=u, head_dim=2)

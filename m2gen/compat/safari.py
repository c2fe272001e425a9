"""`fftconv_ref`, `fftconv_func` and `fftconv_h3_ref` as safari, hyena-dna and StripedHyena call them.

    out = dropout_mask * gelu(conv(u, k, causal) + conv(u, k_rev, looking ahead) + D u)

with k_rev[0] at lag 0, beside k[0] (m2gen's own k_rev begins at lag -1). What differs from the originals, beside speed
and rounding: a filter of more than L taps is the causal one of its first L (with torch.fft on 2 L points the others
come back as lags from the end); results are rounded to u's dtype before the activation.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.ops.fftconv import fftconv


def fftconv_ref(
    u: Tensor,
    k: Tensor,
    D: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    gelu: bool = True,
    k_rev: Tensor | None = None,
    bidirectional: bool = False,
    **ignored: Any,
) -> Tensor:
    """u (B, H, L), or (B, G, H, L) with one filter for all G; k and k_rev (H, K) or (1, H, K); D (H,), (H, 1) or
    (1, H, 1); dropout_mask (B, H) -> like u.

    `print_activations`, `layer_idx` and other words of StripedHyena that change nothing are taken. `bidirectional=True`
    of StripedHyena raises ProblemError: what it computes is not a convolution of the input's own times.
    """
    if bidirectional:
        raise ProblemError(
            "fftconv_func(bidirectional=True)",
            "it adds a convolution with the second half of the filters whose result is reversed in time as a whole",
            "give the filter that looks ahead as k_rev, or use m2gen.fftconv(mode='bidirectional')",
        )
    unknown = set(ignored) - _NO_MATTER
    if unknown:
        raise ProblemError("fftconv_func", f"there is no argument {', '.join(sorted(unknown))}", "leave it out")
    out = _conv(u, k, D, k_rev)
    out = F.gelu(out) if gelu else out
    return out if dropout_mask is None else out * dropout_mask.unsqueeze(-1).to(out.dtype)


_NO_MATTER = {"print_activations", "layer_idx", "flashfft", "use_subquadratic_ops"}


def fftconv_func(
    u: Tensor,
    k: Tensor,
    D: Tensor | None,
    dropout_mask: Tensor | None = None,
    gelu: bool = True,
    force_fp16_output: bool = False,
    output_hbl_layout: bool = False,
    v: Tensor | None = None,
    head_dim: int = 1,
    q: Tensor | None = None,
    fftfp16: bool = False,
    k_rev: Tensor | None = None,
    **ignored: Any,
) -> Tensor:
    """The same, as safari's CUDA extension is called; with v and q (B, H, L) it is `fftconv_h3_ref`, heads of
    `head_dim` channels.

    `force_fp16_output` gives float16; `output_hbl_layout` a result whose memory is (H, B, L); `fftfp16` has no meaning
    here.
    """
    if (v is None) != (q is None):
        missing = "v" if v is None else "q"
        raise ProblemError("fftconv_func", f"of v and q {missing} is missing", "give both, or neither")
    if v is None or q is None:
        out = fftconv_ref(u, k, D, dropout_mask, gelu, k_rev, **ignored)
    else:
        out = _gated_heads(u, k, D, q, v, head_dim, k_rev)
        out = F.gelu(out) if gelu else out
        out = out if dropout_mask is None else out * dropout_mask.unsqueeze(-1).to(out.dtype)
    out = out.half() if force_fp16_output else out
    return out.transpose(0, 1).contiguous().transpose(0, 1) if output_hbl_layout else out


def fftconv_h3_ref(
    k: Tensor, ssm_kernel: Tensor, D: Tensor | None, q: Tensor, v: Tensor, head_dim: int = 1, ssm_kernel_rev: Any = None
) -> Tensor:
    """H3 (arXiv 2212.14052, section 3.2): q (conv(k v, ssm_kernel) + D k v), all (B, H, L), ssm_kernel and D of
    H / head_dim heads: for head_dim > 1 k v is an outer product in each head, and q is summed against it.
    """
    return _gated_heads(k, ssm_kernel, D, q, v, head_dim, ssm_kernel_rev)


def _gated_heads(
    k: Tensor, kernel: Tensor, D: Tensor | None, q: Tensor, v: Tensor, head_dim: int, k_rev: Tensor | None
) -> Tensor:
    if head_dim == 1:
        return _conv(k, kernel, D, k_rev, v, q)
    batch, channels, length = k.shape
    if channels % head_dim:
        raise ProblemError(
            f"fftconv_func(head_dim={head_dim})", f"{channels} channels are no whole number of heads", "change one"
        )
    heads = channels // head_dim
    # channel h * head_dim + d is (h, d): k over d1, v over d2, and batch and both d are rows of one convolution
    k, v, q = (t.reshape(batch, heads, head_dim, length).transpose(1, 2) for t in (k, v, q))
    kv = (k.unsqueeze(2) * v.unsqueeze(1)).reshape(-1, heads, length)
    y = _conv(kv, kernel, D, k_rev).reshape(batch, head_dim, head_dim, heads, length)
    return (y * q.unsqueeze(2)).sum(1).transpose(1, 2).reshape(batch, channels, length)


def _conv(
    u: Tensor,
    k: Tensor,
    D: Tensor | None,
    k_rev: Tensor | None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> Tensor:
    """conv(u pre_gate, k) + conv(.., k_rev) + D u pre_gate, times post_gate."""
    length, shape = u.shape[-1], u.shape
    k = k.reshape(k.shape[-2:])[:, :length]
    skip = None if D is None else D.reshape(-1)
    u = u.flatten(0, -3) if u.dim() != 3 else u
    gates: dict[str, Any] = {"pre_gate": pre_gate, "post_gate": post_gate}
    if k_rev is None:
        return fftconv(u, k, mode="causal", skip=skip, **gates).reshape(shape)
    k_rev = k_rev.reshape(k_rev.shape[-2:])[:, :length]
    taps = max(k.shape[1], k_rev.shape[1])
    k, k_rev = (F.pad(f, (0, taps - f.shape[1])) for f in (k, k_rev))
    k = torch.cat([k[:, :1] + k_rev[:, :1], k[:, 1:]], 1)
    k_rev = F.pad(k_rev[:, 1:], (0, 1))
    return fftconv(u, k, mode="bidirectional", k_rev=k_rev, skip=skip, **gates).reshape(shape)

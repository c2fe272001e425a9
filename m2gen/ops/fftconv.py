"""fftconv: the gated long convolution, and the operators its derivatives need.

The convolution matrix is Toeplitz in every mode, so its transpose is itself between two reversals of time. Hence two
operators close under differentiation: `fftconv`, and `fftconv_dk`, the adjoint of the convolution in its filter. A
third, `fftconv_bwd`, computes all first-order gradients in one pass where no further derivative is wanted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from m2gen.ops import _check as check
from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, fold_vmap, multilinear_jvp, register, unfold_vmap
from m2gen.ops.prepared import PreparedFilter
from m2gen.runtime import executor
from m2gen.runtime.bindings.spectral import Gradients, Operands

_U, _K, _K_REV, _PRE, _POST, _SKIP, _MODE, _PRECISION, _ADD = range(9)
_SEQUENCES, _FILTERS = (_U, _PRE, _POST, _ADD), (_K, _K_REV, _SKIP)


def fftconv(
    u: Tensor,
    k: Tensor | PreparedFilter,
    *,
    mode: str | None = None,
    k_rev: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    skip: Tensor | None = None,
    add: Tensor | None = None,
    layout: str = "BHL",
    precision: str = "auto",
) -> Tensor:
    """Long convolution with optional gates, skip and what is added to its result:

        z = u * pre_gate;    y = post_gate * (conv(z, k) + skip * z) + add

    =============== =======================================================================================
    mode            conv(z, k)[i]
    =============== =======================================================================================
    causal          sum over j <= i of k[i-j] z[j]; any filter length, taps beyond L are cut
    bidirectional   causal + sum over j > i of k_rev[j-i-1] z[j]  (M2-BERT's convention)
    same            sum over j of k[i-j+(K-1)/2] z[j], zeros outside; K odd
    circular        sum over j of k[(i-j) mod L] z[j]; K <= L
    =============== =======================================================================================

    Args:
        u: (B, H, L), float16, bfloat16, float32 or float64, any strides; (B, L, H) with ``layout="BLH"``.
        k: (H, K), any floating dtype; keeps its own under autocast. Or (B, H, K): each sample has filters of its own;
            k_rev is then (B, H, K), too, and skip (B, H) or (H,). Or a filter from `m2gen.prepare_filter`, which brings
            mode, k_rev and skip with it and whose spectra are kept from call to call.
        mode: which convolution, see above; default causal, or the prepared filter's.
        k_rev: shape of ``k``, the filter for later positions; in mode bidirectional, and only there.
        pre_gate, post_gate: shape, dtype and device of ``u``; each optional alone.
        skip: (H,), any floating dtype.
        add: shape, dtype and device of ``u``; added before a 16-bit result is rounded.
        layout: ``"BHL"`` or ``"BLH"``, of u, gates, add and result.
        precision: ``"auto"``: arithmetic is float32, or float64 where u is float64; on GPUs a generated kernel takes
            the operands of its matrix products in float16 for 16-bit tensors, and splits float32 in three TF32 parts.
            ``"wide"``: bfloat16 operands for 16-bit tensors, for values beyond float16's range, at about twice the
            error that rounding a result to bfloat16 has by itself.

    Returns:
        Shape, dtype and memory layout of ``u``. Differentiable to any order in every tensor. A NaN or infinity spoils
        its own row (b, h) and no other, but on a GPU where batch rows of a channel share a product: two in mode
        circular, and wherever the plan names a cyclic ring, as at 128 samples and taps; up to eight where it names a
        stack. On a cyclic ring a result is rounded relative to the larger of the two rows. Set
        M2GEN_CHECK_FINITE=1 to get an error instead.

    Raises:
        ProblemError: for shapes, dtypes, devices, modes or filter lengths that do not fit together.

    Source: Monarch Mixer (arXiv 2310.12109), the sequence mixer; FlashFFTConv (arXiv 2311.05908), section 3.
    """
    if isinstance(k, PreparedFilter):
        mode, filter = check.prepared(k.mode, mode, k_rev, skip), k
        k, k_rev, skip = filter.k, filter.k_rev, filter.skip
    mode = "causal" if mode is None else mode
    check.fftconv(u, k, mode, k_rev, pre_gate, post_gate, skip, layout, precision, add)
    if isinstance(k, Tensor) and k.dim() == 3:
        return _each_its_own(u, k, k_rev, pre_gate, post_gate, skip, mode, precision, add, layout)
    if layout == "BLH":
        u = u.transpose(1, 2)
        pre_gate, post_gate, add = (None if x is None else x.transpose(1, 2) for x in (pre_gate, post_gate, add))
    y: Tensor = fftconv_op(u, k, k_rev, pre_gate, post_gate, skip, mode, precision, add)
    return y.transpose(1, 2) if layout == "BLH" else y


def _each_its_own(
    u: Tensor,
    k: Tensor,
    k_rev: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    skip: Tensor | None,
    mode: str,
    precision: str,
    add: Tensor | None,
    layout: str,
) -> Tensor:
    """Filters of samples: channels of one sample."""
    batch, channels, _ = k.shape
    last = layout == "BLH"
    length = u.shape[1 if last else 2]

    def fold(x: Tensor | None) -> Tensor | None:
        return None if x is None else (x.transpose(1, 2) if last else x).reshape(1, batch * channels, length)

    k, k_rev = k.flatten(0, 1), None if k_rev is None else k_rev.flatten(0, 1)
    skip = None if skip is None else skip.expand(batch, channels).reshape(-1)
    y: Tensor = fftconv_op(fold(u), k, k_rev, fold(pre_gate), fold(post_gate), skip, mode, precision, fold(add))
    y = y.view(batch, channels, length)
    return y.transpose(1, 2) if last else y


# -- the convolution ---------------------------------------------------------------------------------------------------


def _impl(*args: Any) -> Tensor:
    tensors, (mode, precision, *add) = args[:_MODE], args[_MODE:]
    return executor.fftconv(Operands(*tensors, *add), mode, precision)


def _fake(u: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(u)


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    wanted = [bool(need) for need in needs[:_MODE]]
    found = fftconv_bwd_op(dy, *args[:_ADD], wanted) if any(wanted) else wanted
    grads = [grad if need else None for grad, need in zip(found, wanted, strict=True)]
    return [*grads, None, None, dy if needs[_ADD] else None]


def _jvp(args: Args, tangents: Args) -> Tensor:
    """That of the convolution, and of what is added; 16-bit sequences wide, as tangents may be of any size."""
    dtype = args[_U].dtype
    added, found = tangents[_ADD], None
    if any(tangent is not None for tangent in tangents[:_MODE]):
        groups = [(_U,), _FILTERS, (_PRE,), (_POST,)]
        found = multilinear_jvp(fftconv_op, groups)(_wide(args[:_ADD]), _wide(tangents[:_ADD]))
    if found is None:
        return torch.clone(added)
    y: Tensor = found if added is None else found + added
    return y.to(dtype)


def _wide(args: Args) -> Args:
    """The arguments of a convolution, 16-bit sequences among them in float32."""
    own = [i in _SEQUENCES and arg is not None for i, arg in enumerate(args)]
    return [
        a.to(torch.promote_types(a.dtype, torch.float32)) if is_own else a for a, is_own in zip(args, own, strict=True)
    ]


def transposed_conv(
    dc: Tensor, k: Tensor, k_rev: Tensor | None, skip: Tensor | None, mode: str, precision: str
) -> Tensor:
    """The transpose of the (Toeplitz) convolution matrix, applied: reverse time, convolve, reverse time."""
    flipped: Tensor = fftconv_op(dc.flip(-1), k, k_rev, None, None, skip, mode, precision)
    return flipped.flip(-1)


def _vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    folded = list(args)
    own = any(in_dims[i] is not None for i in _FILTERS)
    into = 1 if own else 0  # filters of their own: more channels; one filter for all: more batch
    for i in (*_SEQUENCES, *(_FILTERS if own else ())):
        folded[i] = fold_vmap(args[i], in_dims[i], info.batch_size, into if i in _SEQUENCES else 0)
    return unfold_vmap(fftconv_op(*folded), info.batch_size, into), 0


# -- all first-order gradients in one pass -----------------------------------------------------------------------------


def _accumulator(like: Tensor, of: Tensor) -> Tensor:
    """Zeros in the shape of a filter, in the dtype of the arithmetic."""
    return of.new_zeros(like.shape, dtype=torch.promote_types(of.dtype, torch.float32))


def _bwd_outputs(x: Operands, needs: list[bool]) -> Gradients:
    """Where each wanted gradient is written: inputs and gates like themselves, filters and skip accumulated."""

    def like(tensor: Tensor | None, index: int) -> Tensor | None:
        return torch.empty_like(tensor) if needs[index] and tensor is not None else None

    def zeros(tensor: Tensor | None, index: int) -> Tensor | None:
        return _accumulator(tensor, x.u) if needs[index] and tensor is not None else None

    return Gradients(
        u=like(x.u, _U),
        k=zeros(x.k, _K),
        k_rev=zeros(x.k_rev, _K_REV),
        pre_gate=like(x.pre_gate, _PRE),
        post_gate=like(x.post_gate, _POST),
        skip=zeros(x.skip, _SKIP),
    )


def _bwd_results(x: Operands, out: Gradients) -> tuple[Tensor, ...]:
    """One tensor for each differentiable argument, in its dtype; empty where no gradient was wanted."""
    pairs = (
        (out.u, x.u),
        (out.k, x.k),
        (out.k_rev, x.k_rev),
        (out.pre_gate, x.pre_gate),
        (out.post_gate, x.post_gate),
        (out.skip, x.skip),
    )
    return tuple(
        [_in_dtype_of(of, grad) if grad is not None and of is not None else x.u.new_empty(0) for grad, of in pairs]
    )


def _in_dtype_of(of: Tensor, grad: Tensor) -> Tensor:
    return grad if grad.dtype == of.dtype else grad.to(of.dtype)


def _bwd_impl(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, mode, precision, needs = args
    x = Operands(*tensors)
    out = _bwd_outputs(x, needs)
    executor.fftconv_gradients(dy, x, mode, precision, out)
    return _bwd_results(x, out)


def _bwd_fake(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    *tensors, _, _, needs = args
    x = Operands(*tensors)
    return _bwd_results(x, _bwd_outputs(x, needs))


def _bwd_composed(dy: Tensor, *args: Any) -> tuple[Tensor, ...]:
    """The gradients by differentiable operators; products of 16-bit numbers wide, as within a kernel."""
    *tensors, mode, precision, needs = args
    u, _, _, pre, post, _ = tensors
    wide = torch.promote_types(u.dtype, torch.float32)
    u, dy = u.to(wide), dy.to(wide)
    pre, post = (None if gate is None else gate.to(wide) for gate in (pre, post))
    z = u if pre is None else u * pre
    dc = dy if post is None else dy * post
    k, k_rev, skip = tensors[_K], tensors[_K_REV], tensors[_SKIP]
    grads: list[Tensor | None] = [None] * _MODE
    if needs[_U] or (needs[_PRE] and pre is not None):
        dz = transposed_conv(dc, k, k_rev, skip, mode, precision)
        grads[_U] = None if not needs[_U] else dz if pre is None else dz * pre
        grads[_PRE] = dz * u if needs[_PRE] and pre is not None else None
    if needs[_K] or (needs[_K_REV] and k_rev is not None):
        taps = fftconv_dk_op(z, dc, k.shape[1], mode, precision)
        grads[_K] = taps[0] if needs[_K] else None
        grads[_K_REV] = taps[1] if needs[_K_REV] and k_rev is not None else None
    if needs[_POST] and post is not None:
        grads[_POST] = dy * fftconv_op(u, k, k_rev, pre, None, skip, mode, precision)
    if needs[_SKIP] and skip is not None:
        grads[_SKIP] = (z * dc).sum((0, 2))
    empty = tensors[_U].new_empty(0)
    return tuple(empty if grad is None else grad.to(t.dtype) for grad, t in zip(grads, tensors, strict=True))


def _bwd_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    *tensors, mode, precision, needs = args
    for i, tensor in enumerate(tensors):  # dy stands first, so every index is one more than in fftconv
        into = 1 if i in (0, 1 + _U, 1 + _PRE, 1 + _POST) else 0
        tensors[i] = fold_vmap(tensor, in_dims[i], info.batch_size, into)
    found = fftconv_bwd_op(*tensors, mode, precision, needs)
    channel_dims = {_U: 1, _PRE: 1, _POST: 1, _K: 0, _K_REV: 0, _SKIP: 0}
    grads = tuple(
        unfold_vmap(g, info.batch_size, channel_dims[i]) if g.dim() > 1 or (needs[i] and i == _SKIP) else g
        for i, g in enumerate(found)
    )
    return grads, tuple(0 if g is not found[i] else None for i, g in enumerate(grads))


# -- the adjoint in the filter -----------------------------------------------------------------------------------------


def _dk_shape(dc: Tensor, length: int, mode: str) -> tuple[int, ...]:
    return (2 if mode == "bidirectional" else 1), dc.shape[1], length


def _dk_impl(z: Tensor, dc: Tensor, length: int, mode: str, precision: str) -> Tensor:
    taps = z.new_zeros(_dk_shape(dc, length, mode), dtype=torch.promote_types(z.dtype, torch.float32))
    x = Operands(z, taps[0], taps[1] if taps.shape[0] == 2 else None)
    executor.fftconv_gradients(dc, x, mode, precision, Gradients(k=x.k, k_rev=x.k_rev))
    return taps


def _dk_fake(z: Tensor, dc: Tensor, length: int, mode: str, precision: str) -> Tensor:
    return z.new_empty(_dk_shape(dc, length, mode), dtype=torch.promote_types(z.dtype, torch.float32))


def _dk_vjp(args: Args, grad: Tensor, needs: Args) -> Args:
    z, dc, _, mode, precision = args
    k, k_rev = grad[0], grad[1] if grad.shape[0] == 2 else None
    dz = transposed_conv(dc, k, k_rev, None, mode, precision) if needs[0] else None
    ddc = fftconv_op(z, k, k_rev, None, None, None, mode, precision) if needs[1] else None
    return [dz, ddc, None, None, None]


def _dk_vmap(info: Any, in_dims: tuple[Any, ...], z: Tensor, dc: Tensor, *rest: Any) -> tuple[Tensor, int]:
    folded = [fold_vmap(x, dim, info.batch_size, into=1) for x, dim in zip((z, dc), in_dims, strict=False)]
    return unfold_vmap(fftconv_dk_op(*folded, *rest), info.batch_size, 1), 0


_TENSORS = "Tensor u, Tensor k, Tensor? k_rev, Tensor? pre_gate, Tensor? post_gate, Tensor? skip"

fftconv_op: Any = register(
    Definition(
        schema=f"fftconv({_TENSORS}, str mode, str precision, Tensor? add=None) -> Tensor",
        check=operands.fftconv,
        impl=_impl,
        fake=_fake,
        vjp=_vjp,
        jvp=_jvp,
        vmap=_vmap,
        unsaved=(_ADD,),
        autocast=_SEQUENCES,
    )
)
fftconv_bwd_op: Any = register(
    Definition(
        schema=f"fftconv_bwd(Tensor dy, {_TENSORS}, str mode, str precision, bool[] needs) -> "
        "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        check=operands.fftconv_bwd,
        impl=_bwd_impl,
        fake=_bwd_fake,
        composed=_bwd_composed,
        vmap=_bwd_vmap,
    )
)
fftconv_dk_op: Any = register(
    Definition(
        schema="fftconv_dk(Tensor z, Tensor dc, SymInt length, str mode, str precision) -> Tensor",
        check=operands.fftconv_dk,
        impl=_dk_impl,
        fake=_dk_fake,
        vjp=_dk_vjp,
        jvp=lambda args, tangents: multilinear_jvp(fftconv_dk_op, [(0,), (1,)])(args, tangents),
        vmap=_dk_vmap,
    )
)

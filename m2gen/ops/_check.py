"""What an op accepts, said in one place: every refusal names what was asked, what was found and what to do.

Messages are built only where they are raised: torch.compile traces these checks with symbolic sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from m2gen.config import config
from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError
from m2gen.kernels.activation import ACTIVATIONS
from m2gen.log import fallback
from m2gen.ops.values import all_true, look, traced
from m2gen.planner.fftconv.problem import MODES
from m2gen.planner.problem import LAYOUTS

_FLOATS = {getattr(torch, dtype.torch_name) for dtype in DTYPES.values()}
_CHECK_FINITE = config().check_finite  # read once: tracing must not meet a cached function
PRECISIONS = ("auto", "wide")


def choice(op: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProblemError(f"{op}({name}={value!r})", f"not a known {name}", f"use one of {', '.join(allowed)}")


def tensor(op: str, name: str, value: object, shape: tuple[int | str, ...], like: Tensor | None = None) -> None:
    """`value` is a dense floating tensor of that shape (letters match any size), on the device of `like`."""
    right = (
        isinstance(value, Tensor)
        and value.dtype in _FLOATS
        and value.layout is torch.strided
        and not value.is_nested
        and fits(value.shape, shape)
        and (like is None or value.device == like.device)
    )
    if not right:
        _refuse(op, name, value, shape, like)


def _refuse(op: str, name: str, value: object, shape: tuple[int | str, ...], like: Tensor | None) -> None:
    """Raises ProblemError for what `tensor` says of `value`."""
    if not isinstance(value, Tensor):
        raise ProblemError(f"{op}: {name}", f"found a {type(value).__name__}", f"give a tensor of shape {_text(shape)}")
    if value.dtype not in _FLOATS:
        raise ProblemError(
            f"{op}: {name}",
            f"its dtype is {value.dtype}",
            "convert it to float16, bfloat16, float32 or float64; complex sequences go as two real ones",
        )
    if value.layout is not torch.strided or value.is_nested:
        found = "it is a nested tensor" if value.is_nested else f"its layout is {value.layout}"
        raise ProblemError(f"{op}: {name}", found, "give a dense tensor (to_dense(), or to_padded_tensor())")
    if not fits(value.shape, shape):
        raise ProblemError(f"{op}: {name}", f"its shape is {tuple(value.shape)}", f"give it the shape {_text(shape)}")
    if like is not None:
        same_device(op, name, value, like)


def fits(sizes: tuple[int, ...], shape: tuple[int | str, ...]) -> bool:
    if len(sizes) != len(shape):
        return False
    for size, asked in zip(sizes, shape, strict=True):  # noqa: SIM110  # at every call: all() takes twice as long
        if size != asked and asked.__class__ is not str:
            return False
    return True


def same_device(op: str, name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ProblemError(
            f"{op}: {name}", f"it is on {value.device} and the input on {like.device}", f"move it to {like.device}"
        )


def _text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def same_dtype(op: str, name: str, value: Tensor, of: str, other: Tensor, autocast: bool = False) -> None:
    """With `autocast`, dtypes may differ where autocast is going to cast; what it has made of them is checked again."""
    if value.dtype == other.dtype or (autocast and torch.is_autocast_enabled(other.device.type)):
        return
    do = f"convert it to {other.dtype}"
    if torch.float64 in (value.dtype, other.dtype):
        do += ", or both to float32: autocast leaves float64 as it is"
    raise ProblemError(f"{op}: {name}", f"its dtype is {value.dtype} and that of {of} is {other.dtype}", do)


def left_to_the_operator(required: Sequence[object], *optional: object) -> bool:
    """Whether a public function may leave its checks to the operator, which makes the same ones: outside a compiler,
    which would wrap the operator's errors, with tensors that the dispatcher takes, and without a look at values."""
    if _CHECK_FINITE or torch.compiler.is_compiling():
        return False
    return all(isinstance(t, Tensor) for t in (*required, *(t for t in optional if t is not None)))


def finite(op: str, **tensors: Tensor | None) -> None:
    """With M2GEN_CHECK_FINITE=1: no NaN, no infinity. A graph that is being made has the check in it, but for one of
    torch.jit.trace, which has no place for it: the log says so."""
    if not _CHECK_FINITE:
        return
    for name, value in tensors.items():
        if value is None:
            continue
        good = torch.isfinite(value)
        seen = look(good, wait=True)
        asked = f"{op}: {name} is finite (M2GEN_CHECK_FINITE=1)"
        if seen is None:
            _finite_in_a_graph(good, asked)
        elif not all_true(good, wait=True):
            raise ProblemError(
                asked,
                f"found {seen.numel() - int(seen.count_nonzero())} NaN or infinite values of {seen.numel()}",
                "look for the layer that made them, or unset M2GEN_CHECK_FINITE to let them propagate",
            )


def _finite_in_a_graph(good: Tensor, asked: str) -> None:
    if traced():
        fallback(f"{asked}: not checked in what torch.jit.trace makes")
    elif not good.is_meta:
        torch._assert_async(good.all(), asked)


def fftconv(
    u: Tensor,
    k: Tensor,
    mode: str,
    k_rev: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    skip: Tensor | None,
    layout: str,
    precision: str,
    add: Tensor | None,
) -> None:
    choice("fftconv", "layout", layout, LAYOUTS)
    choice("fftconv", "mode", mode, MODES)
    choice("fftconv", "precision", precision, PRECISIONS)
    of_samples = isinstance(k, Tensor) and k.dim() == 3  # which the operator is given as channels of one
    if layout == "BHL" and not of_samples and left_to_the_operator((u, k), k_rev, pre_gate, post_gate, skip, add):
        return
    filters = _of_one_sample(u, k, k_rev, skip, layout) if of_samples else (k, k_rev, skip)
    operands = u, filters[0], filters[1], pre_gate, post_gate, filters[2]
    convolution("fftconv", operands, mode, precision, add, layout, autocast=True)
    finite("fftconv", u=u, k=k, k_rev=k_rev, pre_gate=pre_gate, post_gate=post_gate, skip=skip, add=add)


def _of_one_sample(
    u: Tensor, k: Tensor, k_rev: Tensor | None, skip: Tensor | None, layout: str
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Of filters (B, H, K) those of one sample, which fit if all do."""
    tensor("fftconv", "u", u, tuple(layout))
    samples, channels = u.shape[0], u.shape[1 if layout == "BHL" else 2]
    if k.shape[:2] != (samples, channels):
        do = f"give it the shape ({channels}, K), or ({samples}, {channels}, K) for filters of each sample"
        raise ProblemError("fftconv: k", f"its shape is {tuple(k.shape)}", do)
    if k_rev is not None:
        tensor("fftconv", "k_rev", k_rev, tuple(k.shape), k)
    if isinstance(skip, Tensor) and skip.dim() == 2:
        tensor("fftconv", "skip", skip, (samples, channels), k)
        skip = skip.new_empty(channels)
    return k.new_empty(k.shape[1:]), None if k_rev is None else k_rev.new_empty(k.shape[1:]), skip


def convolution(
    op: str,
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    mode: str,
    precision: str,
    add: Tensor | None = None,
    layout: str = "BHL",
    autocast: bool = False,
) -> None:
    """The operands u, k, k_rev, pre_gate, post_gate, skip of a convolution, and what is added, fit together."""
    u, k, k_rev, pre_gate, post_gate, skip = operands
    choice(op, "mode", mode, MODES)
    choice(op, "precision", precision, PRECISIONS)
    tensor(op, "u", u, tuple(layout))
    channels, length = (u.shape[1], u.shape[2]) if layout == "BHL" else (u.shape[2], u.shape[1])
    if isinstance(k, Tensor) and k.dim() == 2 and k.shape[0] != channels:
        other = "BLH" if layout == "BHL" else "BHL"
        do = f'give it the shape ({channels}, K), or is u {tuple(u.shape)} laid out otherwise? Then layout="{other}"'
        raise ProblemError(f"{op}: k", f"its shape is {tuple(k.shape)}", do)
    tensor(op, "k", k, (channels, "K"), u)
    filter_length(op, mode, k.shape[1], length)
    filter(op, k, mode, k_rev, skip)
    for name, like in (("pre_gate", pre_gate), ("post_gate", post_gate), ("add", add)):
        if like is not None:
            tensor(op, name, like, tuple(u.shape), u)
            same_dtype(op, name, like, "u", u, autocast)


def filter(op: str, k: Tensor, mode: str, k_rev: Tensor | None, skip: Tensor | None) -> None:
    """What belongs to the filter fits together."""
    choice(op, "mode", mode, MODES)
    tensor(op, "k", k, ("H", "K"))
    if (k_rev is not None) != (mode == "bidirectional"):
        found = "k_rev is missing" if k_rev is None else f"k_rev is given and mode {mode} has no use for it"
        raise ProblemError(f"{op}(mode={mode!r})", found, "give k_rev in mode bidirectional, and only there")
    if k_rev is not None:
        tensor(op, "k_rev", k_rev, tuple(k.shape), k)
    if skip is not None:
        tensor(op, "skip", skip, (k.shape[0],), k)


def prepared(own: str, mode: str | None, k_rev: Tensor | None, skip: Tensor | None) -> str:
    """The mode of a prepared filter; what it brings is not given a second time."""
    if mode not in (None, own) or k_rev is not None or skip is not None:
        given = "k_rev" if k_rev is not None else "skip" if skip is not None else f"mode={mode!r}"
        raise ProblemError(
            f"fftconv: {given} beside a prepared filter",
            f"the filter was prepared for mode {own}, with its own k_rev and skip",
            "leave it out, or prepare another filter with it",
        )
    return own


def filter_length(op: str, mode: str, taps: int, length: int) -> None:
    if taps <= 0:
        found, do = "the filter has no taps", "give a filter of at least one tap"
    elif mode == "same" and taps % 2 == 0:
        found, do = "the filter has no middle tap", "give it an odd number of taps"
    elif mode == "circular" and taps > length:
        found, do = "a circular filter has at most L taps", "fold the filter modulo L, or cut it"
    else:
        return
    raise ProblemError(f"{op}(mode={mode!r}) with K = {taps} and L = {length}", found, do)


def blockdiag_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    residual: Tensor | None = None,
    glu: bool = False,
) -> None:
    op = "blockdiag_glu" if glu else "blockdiag_linear"
    if activation is not None:
        choice(op, "activation", activation, ACTIVATIONS)
    if left_to_the_operator((x, weight), bias, residual):
        return
    blocks(op, x, weight, bias, residual, glu, autocast=True)
    finite(op, x=x, weight=weight, bias=bias, residual=residual)


def blocks(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    glu: bool = False,
    autocast: bool = False,
) -> None:
    """The operands of a block-diagonal product and its epilogue fit together."""
    tensor(op, "weight", weight, ("nblocks", "block_out", "block_in"))
    nblocks, block_out, block_in = weight.shape
    _last_axis(op, x, nblocks, block_in)
    same_device(op, "weight", weight, x)
    same_dtype(op, "weight", weight, "x", x, autocast)
    if bias is not None:
        tensor(op, "bias", bias, (nblocks * block_out,), x)
        same_dtype(op, "bias", bias, "x", x, autocast)
    if glu and nblocks % 2:
        raise ProblemError(
            f"{op}: weight",
            f"its {nblocks} blocks are not halves of gate and value",
            "use an even number of blocks, or blockdiag_linear and the gate after it",
        )
    if residual is not None:
        tensor(op, "residual", residual, (*x.shape[:-1], nblocks * block_out // (2 if glu else 1)), x)
        same_dtype(op, "residual", residual, "x", x, autocast)


def _last_axis(op: str, x: Tensor, nblocks: int, block_in: int) -> None:
    of_any_rank(op, "x", x)
    if x.shape[-1] != nblocks * block_in:
        raise ProblemError(
            f"{op}: x",
            f"its last axis has {x.shape[-1]} entries",
            f"give it nblocks * block_in = {nblocks} * {block_in} = {nblocks * block_in}",
        )


def of_any_rank(op: str, name: str, x: Tensor, like: Tensor | None = None) -> None:
    """A tensor of at least one axis."""
    rank = x.dim() if isinstance(x, Tensor) else 1
    tensor(op, name, x, ("...",) * max(1, rank), like)


def factors_of(op: str, factors: Any) -> list[Tensor]:
    """`factors` as a list of tensors."""
    listed = hasattr(factors, "__iter__") and not isinstance(factors, str | dict | Tensor)
    given = list(factors) if listed else [factors]
    for one in given:
        if not isinstance(one, Tensor) or not listed:
            raise ProblemError(
                f"{op}: factors",
                f"found a {type(one).__name__}",
                "give a list of tensors (nblocks, block_out, block_in)",
            )
    return given


def monarch_matmul(x: Tensor, factors: Sequence[Tensor]) -> None:
    if left_to_the_operator((x, *factors)):
        return
    stages("monarch_matmul", x, factors, autocast=True)
    finite("monarch_matmul", x=x, **{f"factors[{i}]": f for i, f in enumerate(factors)})


def stages(op: str, x: Tensor, factors: Sequence[Tensor], autocast: bool = False) -> None:
    """The operands of a Monarch product fit together, but for how many blocks inner factors have."""
    if not factors:
        raise ProblemError(op, "there are no factors", "give one (nblocks, block_out, block_in) tensor for each order")
    for i, factor in enumerate(factors):
        tensor(op, f"factors[{i}]", factor, ("nblocks", "block_out", "block_in"))
    first = factors[0]
    _last_axis(op, x, first.shape[0], first.shape[2])
    for i, factor in enumerate(factors):
        same_device(op, f"factors[{i}]", factor, x)
        same_dtype(op, f"factors[{i}]", factor, "x", x, autocast)
    for i, (a, b) in enumerate(pairwise(factors)):
        if a.shape[0] * a.shape[1] != b.shape[0] * b.shape[2]:
            raise ProblemError(
                f"{op}: factors[{i}] of shape {tuple(a.shape)} before factors[{i + 1}] of shape {tuple(b.shape)}",
                f"the first gives {a.shape[0] * a.shape[1]} values and the second takes {b.shape[0] * b.shape[2]}",
                "make nblocks * block_out of each equal nblocks * block_in of the next",
            )

"""What an op accepts, said in one place: every refusal names what was asked, what was found and what to do.

Messages are built only where they are raised: torch.compile traces these checks with symbolic sizes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from m2gen.config import config
from m2gen.dtypes import DTYPES
from m2gen.errors import ProblemError
from m2gen.planner.problem import LAYOUTS, MODES

_FLOATS = {getattr(torch, dtype.torch_name) for dtype in DTYPES.values()}
_CHECK_FINITE = config().check_finite  # read once: tracing must not meet a cached function
PRECISIONS = ("auto", "wide")
PADDINGS = ("causal", "same")


def choice(op: str, name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ProblemError(f"{op}({name}={value!r})", f"not a known {name}", f"use one of {', '.join(allowed)}")


def tensor(op: str, name: str, value: object, shape: tuple[int | str, ...], like: Tensor | None = None) -> None:
    """`value` is a floating tensor of that shape (letters match any size), on the device of `like`."""
    if not isinstance(value, Tensor):
        raise ProblemError(f"{op}: {name}", f"found a {type(value).__name__}", f"give a tensor of shape {_text(shape)}")
    if value.dtype not in _FLOATS:
        raise ProblemError(
            f"{op}: {name}",
            f"its dtype is {value.dtype}",
            "convert it to float16, bfloat16, float32 or float64; complex sequences go as two real ones",
        )
    fits = value.dim() == len(shape) and all(
        isinstance(s, str) or s == n for s, n in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ProblemError(f"{op}: {name}", f"its shape is {tuple(value.shape)}", f"give it the shape {_text(shape)}")
    if like is not None and value.device != like.device:
        raise ProblemError(
            f"{op}: {name}", f"it is on {value.device} and the input on {like.device}", f"move it to {like.device}"
        )


def _text(shape: tuple[int | str, ...]) -> str:
    return f"({', '.join(map(str, shape))})"


def same_dtype(op: str, name: str, value: Tensor, of: str, other: Tensor) -> None:
    if value.dtype != other.dtype and not torch.is_autocast_enabled(other.device.type):
        raise ProblemError(
            f"{op}: {name}",
            f"its dtype is {value.dtype} and that of {of} is {other.dtype}",
            f"convert it to {other.dtype}",
        )


def finite(op: str, **tensors: Tensor | None) -> None:
    """With M2GEN_CHECK_FINITE=1: no NaN, no infinity."""
    if not _CHECK_FINITE:
        return
    for name, value in tensors.items():
        if value is not None and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise ProblemError(
                f"{op}: {name} is finite (M2GEN_CHECK_FINITE=1)",
                f"found {count} NaN or infinite values of {value.numel()}",
                "look for the layer that made them, or unset M2GEN_CHECK_FINITE to let them propagate",
            )


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
) -> None:
    op = "fftconv"
    choice(op, "mode", mode, MODES)
    choice(op, "layout", layout, LAYOUTS)
    choice(op, "precision", precision, PRECISIONS)
    tensor(op, "u", u, tuple(layout))
    channels, length = (u.shape[1], u.shape[2]) if layout == "BHL" else (u.shape[2], u.shape[1])
    tensor(op, "k", k, (channels, "K"), u)
    _filter_length(op, mode, k.shape[1], length)
    filter(op, k, mode, k_rev, skip)
    for name, gate in (("pre_gate", pre_gate), ("post_gate", post_gate)):
        if gate is not None:
            tensor(op, name, gate, tuple(u.shape), u)
            same_dtype(op, name, gate, "u", u)
    finite(op, u=u, k=k, k_rev=k_rev, pre_gate=pre_gate, post_gate=post_gate, skip=skip)


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


def _filter_length(op: str, mode: str, taps: int, length: int) -> None:
    if taps == 0:
        found, do = "the filter has no taps", "give a filter of at least one tap"
    elif mode == "same" and taps % 2 == 0:
        found, do = "the filter has no middle tap", "give it an odd number of taps"
    elif mode == "circular" and taps > length:
        found, do = "a circular filter has at most L taps", "fold the filter modulo L, or cut it"
    else:
        return
    raise ProblemError(f"{op}(mode={mode!r}) with K = {taps} and L = {length}", found, do)


def blockdiag_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, known: tuple[str, ...]
) -> None:
    op = "blockdiag_linear"
    if activation is not None:
        choice(op, "activation", activation, known)
    tensor(op, "weight", weight, ("nblocks", "block_out", "block_in"))
    nblocks, block_out, block_in = weight.shape
    _last_axis(op, x, nblocks, block_in)
    tensor(op, "weight", weight, tuple(weight.shape), x)
    same_dtype(op, "weight", weight, "x", x)
    if bias is not None:
        tensor(op, "bias", bias, (nblocks * block_out,), x)
        same_dtype(op, "bias", bias, "x", x)
    finite(op, x=x, weight=weight, bias=bias)


def even_blocks(op: str, weight: Tensor) -> None:
    if weight.shape[0] % 2:
        raise ProblemError(
            f"{op}: weight",
            f"its {weight.shape[0]} blocks are not halves of gate and value",
            "use an even number of blocks, or blockdiag_linear and the gate after it",
        )


def _last_axis(op: str, x: Tensor, nblocks: int, block_in: int) -> None:
    tensor(op, "x", x, tuple(["..."] * max(1, x.dim())) if isinstance(x, Tensor) else ("...",))
    if x.shape[-1] != nblocks * block_in:
        raise ProblemError(
            f"{op}: x",
            f"its last axis has {x.shape[-1]} entries",
            f"give it nblocks * block_in = {nblocks} * {block_in} = {nblocks * block_in}",
        )


def monarch_matmul(x: Tensor, factors: list[Tensor]) -> None:
    op = "monarch_matmul"
    if not factors:
        raise ProblemError(op, "there are no factors", "give one (nblocks, block_out, block_in) tensor for each order")
    for i, factor in enumerate(factors):
        tensor(op, f"factors[{i}]", factor, ("nblocks", "block_out", "block_in"))
    first = factors[0]
    _last_axis(op, x, first.shape[0], first.shape[2])
    for i, factor in enumerate(factors):
        tensor(op, f"factors[{i}]", factor, tuple(factor.shape), x)
        same_dtype(op, f"factors[{i}]", factor, "x", x)
    for i, (a, b) in enumerate(pairwise(factors)):
        if a.shape[0] * a.shape[1] != b.shape[0] * b.shape[2]:
            raise ProblemError(
                f"{op}: factors[{i}] of shape {tuple(a.shape)} before factors[{i + 1}] of shape {tuple(b.shape)}",
                f"the first gives {a.shape[0] * a.shape[1]} values and the second takes {b.shape[0] * b.shape[2]}",
                "make nblocks * block_out of each equal nblocks * block_in of the next",
            )
    finite(op, x=x, **{f"factors[{i}]": f for i, f in enumerate(factors)})


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str | int, layout: str) -> None:
    op = "depthwise_conv1d"
    choice(op, "layout", layout, LAYOUTS)
    if not (isinstance(padding, int) and not isinstance(padding, bool) and padding >= 0):
        choice(op, "padding", padding, (*PADDINGS, "or a whole number of zeros, 0 or more"))
    tensor(op, "x", x, tuple(layout))
    channels, length = (x.shape[1], x.shape[2]) if layout == "BHL" else (x.shape[2], x.shape[1])
    tensor(op, "weight", weight, (channels, "W"), x)
    same_dtype(op, "weight", weight, "x", x)
    if weight.shape[1] == 0:
        raise ProblemError(f"{op}: weight", "it has no taps", "give it at least one tap")
    if isinstance(padding, int) and length + 2 * padding < weight.shape[1]:
        raise ProblemError(
            f"{op}(padding={padding}) of {length} samples with {weight.shape[1]} taps",
            "the filter is longer than the padded sequence",
            "pad more, or use padding='causal' or 'same'",
        )
    if bias is not None:
        tensor(op, "bias", bias, (channels,), x)
        same_dtype(op, "bias", bias, "x", x)
    finite(op, x=x, weight=weight, bias=bias)

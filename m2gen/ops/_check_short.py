"""What short convolutions accept, in the user's words, and in the operator's."""

from __future__ import annotations

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.ops import _check as check
from m2gen.planner.problem import LAYOUTS

PADDINGS = ("causal", "same")


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: str | int, layout: str) -> None:
    op = "depthwise_conv1d"
    check.choice(op, "layout", layout, LAYOUTS)
    if not (isinstance(padding, int) and not isinstance(padding, bool) and padding >= 0):
        check.choice(op, "padding", padding, (*PADDINGS, "or a whole number of zeros, 0 or more"))
    if (
        layout == "BHL"
        and isinstance(padding, str)
        and check.left_to_the_operator((x, weight), bias)
        and weight.dim() == 2
    ):
        return
    short(op, x, weight, bias, layout, autocast=True)
    length = x.shape[2] if layout == "BHL" else x.shape[1]
    if isinstance(padding, int) and length + 2 * padding < weight.shape[1]:
        raise ProblemError(
            f"{op}(padding={padding}) of {length} samples with {weight.shape[1]} taps",
            "the filter is longer than the padded sequence",
            "pad more, or use padding='causal' or 'same'",
        )
    check.finite(op, x=x, weight=weight, bias=bias)


def gated_depthwise_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layout: str,
    to: str,
    offset: Tensor | None,
    mask: Tensor | None,
) -> None:
    op = "gated_depthwise_conv1d"
    check.choice(op, "layout", layout, LAYOUTS)
    check.choice(op, "to", to, LAYOUTS)
    streams(op, x, weight, bias, offset, mask, layout, autocast=True)
    check.finite(op, x=x, weight=weight, bias=bias, offset=offset)


def streams(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    layout: str = "BHL",
    autocast: bool = False,
) -> None:
    """The operands of a mixer's three short convolutions fit together."""
    short(op, x, weight, bias, layout, autocast)
    channels, length = (x.shape[layout.index(axis)] for axis in "HL")
    if channels % 3:
        raise ProblemError(f"{op}: x", f"it has {channels} channels", "give those of x1, x2 and v, three times as many")
    if offset is not None:
        check.tensor(op, "offset", offset, (channels,), x)
        check.same_dtype(op, "offset", offset, "x", x, autocast)
    if mask is not None:
        padding_mask(op, mask, (x.shape[0], length), x)


def padding_mask(op: str, mask: object, shape: tuple[int, int], like: Tensor) -> None:
    """A dense mask of real positions, on the device of `like`."""
    do = f"give a dense bool tensor (batch, length) = {shape}, true at real positions"
    if not isinstance(mask, Tensor):
        raise ProblemError(f"{op}: mask", f"found a {type(mask).__name__}", do)
    if mask.layout is not torch.strided or mask.is_nested:
        found = "it is a nested tensor" if mask.is_nested else f"its layout is {mask.layout}"
        raise ProblemError(f"{op}: mask", found, do)
    if mask.dtype != torch.bool or not check.fits(mask.shape, shape):
        raise ProblemError(f"{op}: mask", f"it is {tuple(mask.shape)} {mask.dtype}", do)
    check.same_device(op, "mask", mask, like)


def short(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, layout: str = "BHL", autocast: bool = False) -> None:
    """The operands of a short convolution fit together."""
    check.tensor(op, "x", x, tuple(layout))
    channels = x.shape[1] if layout == "BHL" else x.shape[2]
    check.tensor(op, "weight", weight, (channels, "W"), x)
    check.same_dtype(op, "weight", weight, "x", x, autocast)
    if weight.shape[1] == 0:
        raise ProblemError(f"{op}: weight", "it has no taps", "give it at least one tap")
    if bias is not None:
        check.tensor(op, "bias", bias, (channels,), x)
        check.same_dtype(op, "bias", bias, "x", x, autocast)

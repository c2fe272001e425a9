"""The problems that tensors pose: sizes, dtypes and layouts read off them, channels-last off the strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.problem import LAYOUTS
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.turn.problem import TurnProblem
from m2gen.runtime.bindings.spectral import Operands

_SHORT_NAME = {getattr(torch, dtype.torch_name): dtype.name for dtype in DTYPES.values()}


def problem_of(x: Operands, mode: str, precision: str) -> FftConvProblem:
    """The problem that the tensors pose; channels-last is read off the strides."""
    return conv_problem(*conv_sizes(x, mode, precision))


def conv_sizes(x: Operands, mode: str, precision: str) -> tuple[Any, ...]:
    u = x.u
    last = u.stride(1) == 1 and u.shape[1] > 1
    words = (x.pre_gate is not None, x.post_gate is not None, x.skip is not None, x.add is not None, last)
    return u.shape, u.dtype, x.k.shape[1], mode, precision, *words


def conv_problem(
    shape: Sequence[int],
    dtype: torch.dtype,
    taps: int,
    mode: str,
    precision: str,
    pre_gate: bool,
    post_gate: bool,
    skip: bool,
    add: bool,
    last: bool,
) -> FftConvProblem:
    batch, channels, length = shape
    return FftConvProblem(
        n=length,
        h=channels,
        b=batch,
        dtype=_SHORT_NAME[dtype],
        mode=mode,
        wide=precision == "wide",
        k=taps,
        pre_gate=pre_gate,
        post_gate=post_gate,
        skip=skip,
        add=add,
        layout=LAYOUTS[last],
    )


def product_problem(
    shape: Sequence[int],
    rows: int,
    dtype: torch.dtype,
    bias: bool = False,
    glu: bool = False,
    activation: str | None = None,
    residual: bool = False,
) -> BlockDiagProblem:
    """The problem that a weight of this shape and so many rows pose."""
    nblocks, block_out, block_in = shape
    return BlockDiagProblem(
        n_in=nblocks * block_in,
        n_out=nblocks * block_out,
        blocks=nblocks,
        rows=rows,
        dtype=_SHORT_NAME[dtype],
        bias=bias,
        activation=activation,
        glu=glu,
        residual=residual,
    )


def monarch_problem(shapes: tuple[tuple[int, ...], ...], rows: int, dtype: torch.dtype) -> MonarchProblem:
    """The problem that factors of these shapes and so many rows pose."""
    factors = tuple((count, out, into) for count, out, into in shapes)
    (first, _, depth), (last, width, _) = factors[0], factors[-1]
    return MonarchProblem(n_in=first * depth, n_out=last * width, rows=rows, dtype=_SHORT_NAME[dtype], factors=factors)


def channels_last(x: Tensor) -> bool:
    """Whether the channels of x (B, H, L) are neighbours in memory."""
    return x.stride(1) == 1 and x.stride(2) != 1


def channels_first(x: Tensor) -> bool:
    """Whether the rows of x (B, H, L) lie in memory channel by channel, (H, B, L): as a projection W x^T of all
    positions gives them."""
    return x.shape[0] > 1 and x.stride(2) == 1 and x.stride(0) < x.stride(1)


def shortconv_problem(
    shape: Sequence[int],
    outputs: int,
    width: int,
    dtype: torch.dtype,
    bias: bool = False,
    last: bool = False,
    to_last: bool | None = None,
    gated: bool = False,
    offset: bool = False,
    masked: bool = False,
) -> ShortconvProblem:
    """The problem that x (B, H, L) of this shape poses; `last`: its channels are neighbours in memory, `to_last`: those
    of the result, by default the same."""
    batch, channels, length = shape
    return ShortconvProblem(
        n=length,
        h=channels // 3 if gated else channels,
        b=batch,
        width=width,
        out=outputs,
        dtype=_SHORT_NAME[dtype],
        bias=bias,
        gated=gated,
        offset=offset,
        masked=masked,
        layout=LAYOUTS[last],
        to=LAYOUTS[last if to_last is None else to_last],
    )


def mixed_problem(
    x: Tensor, last: bool, width: int, bias: bool, offset: bool = False, masked: bool = False
) -> ShortconvProblem:
    """The problem that x (B, 3 D, L) and results with neighbouring channels, or times, pose."""
    return shortconv_problem(x.shape, x.shape[2], width, x.dtype, bias, channels_last(x), last, True, offset, masked)


def turn_problem(batch: int, length: int, channels: int, dtype: torch.dtype) -> TurnProblem:
    """The problem that x (B, L, H) poses."""
    return TurnProblem(n=length, h=channels, b=batch, dtype=_SHORT_NAME[dtype])


def gate_problem(width: int, rows: int, dtype: torch.dtype, activation: str | None) -> GateProblem:
    """The problem that `rows` rows of `width` numbers, both halves, pose."""
    return GateProblem(n=width // 2, rows=rows, dtype=_SHORT_NAME[dtype], activation=activation)

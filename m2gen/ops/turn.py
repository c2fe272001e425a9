"""turn: sequences whose channels are neighbours in memory, copied so that their times are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from m2gen.ops import _operands as operands
from m2gen.ops._register import Args, Definition, fold_vmap, register, unfold_vmap
from m2gen.runtime import executor


def turn(x: Tensor, first: bool = False) -> Tensor:
    """x (B, L, H) -> (B, H, L): a copy, the same bits, with neighbours in time side by side in memory.

    Args:
        x: float16, bfloat16, float32 or float64, any strides. Autocast casts it.
        first: rows lie in memory channel by channel, as (H, B, L) would: so that all positions of a channel are one
            row of a matrix (H, B L). Else batch by batch, as (B, H, L).

    Raises:
        ProblemError: for anything but a dense tensor with three axes.
    """
    y: Tensor = turn_op(x, first)
    return y


def _result(x: Tensor, first: bool) -> Tensor:
    batch, length, channels = x.shape
    strides = (length, batch * length, 1) if first else (channels * length, length, 1)
    return x.new_empty_strided((batch, channels, length), strides)


def _impl(x: Tensor, first: bool) -> Tensor:
    y = _result(x, first)
    if y.numel():
        executor.turn(x, y)
    return y


def _vjp(args: Args, dy: Tensor, needs: Args) -> Args:
    return [turn_op(dy, False), None]


def _vmap(info: Any, in_dims: tuple[Any, ...], x: Tensor, first: bool) -> tuple[Tensor, int]:
    return unfold_vmap(turn_op(fold_vmap(x, in_dims[0], info.batch_size, 0), first), info.batch_size, 0), 0


turn_op: Any = register(
    Definition(
        schema="turn(Tensor x, bool first) -> Tensor",
        check=operands.turn,
        impl=_impl,
        fake=_result,
        vjp=_vjp,
        jvp=lambda args, tangents: turn_op(tangents[0], args[1]),
        vmap=_vmap,
        autocast=(0,),
    )
)

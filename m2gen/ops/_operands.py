"""What each operator accepts, however it is called: no kernel takes an address before all of this holds.

The public functions check the same in the user's words. But operators are called by compiled graphs, by derivatives,
by `torch.ops.m2gen` and behind autocast, too, and a kernel reads what shape, dtype and strides say, with nothing
between it and the process's memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.kernels.activation import ACTIVATIONS
from m2gen.ops import _check as check
from m2gen.ops import _check_short as check_short
from m2gen.planner.fftconv.problem import MODES


def fftconv(*args: Any) -> None:
    *tensors, mode, precision = args[:8]
    check.convolution("fftconv", tuple(tensors), mode, precision, *args[8:])  # add, where it is given


def fftconv_bwd(dy: Tensor, *args: Any) -> None:
    op, (*tensors, mode, precision, needs) = "fftconv_bwd", args
    check.convolution(op, tuple(tensors), mode, precision)
    _gradient(op, dy, tensors[0], tuple(tensors[0].shape), "u")
    if len(needs) != len(tensors):
        raise ProblemError(f"{op}: needs", f"it has {len(needs)} entries", f"give {len(tensors)}, one for each tensor")


def fftconv_dk(z: Tensor, dc: Tensor, length: int, mode: str, precision: str) -> None:
    op = "fftconv_dk"
    check.choice(op, "mode", mode, MODES)
    check.choice(op, "precision", precision, check.PRECISIONS)
    check.tensor(op, "z", z, ("B", "H", "L"))
    _gradient(op, dc, z, tuple(z.shape), "z", "dc")
    check.filter_length(op, mode, length, z.shape[2])
    _countable(f"{op}(length={length})", max(1, z.shape[1]) * length)


def depthwise_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, right: int) -> None:
    op = "depthwise_conv1d"
    check_short.short(op, x, weight, bias)
    _pads(op, x, weight.shape[1], left, right)


def depthwise_conv1d_dw(x: Tensor, dy: Tensor, width: int, left: int, right: int) -> None:
    op = "depthwise_conv1d_dw"
    check.tensor(op, "x", x, ("B", "H", "L"))
    if width <= 0:
        raise ProblemError(f"{op}: width", f"it is {width}", "give at least one tap")
    _countable(f"{op}(width={width})", max(1, x.shape[1]) * width)
    length = _pads(op, x, width, left, right)
    _gradient(op, dy, x, (x.shape[0], x.shape[1], length), "x")


def gated_depthwise_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, last: bool, offset: Tensor | None = None, mask: Tensor | None = None
) -> None:
    check_short.streams("gated_depthwise_conv1d", x, weight, bias, offset, mask)


def gated_depthwise_conv1d_bwd(
    dz: Tensor,
    dg: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    needs: Sequence[bool],
) -> None:
    op = "gated_depthwise_conv1d_bwd"
    check_short.streams(op, x, weight, bias, offset, mask)
    for name, grad in (("dz", dz), ("dg", dg)):
        _gradient(op, grad, x, (x.shape[0], x.shape[1] // 3, x.shape[2]), "x", name)
    if len(needs) != 4:
        do = "give 4, for x, weight, bias and offset"
        raise ProblemError(f"{op}: needs", f"it has {len(needs)} entries", do)


def turn(x: Tensor, first: bool) -> None:
    check.tensor("turn", "x", x, ("B", "L", "H"))


def _pads(op: str, x: Tensor, width: int, left: int, right: int) -> int:
    """The result's length. Negative pads cut; what they cut is there."""
    length = x.shape[2]
    found = length + left + right - width + 1
    if left < -length or right < -length or found < 0:
        raise ProblemError(
            f"{op}(left={left}, right={right}) of {length} samples with {width} taps",
            "the padding cuts more than there is, or the filter is longer than the padded sequence",
            "pad more",
        )
    _countable(f"{op}(left={left}, right={right})", max(1, x.shape[0] * x.shape[1]) * found)
    return found


def _countable(asked: str, numbers: int) -> None:
    if numbers >= 2**48:  # beyond any address, and products of sizes stay far from overflow
        raise ProblemError(asked, f"the result would have {numbers} entries", "ask for less")


def blockdiag_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None = None) -> None:
    check.blocks("blockdiag_linear", x, weight, bias, residual)


def blockdiag_epilogue(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str | None, glu: bool
) -> None:
    op = "blockdiag_glu" if glu else "blockdiag_linear"
    _activation(op, activation)
    check.blocks(op, x, weight, bias, residual, glu)


def blockdiag_epilogue_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str | None,
    glu: bool,
    needs: Sequence[bool],
) -> None:
    op = "blockdiag_epilogue_bwd"
    _activation(op, activation)
    check.blocks(op, x, weight, bias, None, glu)
    _gradient(op, dy, x, (*x.shape[:-1], weight.shape[0] * weight.shape[1] // (2 if glu else 1)), "x")
    if len(needs) != 3:
        do = "give 3, one each for x, weight and bias"
        raise ProblemError(f"{op}: needs", f"it has {len(needs)} entries", do)


def blockdiag_outer(dy: Tensor, x: Tensor, nblocks: int) -> None:
    op = "blockdiag_outer"
    check.tensor(op, "x", x, ("rows", "nblocks * block_in"))
    _gradient(op, dy, x, (x.shape[0], "nblocks * block_out"), "x")
    if nblocks <= 0 or x.shape[1] % nblocks or dy.shape[1] % nblocks:
        raise ProblemError(
            f"{op}(nblocks={nblocks})",
            f"rows of {dy.shape[1]} and {x.shape[1]} entries are not that many blocks",
            "give a number of blocks, at least one, that divides both",
        )


def monarch_backward(dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> None:
    op = "monarch_backward"
    check.stages(op, x, factors)
    _gradient(op, dy, x, (*x.shape[:-1], factors[-1].shape[0] * factors[-1].shape[1]), "x")
    if len(needs) != 1 + len(factors):
        do = f"give {1 + len(factors)}, one for x and one for each factor"
        raise ProblemError(f"{op}: needs", f"it has {len(needs)} entries", do)


def gated(z: Tensor, activation: str | None) -> None:
    _halves("gated", z, activation)


def gated_bwd(dy: Tensor, z: Tensor, activation: str | None) -> None:
    _halves("gated_bwd", z, activation)
    _gradient("gated_bwd", dy, z, (*z.shape[:-1], z.shape[-1] // 2), "z")


def _halves(op: str, z: Tensor, activation: str | None) -> None:
    _activation(op, activation)
    check.of_any_rank(op, "z", z)
    if z.shape[-1] % 2:
        raise ProblemError(
            f"{op}: z", f"its last axis has {z.shape[-1]} entries", "give gate and value, of the same size"
        )


def _activation(op: str, activation: str | None) -> None:
    if activation is not None:
        check.choice(op, "activation", activation, ACTIVATIONS)


def _gradient(op: str, dy: Tensor, like: Tensor, shape: tuple[int | str, ...], of: str, name: str = "dy") -> None:
    check.tensor(op, name, dy, shape, like)
    check.same_dtype(op, name, dy, of, like)


def in_memory(op: str, args: Sequence[Any]) -> list[Any]:
    """The arguments, their numbers lying in memory as strides say: none lazily negative, none beyond its storage."""
    found = list(args)
    for i, arg in enumerate(found):
        if isinstance(arg, Tensor):
            found[i] = _in_memory(op, arg)
        elif isinstance(arg, (list, tuple)) and arg and arg[0].__class__ is not bool:  # a union is slow
            found[i] = in_memory(op, arg)
    return found


def _in_memory(op: str, x: Tensor) -> Tensor:
    if x.is_neg():  # inside a compiled graph the key that would resolve it is masked
        x = x.resolve_neg()
    if x.is_cpu or x.is_cuda:
        held = x.untyped_storage().nbytes()
        if held < (x.storage_offset() + x.numel()) * x.itemsize or not x.is_contiguous():
            _reach(op, x, held)
    return x


def _reach(op: str, x: Tensor, held: int) -> None:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    reach = (x.storage_offset() + last + 1) * x.itemsize if x.numel() else 0
    if held < reach:
        raise ProblemError(
            f"{op}: a tensor of shape {tuple(x.shape)}",
            f"its storage holds {held} bytes and its strides reach {reach}",
            "give it its memory back: sharding and offloading free a parameter's storage outside its module's call",
        )

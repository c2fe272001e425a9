"""The short depthwise convolution by generated C++ kernels: tensors on a CPU in, tensors out."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from m2gen.errors import M2GenError
from m2gen.kernels.depthwise_conv1d import WIDEST, DepthwiseConv1dSpec
from m2gen.log import fallback, once
from m2gen.runtime.cpp_kernel import CppKernel, available, load
from m2gen.runtime.limits import live
from m2gen.runtime.scratch import on_huge_pages

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_ALONE = 32768  # results below which a second thread costs more than it does; PyTorch's own bound
_SHORT = 4096  # samples of neighbouring channels that are worth reading one after the other, where rows are short
_ITEMS = 16  # but at least so many items are left to share among threads


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, y: Tensor) -> bool:
    """Fill y (B, H, L_out), dense and laid out like x (B, H, L, any strides); whether that can be done here."""
    found = _kernel("fwd", x, weight.shape[1])
    if found is None:
        return False
    kernel, spec = found
    last = spec.layout == "BLH"
    on_huge_pages(y)
    dtype = torch.promote_types(x.dtype, torch.float32)
    # tensors that the addresses belong to stay alive until the kernel is done
    taps = (weight.t() if last else weight).to(dtype).contiguous()
    offset = None if bias is None else bias.to(dtype).contiguous()
    out = y if last or y.is_contiguous() else torch.empty_like(y, memory_format=torch.contiguous_format)
    x = x if last else _rows(x)
    batch, channels, length = x.shape
    strides = (x.stride(0), x.stride(2)) if last else x.stride()[:2]
    kernel.run(
        [x.data_ptr(), taps.data_ptr(), 0 if offset is None else offset.data_ptr(), out.data_ptr()],
        [batch, channels, length, y.shape[2], left, *strides],
        _items(spec, y),
        parallel=y.numel() >= _ALONE,
    )
    if out is not y:
        y.copy_(out)
    return True


def weight_gradients(x: Tensor, dy: Tensor, width: int, left: int) -> Tensor | None:
    """(H, width + 1): sums of dy[b, h, i] x[b, h, i + w - left] for each tap w, and of dy, in the dtype of the
    arithmetic; None where that cannot be done here. The same bits with any number of threads."""
    found = _kernel("dw", x, width)
    if found is None:
        return None
    kernel, spec = found
    last = spec.layout == "BLH"
    x, dy = (x, _columns(dy)) if last else (_rows(x), _rows(dy))
    batch, channels, length = x.shape
    group = max(1, min(channels // _ITEMS, _SHORT // length))
    items = _items(spec, dy) if last else -(-channels // group)
    shape = (items, width + 1, channels) if last else (channels, width + 1)
    sums = torch.empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))
    strides = (
        (x.stride(0), x.stride(2), dy.stride(0), dy.stride(2)) if last else (*x.stride()[:2], *dy.stride()[:2], group)
    )
    kernel.run(
        [x.data_ptr(), dy.data_ptr(), sums.data_ptr()],
        [batch, channels, length, dy.shape[2], left, *strides],
        items,
        parallel=dy.numel() >= _ALONE,
    )
    return _total(sums).t() if last else sums


def _total(parts: Tensor) -> Tensor:
    """The sum over the first dimension, always in the same order: halves onto halves."""
    while (count := parts.shape[0]) > 1:
        half = count // 2
        parts[:half] += parts[count - half :]
        parts = parts[: count - half]
    return parts[0]


def _rows(x: Tensor) -> Tensor:
    """x with neighbours in time side by side."""
    return x if x.stride(2) == 1 else x.contiguous()


def _columns(x: Tensor) -> Tensor:
    """x with channels side by side."""
    return x if x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)


def _items(spec: DepthwiseConv1dSpec, y: Tensor) -> int:
    """What the kernel of y's size splits its work into."""
    batch, channels, length = y.shape
    if spec.layout == "BLH":
        return batch * max(1, length // spec.block)
    return batch * channels


def _kernel(part: Literal["fwd", "dw"], x: Tensor, width: int) -> tuple[CppKernel, DepthwiseConv1dSpec] | None:
    """The kernel for x: channels side by side where they are so in x and fill a vector. None where there is none."""
    if x.device.type != "cpu":
        return None
    return _bound(*_choice(part, x, width, live(x.device).vector_bytes))


_Choice = tuple[Literal["fwd", "dw"], Literal["BHL", "BLH"], int, str, int]


def _choice(part: Literal["fwd", "dw"], x: Tensor, width: int, vector_bytes: int) -> _Choice:
    """What the spec for x says: part, layout, width, dtype, bytes of a vector."""
    vector_bytes = max(32, vector_bytes)
    side_by_side = x.stride(1) == 1 and x.stride(2) != 1
    last = side_by_side and x.shape[1] * _bytes(x.dtype) >= vector_bytes
    return part, "BLH" if last else "BHL", width, _DTYPES[x.dtype], vector_bytes


def spec_of(part: Literal["fwd", "dw"], x: Tensor, width: int, vector_bytes: int) -> DepthwiseConv1dSpec | None:
    """The kernel for x (B, H, L), on any device, on a CPU with vectors of so many bytes; None where there is none."""
    return None if width > WIDEST else _spec(*_choice(part, x, width, vector_bytes))


def _spec(
    part: Literal["fwd", "dw"], layout: Literal["BHL", "BLH"], width: int, dtype: str, vector_bytes: int
) -> DepthwiseConv1dSpec:
    return DepthwiseConv1dSpec(part=part, layout=layout, width=width, dtype=dtype, vector_bytes=vector_bytes)


def _bytes(dtype: torch.dtype) -> int:
    return 8 if dtype == torch.float64 else 4


@lru_cache(maxsize=1024)
def _bound(
    part: Literal["fwd", "dw"], layout: Literal["BHL", "BLH"], width: int, dtype: str, vector_bytes: int
) -> tuple[CppKernel, DepthwiseConv1dSpec] | None:
    """The compiled kernel, or None with a line in the log; found out once in a process."""
    instead = "is done by PyTorch's elementwise operators"
    if width > WIDEST:
        once(f"depthwise_conv1d of {width} taps {instead}: generated kernels have at most {WIDEST}")
        return None
    if why := available():
        fallback(f"depthwise_conv1d {instead}: {why}")
        return None
    spec = _spec(part, layout, width, dtype, vector_bytes)
    try:
        return load(spec), spec
    except M2GenError as error:
        fallback(f"depthwise_conv1d of {width} taps {instead}: {error}")
        return None

"""Gates of gated linear units by generated C++ kernels: tensors on a CPU in, tensors out."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from m2gen.errors import M2GenError
from m2gen.kernels.gate import GateSpec
from m2gen.log import fallback
from m2gen.runtime.cpp_kernel import CppKernel, available, load
from m2gen.runtime.limits import live
from m2gen.runtime.scratch import on_huge_pages

_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_ALONE = 2**15  # results below which a second thread costs more than it does; PyTorch's own bound
_ITEM = 2**14  # results of an item, about


def gated(z: Tensor, activation: str | None) -> Tensor | None:
    """activation(first half) * second half of z's last axis: (..., 2 n) -> (..., n); None where there is no kernel."""
    kernel = _kernel("fwd", z, activation)
    if kernel is None:
        return None
    z = z.contiguous()
    y = on_huge_pages(z.new_empty((*z.shape[:-1], z.shape[-1] // 2)))
    _run(kernel, [z, y], y)
    return y


def gradient(dy: Tensor, z: Tensor, activation: str | None) -> Tensor | None:
    """The gradient in z, given that of `gated`'s result."""
    kernel = _kernel("bwd", z, activation)
    if kernel is None or dy.is_neg():
        return None
    dy, z = dy.contiguous(), z.contiguous()
    dz = on_huge_pages(torch.empty_like(z))
    _run(kernel, [dy, z, dz], dy)
    return dz


def _run(kernel: CppKernel, tensors: list[Tensor], y: Tensor) -> None:
    width = max(1, y.shape[-1])
    rows, together = y.numel() // width, max(1, _ITEM // width)
    pointers = [tensor.data_ptr() for tensor in tensors]
    kernel.run(pointers, [rows, width, together], -(-rows // together), parallel=y.numel() >= _ALONE)


def _kernel(part: Literal["fwd", "bwd"], z: Tensor, activation: str | None) -> CppKernel | None:
    if z.device.type != "cpu" or z.numel() == 0 or z.is_neg():
        return None
    return _bound(part, activation, _DTYPES[z.dtype], live(z.device).vector_bytes)


def spec_of(part: Literal["fwd", "bwd"], z: Tensor, activation: str | None, vector_bytes: int) -> GateSpec:
    """The kernel for z, on any device, on a CPU with vectors of so many bytes."""
    return _spec(part, activation, _DTYPES[z.dtype], vector_bytes)


def _spec(part: Literal["fwd", "bwd"], activation: str | None, dtype: str, vector_bytes: int) -> GateSpec:
    return GateSpec(part=part, activation=activation, dtype=dtype, vector_bytes=max(32, vector_bytes))


@lru_cache(maxsize=64)
def _bound(part: Literal["fwd", "bwd"], activation: str | None, dtype: str, vector_bytes: int) -> CppKernel | None:
    """The compiled kernel, or None with a line in the log; found out once in a process."""
    if available():
        return None  # said once where the device is looked at
    try:
        return load(_spec(part, activation, dtype, vector_bytes))
    except M2GenError as error:
        fallback(f"gates are done by PyTorch's elementwise operators: {error}")
        return None

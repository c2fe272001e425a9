"""Products with block-diagonal weights by generated C++ kernels: tensors on a CPU in, tensors out.

A weight is packed anew at every call, in a twentieth of the time of the product from some hundred rows on: a packed one
that was kept would go stale in silence where somebody writes through `weight.data`. Where rows are few, each panel is
packed in cache right before it is used, so that the weight is read from memory once.

A row of a product has the same bits in any company: alone, among others, in whatever place, with any number of
threads. So every number of rows is done here: PyTorch's library, which does 16-bit products and those of machines
without a C++ compiler, chooses its sums by the number of rows. `outer`, a sum over rows, depends on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from m2gen.device.limits import DeviceLimits
from m2gen.errors import M2GenError
from m2gen.kernels.blockdiag_mm import BlockdiagMmSpec, columns_for
from m2gen.log import fallback
from m2gen.runtime.cpp_kernel import CppKernel, available, load
from m2gen.runtime.limits import live
from m2gen.runtime.scratch import on_huge_pages

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}  # 16-bit products have units of their own, which PyTorch uses
_FEWEST = 24  # rows of `outer` below which PyTorch does it as well
_PACKING = 8  # rows whose product takes as long as packing the weight
_ALONE = 2**19  # multiplications below which a second thread costs more than it does
_ROWS = 64  # rows of an item
_ITEMS = 4  # items for each thread, at least

Bound = tuple[CppKernel, BlockdiagMmSpec]


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """x (..., nblocks * block_in) by weight (nblocks, block_out, block_in) and bias -> (..., nblocks * block_out),
    contiguous; None for 16-bit and empty tensors and where there is no C++ compiler: PyTorch does these."""
    return _product(x, weight, bias, glu=False, activation=None)


def gated_product(x: Tensor, weight: Tensor, activation: str | None) -> Tensor | None:
    """activation(first half) * second half of the product, nblocks even: (..., nblocks * block_out / 2); or None."""
    return _product(x, weight, None, glu=True, activation=activation)


def outer(dy: Tensor, x: Tensor, nblocks: int) -> Tensor | None:
    """(nblocks, block_out, block_in): for each block the sum over rows of dy x^T, the weight's gradient; or None. The
    same bits with any number of threads."""
    rows, wide_out, wide_in = dy.shape[0], dy.shape[1], x.shape[1]
    k, n = wide_in // nblocks, wide_out // nblocks
    bound = _kernel("outer", x, k, rows)
    if bound is None or n < bound[1].rows:
        return None
    kernel, spec = bound
    dw = torch.empty(nblocks, n, k, dtype=x.dtype)
    dy, x = _side_by_side(dy), _side_by_side(x)
    items = nblocks * -(-n // (12 * spec.rows))
    pointers = [dy.data_ptr(), x.data_ptr(), dw.data_ptr()]
    kernel.run(pointers, [rows, nblocks, k, n, dy.stride(0), x.stride(0)], items, parallel=rows * dw.numel() >= _ALONE)
    return dw


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, glu: bool, activation: str | None) -> Tensor | None:
    nblocks, n, k = weight.shape
    rows = x.numel() // max(1, nblocks * k)
    if not x.numel() or not weight.numel():
        return None
    bound = _kernel("fwd", x, n, rows, glu, activation)
    packs = "pack" not in parts_of(rows)
    packed = weight if packs else _pack(weight)
    if bound is None or packed is None or packed.is_neg():
        return None
    kernel, spec = bound
    x2 = _side_by_side(x.reshape(rows, nblocks * k))
    bias = None if bias is None else bias.contiguous()
    wide = nblocks * n // (2 if glu else 1)
    y = on_huge_pages(x.new_empty((*x.shape[:-1], wide)))
    panels, parts = -(-n // spec.width), max(1, rows // _ROWS)
    parallel = max(rows, _PACKING) * weight.numel() >= _ALONE
    blocks = nblocks // 2 if glu else nblocks
    wanted = _ITEMS * torch.get_num_threads() if parallel else 1
    together = max(1, panels * parts * blocks // max(wanted, parts * blocks))
    pointers = [x2.data_ptr(), packed.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr()]
    sizes = [rows, nblocks, k, n, x2.stride(0), wide, parts, together, int(packs), *weight.stride()]
    kernel.run(pointers, sizes, parts * blocks * -(-panels // together), parallel=parallel)
    return y


def _pack(weight: Tensor) -> Tensor | None:
    """The weight in panels, as tiles read it."""
    nblocks, n, k = weight.shape
    bound = _kernel("pack", weight, n, 1)
    if bound is None:
        return None
    kernel, spec = bound
    panels = -(-n // spec.width)
    packed = torch.empty(nblocks * panels * k * spec.width, dtype=weight.dtype)
    sizes = [nblocks, k, n, weight.stride(0), weight.stride(1), weight.stride(2)]
    kernel.run([weight.data_ptr(), packed.data_ptr()], sizes, nblocks * panels, parallel=weight.numel() >= _ALONE)
    return packed


def _side_by_side(x: Tensor) -> Tensor:
    """x (rows, width) with the numbers of a row side by side."""
    return x if x.stride(1) == 1 else x.contiguous()


def _kernel(
    part: str, x: Tensor, outputs: int, rows: int, glu: bool = False, activation: str | None = None
) -> Bound | None:
    """The kernel for x, or None."""
    if x.device.type != "cpu" or not _worth(part, x, rows) or x.is_neg():
        return None
    limits = live(x.device)
    return _bound(part, outputs, _DTYPES[x.dtype], glu, activation, limits.vector_bytes, limits.arch)


def _worth(part: str, x: Tensor, rows: int) -> bool:
    return x.dtype in _DTYPES and (part != "outer" or rows >= _FEWEST)


def parts_of(rows: int) -> tuple[str, ...]:
    """The kernels of a product with so many rows: where one item has all of them, it packs its panel of the weight."""
    return ("fwd",) if rows < 2 * _ROWS else ("fwd", "pack")


def specs_of(
    parts: Sequence[str],
    x: Tensor,
    outputs: int,
    rows: int,
    limits: DeviceLimits,
    glu: bool = False,
    activation: str | None = None,
) -> list[BlockdiagMmSpec]:
    """The kernels of a product with x, on any device, on a CPU of those limits; none where PyTorch does it."""
    if not all(_worth(part, x, rows) for part in parts):
        return []
    how = [(glu, activation) if part == "fwd" else (False, None) for part in parts]
    more = (limits.vector_bytes, limits.arch)
    return [_spec(part, outputs, _DTYPES[x.dtype], *one, *more) for part, one in zip(parts, how, strict=True)]


@lru_cache(maxsize=1024)
def _bound(
    part: str, outputs: int, dtype: str, glu: bool, activation: str | None, vector_bytes: int, arch: str
) -> Bound | None:
    """The compiled kernel, or None with a line in the log; found out once in a process."""
    if available():
        return None  # said once where the device is looked at
    spec = _spec(part, outputs, dtype, glu, activation, vector_bytes, arch)
    try:
        return load(spec), spec
    except M2GenError as error:
        fallback(f"products with block-diagonal weights are done by PyTorch: {error}")
        return None


def _spec(
    part: str, outputs: int, dtype: str, glu: bool, activation: str | None, vector_bytes: int, arch: str
) -> BlockdiagMmSpec:
    vector_bytes = max(16, vector_bytes)
    registers = 32 if vector_bytes == 64 or arch == "neon" else 16
    columns = columns_for(outputs, vector_bytes // (8 if dtype == "fp64" else 4), registers)
    return BlockdiagMmSpec(
        part=part,  # type: ignore[arg-type]
        columns=columns,
        dtype=dtype,
        glu=glu,
        activation=activation,
        vector_bytes=vector_bytes,
        registers=registers,
    )

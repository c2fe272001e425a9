"""Monarch products and their gradients by generated C++ kernels: tensors on a CPU in, tensors out.

A row of a product, and of the gradient in x, has the same bits in any company: alone, among others, in whatever place,
with any number of threads. A weight's gradient, a sum over rows, depends on all of them, but not on the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from m2gen.device.limits import DeviceLimits
from m2gen.errors import M2GenError
from m2gen.kernels.monarch import MonarchSpec
from m2gen.log import fallback
from m2gen.planner.monarch.native import MonarchRun, Shape, backward_run, forward_run, pitch, spec_of, widest
from m2gen.runtime.cpp_kernel import CppKernel, available, load
from m2gen.runtime.limits import live
from m2gen.runtime.scratch import borrowed, on_huge_pages

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}  # 16-bit products have units of their own, which PyTorch uses
Part = Literal["fwd", "bwd", "sum"]
Bound = tuple[CppKernel, MonarchSpec]


def product(x: Tensor, factors: Sequence[Tensor], widths: Sequence[int]) -> Tensor | None:
    """x (..., n_in) by the Monarch matrix with these factors and C_i, (..., n_out), contiguous; None for 16-bit and
    empty tensors and where there is no C++ compiler."""
    bound = _kernel("fwd", x, factors)
    if bound is None:
        return None
    kernel, spec = bound
    shapes, places = _shapes(factors), _places(_shapes(factors), tuple(widths))
    x2 = _as_rows(x, places.n_in)
    y = on_huge_pages(x.new_empty((*x.shape[:-1], places.n_out)))
    run = forward_run(len(x2), shapes, spec)
    pointers = [_address(t) for t in (x2, y, *places.maps, *factors)]
    sizes = [len(x2), x2.stride(0), places.n_out, places.n_in, places.n_out, run.lanes, widest(shapes), len(shapes)]
    kernel.run(pointers, [*sizes, *_stages(factors)], run.parts, parallel=run.parallel)
    return y


def gradients(
    dy: Tensor, x: Tensor, factors: Sequence[Tensor], widths: Sequence[int], needs: Sequence[bool]
) -> list[Tensor | None] | None:
    """The gradients in x and in each factor, None where `needs` says that one is not wanted; or None where there is no
    kernel. Factors' gradients are contiguous, and have the same bits with any number of threads."""
    bound = _kernel("bwd", x, [dy, *factors])
    adding = _kernel("sum", x, [dy, *factors])
    if bound is None or adding is None:
        return None
    kernel, spec = bound
    shapes, places = _shapes(factors), _places(_shapes(factors), tuple(widths))
    x2, dy2 = _as_rows(x, places.n_in), _as_rows(dy, places.n_out)
    rows = len(x2)
    run = backward_run(rows, shapes, spec, any(needs[1:]))
    dx = on_huge_pages(torch.empty(x.shape, dtype=x.dtype)) if needs[0] else None
    dws = [torch.empty(f.shape, dtype=f.dtype) if need else None for f, need in zip(factors, needs[1:], strict=True)]
    fixed = [_address(t) for t in (x2, dy2, dx, *places.maps, *places.inverses, *factors)]
    sizes = [rows, x2.stride(0), dy2.stride(0), places.n_in, places.n_out, run.lanes, widest(shapes), run.part]
    sizes += [max(k for _, _, k in shapes), len(shapes), *_stages(factors)]
    if run.parts == 1 or not any(needs[1:]):
        kernel.run([*fixed, *map(_address, dws)], sizes, run.parts, parallel=run.parallel)
        return [dx, *dws]
    bytes_ = [0 if dw is None else -(-dw.numel() * run.parts * x.itemsize // 64) * 64 for dw in dws]
    with borrowed(sum(bytes_)) as memory:
        starts = [memory + start for start in accumulate(bytes_, initial=0)]
        at = [0 if dw is None else start for dw, start in zip(dws, starts, strict=False)]
        kernel.run([*fixed, *at], sizes, run.parts, parallel=run.parallel)
        for dw, start in zip(dws, at, strict=True):
            if dw is not None:
                _add_up(adding[0], start, dw, run)
    return [dx, *dws]


def _add_up(kernel: CppKernel, start: int, dw: Tensor, run: MonarchRun) -> None:
    items = -(-dw.numel() // run.together)
    kernel.run([start, dw.data_ptr()], [run.parts, dw.numel(), run.together], items, parallel=run.parallel)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _as_rows(x: Tensor, n: int) -> Tensor:
    """x (..., n) as (rows, n), the numbers of a row side by side."""
    x2 = x.reshape(x.numel() // n, n)
    return x2 if x2.stride(1) == 1 or n == 1 else x2.contiguous()


def _shapes(factors: Sequence[Tensor]) -> tuple[Shape, ...]:
    return tuple((f.shape[0], f.shape[1], f.shape[2]) for f in factors)


def _stages(factors: Sequence[Tensor]) -> list[int]:
    """A row of the kernels' table for each stage."""
    return [number for f in factors for number in (*f.shape, *f.stride(), pitch(f.shape[1]), pitch(f.shape[2]))]


class _Places(NamedTuple):
    """The vector's lengths before and behind, order + 1 maps of 32 bits, and their inverses."""

    n_in: int
    n_out: int
    maps: list[Tensor]
    inverses: list[Tensor]


@lru_cache(maxsize=64)
def _places(shapes: tuple[Shape, ...], widths: tuple[int, ...]) -> _Places:
    """Where numbers go between x, the stages and y; a stage's blocks lie `pitch` apart."""
    found = []
    for i, (nblocks, n, k) in enumerate(shapes):
        # number a k C + j C + c of the vector is number j of block a C + c
        gathered = np.arange(nblocks * k).reshape(-1, widths[i], k).swapaxes(1, 2).ravel()
        found.append(gathered if i == 0 else gathered[found.pop()])
        natural = np.arange(nblocks * n)
        found.append(natural.reshape(n, nblocks).T.ravel() if len(shapes) > 1 else natural)
    maps = [_apart(one, k) for one, (_, _, k) in zip(found, shapes, strict=False)]
    inverses = [_apart(np.argsort(one), n) for one, (_, n, _) in zip(found[1:], shapes, strict=True)]
    maps, inverses = [*maps, found[-1]], [np.argsort(found[0]), *inverses]
    held = [[torch.from_numpy(one.astype(np.int32)) for one in some] for some in (maps, inverses)]
    return _Places(len(found[0]), len(found[-1]), *held)


def _apart(places: np.ndarray, block: int) -> np.ndarray:
    """The places, where blocks do not lie one behind the other but `pitch` apart."""
    return places // block * pitch(block) + places % block


def _kernel(part: Part, x: Tensor, others: Sequence[Tensor]) -> Bound | None:
    """The kernel for x, or None."""
    if x.device.type != "cpu" or x.dtype not in _DTYPES:
        return None
    if any(t.numel() == 0 or t.is_neg() for t in (x, *others)):
        return None
    limits = live(x.device)
    return _bound(part, _DTYPES[x.dtype], limits.vector_bytes, limits.arch)


def specs_of(parts: Sequence[Part], x: Tensor, limits: DeviceLimits) -> list[MonarchSpec]:
    """The kernels of a product with x, on any device, on a CPU of those limits; none where others do it."""
    if x.dtype not in _DTYPES:
        return []
    return [spec_of(part, _DTYPES[x.dtype], limits.vector_bytes, limits.arch) for part in parts]


@lru_cache(maxsize=64)
def _bound(part: Part, dtype: str, vector_bytes: int, arch: str) -> Bound | None:
    """The compiled kernel, or None with a line in the log; found out once in a process."""
    if available():
        return None  # said once where the device is looked at
    spec = spec_of(part, dtype, vector_bytes, arch)
    try:
        return load(spec), spec
    except M2GenError as error:
        fallback(f"Monarch products are done stage by stage: {error}")
        return None

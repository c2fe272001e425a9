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

from m2gen.errors import M2GenError
from m2gen.kernels.monarch import MonarchSpec
from m2gen.log import fallback
from m2gen.planner.monarch.problem import MonarchProblem, Shape, inner_widths
from m2gen.planner.monarch.run import MonarchRun, backward_run, fits, forward_run, pitch, spec_of, widest
from m2gen.planner.monarch.steps import NativeMonarch, StagedMonarch
from m2gen.runtime.cpp_kernel import CppKernel, available, compile_together, load
from m2gen.runtime.limits import live
from m2gen.runtime.scratch import borrowed, on_huge_pages

_DTYPES = {torch.float32: "fp32", torch.float64: "fp64"}  # 16-bit products have units of their own, which PyTorch uses
Part = Literal["fwd", "bwd", "sum"]
Bound = tuple[CppKernel, MonarchSpec]


def product(x: Tensor, factors: Sequence[Tensor], widths: Sequence[int]) -> Tensor | None:
    """x (..., n_in) by the Monarch matrix with these factors and C_i, (..., n_out), contiguous; None for 16-bit and
    empty tensors, large blocks, and where there is no C++ compiler."""
    shapes = _shapes(factors)
    bound = _kernel("fwd", shapes, x, *factors)
    if bound is None:
        return None
    kernel, spec = bound
    places = _places(shapes, tuple(widths))
    x2 = _as_rows(x, places.n_in)
    rows = x2.shape[0]
    y = on_huge_pages(x.new_empty((*x.shape[:-1], places.n_out)))
    run = forward_run(rows, shapes, spec)
    pointers = [_address(t) for t in (x2, y, *places.maps, *factors)]
    sizes = [rows, x2.stride(0), places.n_out, places.n_in, places.n_out, run.lanes, places.widest, int(run.ahead)]
    kernel.run(pointers, [*sizes, len(shapes), *_stages(factors)], run.parts, parallel=run.parallel)
    return y


def gradients(
    dy: Tensor, x: Tensor, factors: Sequence[Tensor], widths: Sequence[int], needs: Sequence[bool]
) -> list[Tensor | None] | None:
    """The gradients in x and in each factor, None where `needs` says that one is not wanted; or None where there is no
    kernel. Factors' gradients are contiguous, and have the same bits with any number of threads."""
    shapes = _shapes(factors)
    bound, adding = (_kernel(part, shapes, x, dy, *factors) for part in ("bwd", "sum"))
    if bound is None or adding is None:
        return None
    kernel, spec = bound
    places = _places(shapes, tuple(widths))
    x2, dy2 = _as_rows(x, places.n_in), _as_rows(dy, places.n_out)
    rows = x2.shape[0]
    run = backward_run(rows, shapes, spec, any(needs[1:]))
    dx = on_huge_pages(torch.empty(x.shape, dtype=x.dtype)) if needs[0] else None
    dws = [torch.empty(f.shape, dtype=f.dtype) if need else None for f, need in zip(factors, needs[1:], strict=True)]
    fixed = [_address(t) for t in (x2, dy2, dx, *places.maps, *places.inverses, *factors)]
    sizes = [rows, x2.stride(0), dy2.stride(0), places.n_in, places.n_out, run.lanes, places.widest, run.part]
    sizes += [max([shape[2] for shape in shapes]), len(shapes), *_stages(factors)]
    if run.parts == 1:
        kernel.run(fixed + [_address(dw) for dw in dws], sizes, 1, parallel=False)
    elif any(needs[1:]):
        _by_parts(kernel, adding[0], fixed, sizes, run, dws)
    else:
        kernel.run(fixed + [0] * len(dws), sizes, run.parts, parallel=run.parallel)
    return [dx, *dws]


def _by_parts(
    kernel: CppKernel, adding: CppKernel, fixed: list[int], sizes: list[int], run: MonarchRun, dws: list[Tensor | None]
) -> None:
    """Each part's sums in memory of its own, then all of them added up in order."""
    wanted = [dw for dw in dws if dw is not None]
    bytes_ = [-(-dw.numel() * run.parts * dw.element_size() // 64) * 64 for dw in wanted]
    with borrowed(sum(bytes_)) as memory:
        starts = [memory + start for start in accumulate(bytes_[:-1], initial=0)]
        at = iter(starts)
        kernel.run(fixed + [0 if dw is None else next(at) for dw in dws], sizes, run.parts, parallel=run.parallel)
        for dw, start in zip(wanted, starts, strict=True):
            items = -(-dw.numel() // run.together)
            numbers = [run.parts, dw.numel(), run.together]
            adding.run([start, dw.data_ptr()], numbers, items, parallel=run.parallel)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _as_rows(x: Tensor, n: int) -> Tensor:
    """x (..., n) as (rows, n), the numbers of a row side by side."""
    x2 = x.reshape(x.numel() // n, n)
    return x2 if x2.stride(1) == 1 or n == 1 else x2.contiguous()


def _stages(factors: Sequence[Tensor]) -> list[int]:
    """A row of the kernels' table for each stage."""
    found: list[int] = []
    for f in factors:
        nblocks, n, k = f.shape
        found += [nblocks, n, k, *f.stride(), pitch(n), pitch(k)]
    return found


class _Places(NamedTuple):
    """The vector's lengths before and behind and at most between, order + 1 maps of 32 bits, and their inverses."""

    n_in: int
    n_out: int
    widest: int
    maps: list[Tensor]
    inverses: list[Tensor]


@lru_cache(maxsize=64)
def _places(shapes: tuple[Shape, ...], widths: tuple[int, ...]) -> _Places:
    """Where numbers go between x, the stages and y; a stage's blocks lie `pitch` apart."""
    found: list[np.ndarray] = []
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
    return _Places(len(found[0]), len(found[-1]), widest(shapes), *held)


def _apart(places: np.ndarray, block: int) -> np.ndarray:
    """The places, where blocks do not lie one behind the other but `pitch` apart."""
    apart: np.ndarray = places // block * pitch(block) + places % block
    return apart


def _shapes(factors: Sequence[Tensor]) -> tuple[Shape, ...]:
    return tuple([tuple(f.shape) for f in factors])  # type: ignore[misc]


def _kernel(part: Part, shapes: tuple[Shape, ...], x: Tensor, *others: Tensor) -> Bound | None:
    """The kernel for x and factors of these shapes, or None."""
    if x.device.type != "cpu" or not _worth(x, shapes):
        return None
    for t in (x, *others):  # at every call: any() takes twice as long
        if t.numel() == 0 or t.is_neg():
            return None
    limits = live(x.device)
    return _bound(part, _DTYPES[x.dtype], limits.vector_bytes, limits.arch)


def _worth(x: Tensor, shapes: tuple[Shape, ...]) -> bool:
    return x.dtype in _DTYPES and fits(shapes)


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


# -- planned -----------------------------------------------------------------------------------------------------------


class NativeKernel:
    """One planned product, and all its gradients. Raises CompileError where the kernel does not compile."""

    def __init__(self, problem: MonarchProblem, step: NativeMonarch) -> None:
        self.widths = inner_widths(step.factors)
        compile_together(*step.kernels(problem))
        load(step.spec)

    def product(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor | None:
        """As of this file; None for what no kernel does."""
        return product(x, factors, self.widths)

    def gradients(
        self, dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]
    ) -> list[Tensor | None] | None:
        """As of this file; None for what no kernel does."""
        return gradients(dy, x, factors, self.widths, needs)


class StagedKernel:
    """A product for each factor, which the operator makes itself."""

    def __init__(self, problem: MonarchProblem, step: StagedMonarch) -> None:
        pass

    def product(self, x: Tensor, factors: Sequence[Tensor]) -> None:
        """None: the operator goes stage by stage."""

    def gradients(self, dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> None:
        """None: the operator goes stage by stage."""

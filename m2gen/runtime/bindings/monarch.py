"""Monarch products and their gradients by generated C++ kernels: tensors on a CPU in, tensors out.

A row of a product, and of the gradient in x, has the same bits in any company: alone, among others, in whatever place,
with any number of threads. A weight's gradient, a sum over rows, depends on all of them, but not on the threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from m2gen.planner.monarch.problem import MonarchProblem, Shape, inner_widths
from m2gen.planner.monarch.run import MonarchRun, pitch, widest
from m2gen.planner.monarch.steps import NativeMonarch
from m2gen.runtime.bindings.blockdiag import as_rows
from m2gen.runtime.bindings.monarch_stages import gradients, inputs_and_result
from m2gen.runtime.build.cpp_kernel import CppKernel, compile_together, load
from m2gen.runtime.build.scratch import borrowed, on_huge_pages


class NativeKernel:
    """One planned product, and all its gradients. Raises CompileError where the product's kernel does not compile."""

    def __init__(self, problem: MonarchProblem, step: NativeMonarch) -> None:
        self.problem, self.rows, self.shapes, self.parts = problem, problem.rows, step.factors, step.parts(problem)
        self.places = _places(self.shapes, tuple(inner_widths(self.shapes)))
        self.run, self.of_x, self.of_all = step.forward, step.of_x, step.of_all
        compile_together(*self.parts.values())
        self.kernel = load(step.spec)
        self.dtype = torch.float64 if step.spec.dtype == "fp64" else torch.float32  # of the arithmetic

    def product(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """x (..., n_in) by the Monarch matrix with these factors, (..., n_out), contiguous."""
        places, run, dtype = self.places, self.run, x.dtype
        rows, factors = _as_rows(x.to(self.dtype), places.n_in), [self._plain(f) for f in factors]
        y = on_huge_pages(rows.new_empty((*x.shape[:-1], places.n_out)))
        pointers = [_address(t) for t in (rows, y, *places.maps, *factors)]
        sizes = [self.rows, rows.stride(0), places.n_out, places.n_in, places.n_out, run.lanes, places.widest]
        sizes += [int(run.ahead), len(factors), *_stages(factors)]
        self.kernel.run(pointers, sizes, run.parts, parallel=run.parallel)
        return y.to(dtype)

    def _plain(self, factor: Tensor) -> Tensor:
        """Its numbers as they lie in memory, in the dtype of the arithmetic."""
        return factor.resolve_neg().to(self.dtype)

    def gradients(self, dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
        """Those in x and in each factor, None where `needs` says that one is not wanted. Factors' gradients are
        contiguous, and have the same bits with any number of threads. Raises CompileError."""
        kernel, adding = load(self.parts["bwd"]), load(self.parts["sum"])
        places, summed = self.places, any(needs[1:])
        dtype, factors = x.dtype, [self._plain(f) for f in factors]
        x2, dy2 = _as_rows(x.to(self.dtype), places.n_in), _as_rows(dy.to(self.dtype), places.n_out)
        run = self.of_all if summed else self.of_x
        dx = on_huge_pages(x2.new_empty(x.shape)) if needs[0] else None
        dws = [
            torch.empty(f.shape, dtype=f.dtype) if need else None for f, need in zip(factors, needs[1:], strict=True)
        ]
        fixed = [_address(t) for t in (x2, dy2, dx, *places.maps, *places.inverses, *factors)]
        sizes = [self.rows, x2.stride(0), dy2.stride(0), places.n_in, places.n_out, run.lanes, places.widest, run.part]
        sizes += [max([shape[2] for shape in self.shapes]), len(factors), *_stages(factors)]
        if run.parts == 1:
            kernel.run(fixed + [_address(dw) for dw in dws], sizes, 1, parallel=False)
        elif summed:
            _by_parts(kernel, adding, fixed, sizes, run, dws)
        else:
            kernel.run(fixed + [0] * len(dws), sizes, run.parts, parallel=run.parallel)
        return [None if grad is None else grad.to(dtype) for grad in (dx, *dws)]


class Stage(Protocol):
    """The kernel of a product with one factor (bindings/blockdiag.py)."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def outer(self, dy: Tensor, x: Tensor) -> Tensor: ...


class StagedKernel:
    """A product for each factor: `stages`, and `back` for the gradients behind them, the first factor's first."""

    def __init__(self, stages: Sequence[Stage], back: Sequence[Stage]) -> None:
        self.stages, self.back = stages, back

    def product(self, x: Tensor, factors: Sequence[Tensor]) -> Tensor:
        """x (..., n_in) by the Monarch matrix with these factors, (..., n_out), contiguous."""
        return inputs_and_result(x, factors, self._product)[1].contiguous()

    def gradients(self, dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
        """Those in x and in each factor, contiguous; None where `needs` says that one is not wanted."""
        found = gradients(dy, x, factors, needs, self._product, self._behind, self._outer)
        return [None if grad is None else grad.contiguous() for grad in found]

    def _product(self, x: Tensor, factor: Tensor, i: int) -> Tensor:
        return self.stages[i].product(x, factor, None)

    def _behind(self, dy: Tensor, turned: Tensor, i: int) -> Tensor:
        return self.back[i].product(dy, turned, None)

    def _outer(self, dy: Tensor, x: Tensor, i: int) -> Tensor:
        return self.stages[i].outer(as_rows(dy), as_rows(x))


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
    """x (..., n) as (rows, n), the numbers of a row side by side, as they lie in memory."""
    x2 = x.resolve_neg().reshape(x.numel() // n, n)
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

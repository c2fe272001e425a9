"""Tensors to a kernel: read the problem off the tensors, ask the planner, bind the plan, run it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from m2gen import log
from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.errors import CompileError
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.problem import Problem
from m2gen.planner.search import plan
from m2gen.runtime import ahead, tune, wisdom
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.blockdiag import LibraryKernel, applied, matmul_blocks, outer_blocks
from m2gen.runtime.blockdiag import NativeKernel as NativeProductKernel
from m2gen.runtime.fused import FusedKernel
from m2gen.runtime.limits import live
from m2gen.runtime.monarch import NativeKernel as MonarchKernel
from m2gen.runtime.monarch import StagedKernel as StagedMonarchKernel
from m2gen.runtime.native import NativeKernel
from m2gen.runtime.spectral import Gradients, Operands, SpectralKernel

_SHORT_NAME = {getattr(torch, dtype.torch_name): dtype.name for dtype in DTYPES.values()}


def problem_of(x: Operands, mode: str, precision: str) -> FftConvProblem:
    """The problem that the tensors pose; channels-last is read off the strides."""
    batch, channels, length = x.u.shape
    return FftConvProblem(
        n=length,
        h=channels,
        b=batch,
        dtype=_SHORT_NAME[x.u.dtype],
        mode=mode,
        wide=precision == "wide",
        k=x.k.shape[1],
        pre_gate=x.pre_gate is not None,
        post_gate=x.post_gate is not None,
        skip=x.skip is not None,
        layout="BLH" if x.u.stride(1) == 1 and channels > 1 else "BHL",
    )


@lru_cache(maxsize=1024)
def bound(problem: Problem, limits: DeviceLimits, threads: int, generation: int) -> Any:
    """The kernel of the problem's plan, or of the best plan without generated C++ where that does not compile.

    `generation` is that of wisdom: plans of an older one are not used."""
    try:
        return kernel_of(ahead.plan(problem, limits) or wisdom.chosen(problem, limits, threads, measure=tune.measure))
    except CompileError as error:
        log.fallback(f"{problem} is done without generated C++: {error}")
        return kernel_of(plan(problem, replace(limits, languages=())))


def _of_conv(x: Operands, mode: str, precision: str) -> SpectralKernel | FusedKernel | NativeKernel:
    problem = problem_of(x, mode, precision)
    kernel: SpectralKernel | FusedKernel | NativeKernel
    kernel = bound(problem, live(x.u.device), torch.get_num_threads(), wisdom.generation())
    return kernel


def fftconv(x: Operands, mode: str, precision: str) -> Tensor:
    """The convolution of `x`; an empty tensor where there is nothing to compute."""
    if x.u.numel() == 0:
        return torch.empty_like(x.u)
    return _of_conv(x, mode, precision).forward(x)


def fftconv_gradients(dy: Tensor, x: Operands, mode: str, precision: str, out: Gradients) -> None:
    """Fill the gradients wanted in `out`, given zeroed tensors for k, k_rev and skip."""
    if x.u.numel() != 0:
        _of_conv(x, mode, precision).backward(dy, x, out)


# -- products with block-diagonal weights ------------------------------------------------------------------------------


def product(x: Tensor, weight: Tensor, bias: Tensor | None, glu: bool = False, activation: str | None = None) -> Tensor:
    """activation(x W^T + bias), or with `glu` activation(first half) * second half: x (..., n_in) by weight (nblocks,
    block_out, block_in) -> (..., results), contiguous."""
    if not x.numel() or not weight.numel():
        y = matmul_blocks(x, weight) if bias is None else matmul_blocks(x, weight) + bias
        return applied(y, glu, activation).contiguous()
    rows = x.numel() // (weight.shape[0] * weight.shape[2])
    kernel = _of_product(weight.shape, rows, x, bias is not None, glu, activation)
    return kernel.product(x, weight, bias)


def product_outer(dy: Tensor, x: Tensor, nblocks: int) -> Tensor:
    """(nblocks, block_out, block_in): for each block the sum over rows of dy x^T."""
    if not x.numel() or not dy.numel():
        return outer_blocks(dy, x, nblocks)
    shape = torch.Size((nblocks, dy.shape[1] // nblocks, x.shape[1] // nblocks))
    return _of_product(shape, x.shape[0], x).outer(dy, x)


def product_problem(
    shape: Sequence[int],
    rows: int,
    dtype: torch.dtype,
    bias: bool = False,
    glu: bool = False,
    activation: str | None = None,
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
    )


def _of_product(
    shape: torch.Size, rows: int, x: Tensor, bias: bool = False, glu: bool = False, activation: str | None = None
) -> LibraryKernel | NativeProductKernel:
    limits = live(x.device)
    return _bound_product(
        shape, rows, x.dtype, bias, glu, activation, limits, torch.get_num_threads(), wisdom.generation()
    )


@lru_cache(maxsize=4096)
def _bound_product(
    shape: torch.Size,
    rows: int,
    dtype: torch.dtype,
    bias: bool,
    glu: bool,
    activation: str | None,
    limits: DeviceLimits,
    threads: int,
    generation: int,
) -> LibraryKernel | NativeProductKernel:
    """The kernel, by what a call has at hand: to make a problem takes longer than to multiply a row."""
    kernel: LibraryKernel | NativeProductKernel
    kernel = bound(product_problem(shape, rows, dtype, bias, glu, activation), limits, threads, generation)
    return kernel


# -- products with Monarch matrices ------------------------------------------------------------------------------------


def monarch(x: Tensor, factors: Sequence[Tensor]) -> Tensor | None:
    """x (..., n_in) by the Monarch matrix of the factors (nblocks, block_out, block_in); None where the plan is to go
    stage by stage, and where there is nothing to compute."""
    kernel = _of_monarch(x, factors)
    return None if kernel is None else kernel.product(x, factors)


def monarch_gradients(
    dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]
) -> list[Tensor | None] | None:
    """Those in x and in each factor, None where one is not wanted; or None as of `monarch`."""
    kernel = _of_monarch(x, factors)
    return None if kernel is None else kernel.gradients(dy, x, factors, needs)


def monarch_problem(shapes: tuple[tuple[int, ...], ...], rows: int, dtype: torch.dtype) -> MonarchProblem:
    """The problem that factors of these shapes and so many rows pose."""
    factors = tuple((count, out, into) for count, out, into in shapes)
    (first, _, depth), (last, width, _) = factors[0], factors[-1]
    return MonarchProblem(n_in=first * depth, n_out=last * width, rows=rows, dtype=_SHORT_NAME[dtype], factors=factors)


def _of_monarch(x: Tensor, factors: Sequence[Tensor]) -> MonarchKernel | StagedMonarchKernel | None:
    shapes = tuple([tuple(f.shape) for f in factors])
    if not x.numel() or not all(f.numel() for f in factors):
        return None
    rows = x.numel() // (shapes[0][0] * shapes[0][2])
    return _bound_monarch(shapes, rows, x.dtype, live(x.device), torch.get_num_threads(), wisdom.generation())


@lru_cache(maxsize=4096)
def _bound_monarch(
    shapes: tuple[tuple[int, ...], ...],
    rows: int,
    dtype: torch.dtype,
    limits: DeviceLimits,
    threads: int,
    generation: int,
) -> MonarchKernel | StagedMonarchKernel:
    """The kernel, by what a call has at hand."""
    kernel: MonarchKernel | StagedMonarchKernel
    kernel = bound(monarch_problem(shapes, rows, dtype), limits, threads, generation)
    return kernel

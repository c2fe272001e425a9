"""Tensors to a kernel: read the problem off the tensors, ask the planner, bind the plan, run it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from m2gen import log
from m2gen.config import config
from m2gen.device.limits import DeviceLimits
from m2gen.errors import CompileError
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.search import plan
from m2gen.runtime import beside, posed
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.blockdiag import applied, matmul_blocks, outer_blocks
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.bindings.native import NativeKernel
from m2gen.runtime.bindings.shortconv import Mixed, MixGradients, heard
from m2gen.runtime.bindings.spectral import Gradients, Operands, SpectralKernel
from m2gen.runtime.build import ahead
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure import first_use, ready, tune, wisdom


def planned(problem: Problem, limits: DeviceLimits, threads: int) -> Plan:
    """The plan that a call follows where its kernels compile: as compiled ahead, as measured, or as estimated."""
    return ahead.plan(problem, limits) or wisdom.chosen(problem, limits, threads, measure=tune.measure)


def settled(problem: Problem, limits: DeviceLimits, threads: int) -> Plan:
    """The same, its kernels checked on the live device `limits` where no device has run them before."""
    return first_use.sound(planned(problem, limits, threads), limits)


@lru_cache(maxsize=4096)
def bound(problem: Problem, limits: DeviceLimits, threads: int, generation: int) -> Any:
    """The kernel of the problem's plan, or of the best plan without generated C++ where that does not compile.

    `generation` is that of wisdom: plans of an older one are not used."""
    try:
        chosen = planned(problem, limits, threads)
        if config().compile == "beside" and (first_use.unknown(chosen, limits) or beside.missing(chosen, limits)):
            log.once(f"{problem}: its kernels are being compiled, others compute meanwhile")
            meanwhile = _without_kernels(problem, limits)
            return beside.Beside(chosen, limits, kernel_of, meanwhile, partial(first_use.sound, limits=limits))
        return kernel_of(ready.expect(first_use.sound(chosen, limits), limits))
    except CompileError as error:
        log.fallback(f"{problem} is done without generated C++: {error}")
        return _without_kernels(problem, limits)


def _without_kernels(problem: Problem, limits: DeviceLimits) -> Any:
    return kernel_of(plan(problem, replace(limits, languages=())))


def _cached(problem: Callable[..., Problem]) -> Callable[..., Any]:
    """The kernel by what a call has at hand, the sizes that `problem` takes: to make a problem takes longer than to
    multiply a row."""

    @lru_cache(maxsize=4096)
    def kernel(limits: DeviceLimits, threads: int, generation: int, *sizes: Any) -> Any:
        return bound(problem(*sizes), limits, threads, generation)

    _by_sizes.append(kernel)
    return kernel


_by_sizes: list[Any] = []


def forget() -> None:
    """Bind every plan anew at its next call."""
    for kernel in (bound, *_by_sizes):
        kernel.cache_clear()


def _here(x: Tensor) -> tuple[DeviceLimits, int, int]:
    """What decides beside the sizes."""
    return live(x.device), torch.get_num_threads(), wisdom.generation()


def _of_conv(x: Operands, mode: str, precision: str) -> SpectralKernel | FusedKernel | NativeKernel:
    kernel: SpectralKernel | FusedKernel | NativeKernel
    kernel = _conv_kernel(*_here(x.u), *posed.conv_sizes(x, mode, precision))
    return kernel


_conv_kernel = _cached(posed.conv_problem)


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


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    glu: bool = False,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """activation(x W^T + bias) + residual, or with `glu` activation(first half) * second half + residual: x (..., n_in)
    by weight (nblocks, block_out, block_in) -> (..., results), contiguous."""
    if not x.numel() or not weight.numel():
        plain = matmul_blocks(x, weight) if bias is None else matmul_blocks(x, weight) + bias
        plain = applied(plain, glu, activation)
        return (plain if residual is None else plain + residual).contiguous()
    rows = x.numel() // (weight.shape[0] * weight.shape[2])
    words = (bias is not None, glu, activation, residual is not None)
    y: Tensor = _of_product(*_here(x), weight.shape, rows, x.dtype, *words).product(x, weight, bias, residual)
    return y


def product_outer(dy: Tensor, x: Tensor, nblocks: int) -> Tensor:
    """(nblocks, block_out, block_in): for each block the sum over rows of dy x^T."""
    if not x.numel() or not dy.numel():
        return outer_blocks(dy, x, nblocks)
    shape = torch.Size((nblocks, dy.shape[1] // nblocks, x.shape[1] // nblocks))
    dw: Tensor = _of_product(*_here(x), shape, x.shape[0], x.dtype).outer(dy, x)
    return dw


def product_gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    glu: bool,
    activation: str | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...] | None:
    """Those of `product`'s result in x, weight and bias, None where one is not wanted, given that of the result; None
    where the operator is to compose them."""
    if not x.numel() or not weight.numel():
        return None
    rows = x.numel() // (weight.shape[0] * weight.shape[2])
    kernel = _of_product(*_here(x), weight.shape, rows, x.dtype, bias is not None, glu, activation)
    found: tuple[Tensor | None, ...] | None = kernel.gradients(dy, x, weight, bias, needs)
    return found


def own_gradients(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = None, glu: bool = False
) -> bool:
    """Whether `product_gradients` of these operands, which fit together, is planned as kernels of its own.

    It changes no result, so compiled graphs of any number of rows go by the one that they were traced with."""
    if x.device.type not in ("cpu", "cuda") or live(x.device).kind == "cpu":  # there what is between steps is kept
        return False
    rows, shape = math.prod(map(_traced_with, x.shape[:-1])), torch.Size(map(_traced_with, weight.shape))
    if not rows * shape.numel():
        return False
    return bool(_of_product(*_here(x), shape, rows, x.dtype, bias is not None, glu, activation).step.own_gradients)


def _traced_with(size: Any) -> int:
    """A size; of a symbolic one the number that it stood for, 1 where there was none."""
    return size if isinstance(size, int) else int(size.node.hint or 1)


_of_product = _cached(posed.product_problem)


def by_library(x: Tensor, shape: Sequence[int], bias: bool) -> bool:
    """Whether the product of x (..., n_in) with a weight of this shape is planned as PyTorch's own."""
    rows = x.numel() // (shape[0] * shape[2])
    return not rows or _product_solver(*_here(x), *shape, rows, x.dtype, bias) == "library"


@lru_cache(maxsize=4096)
def _product_solver(
    limits: DeviceLimits, threads: int, generation: int, nblocks: int, out: int, into: int, *of: Any
) -> str:
    return planned(posed.product_problem((nblocks, out, into), *of), limits, threads).solver


# -- products with Monarch matrices ------------------------------------------------------------------------------------


def monarch(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """x (..., n_in) by the Monarch matrix of the factors (nblocks, block_out, block_in), contiguous."""
    kernel = _of_monarch(x, factors)
    if kernel is None:
        return x.new_zeros((*x.shape[:-1], factors[-1].shape[0] * factors[-1].shape[1]))
    y: Tensor = kernel.product(x, factors)
    return y


def monarch_gradients(dy: Tensor, x: Tensor, factors: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Those in x and in each factor, None where one is not wanted."""
    kernel = _of_monarch(x, factors)
    if kernel is None:
        return [t.new_zeros(t.shape) if need else None for t, need in zip((x, *factors), needs, strict=True)]
    found: list[Tensor | None]
    try:
        found = kernel.gradients(dy, x, factors, needs)
    except CompileError as error:
        problem, limits = kernel.problem, live(x.device)
        log.fallback(f"gradients of {problem} are done without generated C++: {error}")
        found = _without_kernels(problem, limits).gradients(dy, x, factors, needs)
    return found


def _of_monarch(x: Tensor, factors: Sequence[Tensor]) -> Any:
    """None where there is nothing to compute: every sum is empty, or there is none."""
    shapes = tuple([tuple(f.shape) for f in factors])
    if not x.numel() or not all(f.numel() for f in factors):
        return None
    rows = x.numel() // (shapes[0][0] * shapes[0][2])
    return _monarch_kernel(*_here(x), shapes, rows, x.dtype)


_monarch_kernel = _cached(posed.monarch_problem)


# -- short convolutions ------------------------------------------------------------------------------------------------


def shortconv(x: Tensor, weight: Tensor, bias: Tensor | None, left: int, y: Tensor) -> None:
    """Fill y (B, H, L_out), laid out like x (B, H, L), with bias[h] + sum over w of weight[h, w] x[b, h, i + w - left],
    zeros outside. Neither is empty."""
    _of_shortconv(x, y.shape[2], weight.shape[1], bias is not None).convolve(x, weight, bias, left, y)


def shortconv_weight_gradients(x: Tensor, dy: Tensor, left: int, sums: Tensor) -> None:
    """Fill `sums` (H, W + 1) with those of `shortconv` in the weight and, last, the bias. x and dy are not empty."""
    _of_shortconv(x, dy.shape[2], sums.shape[1] - 1).weight_gradients(x, dy, left, sums)


def _of_shortconv(x: Tensor, outputs: int, width: int, bias: bool = False) -> Any:
    return _shortconv_kernel(*_here(x), x.shape, outputs, width, x.dtype, bias, posed.channels_last(x))


_shortconv_kernel = _cached(posed.shortconv_problem)


def mixed(
    x: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor | None, mask: Tensor | None, z: Tensor, g: Tensor
) -> None:
    """Fill z and g (B, D, L) with s(x1) s(v) and s(x2), s the causal convolution of x + offset = (x1, x2, v), which is
    (B, 3 D, L); where the mask (B, L) says no, x + offset and s(v) are zero."""
    _of_mixed(x, z, weight, bias, offset, mask).mix(Mixed(x, weight, bias, offset, mask), z, g)


def mixed_gradients(
    dz: Tensor,
    dg: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None,
    mask: Tensor | None,
    needs: Sequence[bool],
    out: Sequence[Tensor],
) -> None:
    """Fill `out` with those of `mixed` in x, weight, bias and offset that are wanted."""
    kernel = _of_mixed(x, dz, weight, bias, offset, mask)
    found = kernel.mix_gradients(dz, dg, Mixed(x, weight, bias, offset, mask), needs, out[0])
    if found is None:
        found = _gradients_behind(kernel, dz, dg, Mixed(x, weight, bias, offset, mask), needs)
    for into, grad in zip(out, found, strict=True):
        if grad is not None and grad is not into:
            into.copy_(grad)


def _gradients_behind(kernel: Any, dz: Tensor, dg: Tensor, mixed: Mixed, needs: Sequence[bool]) -> MixGradients:
    """By the gradient behind the convolutions, in the dtype of the arithmetic, and then as of any convolution."""
    x, weight, bias, offset, mask = mixed
    width, x = weight.shape[1], heard(x, offset, mask)
    channels, length = x.shape[1:]
    strides = (channels * length, 1, channels) if posed.channels_last(x) else (channels * length, length, 1)
    ds = x.new_empty_strided(x.shape, strides, dtype=torch.promote_types(x.dtype, torch.float32))
    kernel.behind(heard(dz, None, mask), dg, x, weight, bias, ds)
    dx = sums = None
    if needs[0] or (needs[3] and offset is not None):
        dx = torch.empty_like(ds)
        shortconv(ds, weight.to(ds.dtype).flip(1), None, 0, dx)
        dx = heard(dx, None, mask)
    if needs[1] or (needs[2] and bias is not None):
        sums = ds.new_empty((ds.shape[1], width + 1))
        shortconv_weight_gradients(x.to(ds.dtype), ds, width - 1, sums)
    return MixGradients(
        dx if needs[0] else None,
        sums[:, :width] if sums is not None and needs[1] else None,
        sums[:, width] if sums is not None and needs[2] and bias is not None else None,
        dx.sum((0, 2)) if dx is not None and needs[3] and offset is not None else None,
    )


def _of_mixed(
    x: Tensor, z: Tensor, weight: Tensor, bias: Tensor | None, offset: Tensor | None, mask: Tensor | None
) -> Any:
    lasts, beside = (posed.channels_last(t) for t in (x, z)), (offset is not None, mask is not None)
    words = (bias is not None, *lasts, True, *beside)
    return _shortconv_kernel(*_here(x), x.shape, x.shape[2], weight.shape[1], x.dtype, *words)


# -- turning copies ----------------------------------------------------------------------------------------------------


def turn(x: Tensor, y: Tensor) -> None:
    """Fill y (B, H, L), any strides, with x (B, L, H). Neither is empty."""
    _turn_kernel(*_here(x), *x.shape, x.dtype).turn(x, y)


_turn_kernel = _cached(posed.turn_problem)


# -- gates -------------------------------------------------------------------------------------------------------------


def gated(z: Tensor, activation: str | None) -> Tensor:
    """activation(first half) * second half of z's last axis: (..., 2 n) -> (..., n). z is not empty."""
    y: Tensor = _of_gate(z, activation).gated(z)
    return y


def gate_gradient(dy: Tensor, z: Tensor, activation: str | None) -> Tensor | None:
    """The gradient in z, given that of `gated`'s result; None where PyTorch's operators are to compose it."""
    found: Tensor | None = _of_gate(z, activation).gradient(dy, z)
    return found


def _of_gate(z: Tensor, activation: str | None) -> Any:
    width = z.shape[-1]
    return _gate_kernel(*_here(z), width, z.numel() // width, z.dtype, activation)


_gate_kernel = _cached(posed.gate_problem)

"""Tensors to a kernel: read the problem off the tensors, ask the planner, bind the plan, run it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from m2gen import log
from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.errors import CompileError
from m2gen.planner.plan import FusedConv, NativeConv, Plan
from m2gen.planner.problem import Problem
from m2gen.planner.search import plan
from m2gen.runtime import ahead, wisdom
from m2gen.runtime.fused import FusedKernel
from m2gen.runtime.limits import live
from m2gen.runtime.native import NativeKernel
from m2gen.runtime.spectral import Gradients, Operands, SpectralKernel

_SHORT_NAME = {getattr(torch, dtype.torch_name): dtype.name for dtype in DTYPES.values()}


def problem_of(x: Operands, mode: str, precision: str) -> Problem:
    """The problem that the tensors pose; channels-last is read off the strides."""
    batch, channels, length = x.u.shape
    return Problem(
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


Kernel = SpectralKernel | FusedKernel | NativeKernel


@lru_cache(maxsize=1024)
def kernel_of(chosen: Plan) -> Kernel:
    """The computation of a plan, bound once."""
    if isinstance(chosen.conv, FusedConv):
        return FusedKernel(chosen.problem, chosen.conv)
    if isinstance(chosen.conv, NativeConv):
        return NativeKernel(chosen.problem, chosen.conv)
    return SpectralKernel(chosen.problem, chosen.conv)


@lru_cache(maxsize=1024)
def bound(problem: Problem, limits: DeviceLimits, threads: int) -> Kernel:
    """The kernel of the problem's plan, or of the best plan without generated C++ where that does not compile."""
    try:
        return kernel_of(ahead.plan(problem, limits) or wisdom.chosen(problem, limits, threads))
    except CompileError as error:
        log.fallback(f"{problem} is done without generated C++: {error}")
        return kernel_of(plan(problem, replace(limits, languages=())))


def _kernel(x: Operands, mode: str, precision: str) -> Kernel:
    return bound(problem_of(x, mode, precision), live(x.u.device), torch.get_num_threads())


def fftconv(x: Operands, mode: str, precision: str) -> Tensor:
    """The convolution of `x`; an empty tensor where there is nothing to compute."""
    if x.u.numel() == 0:
        return torch.empty_like(x.u)
    return _kernel(x, mode, precision).forward(x)


def fftconv_gradients(dy: Tensor, x: Operands, mode: str, precision: str, out: Gradients) -> None:
    """Fill the gradients wanted in `out`, given zeroed tensors for k, k_rev and skip."""
    if x.u.numel() != 0:
        _kernel(x, mode, precision).backward(dy, x, out)

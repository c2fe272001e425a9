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
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.search import plan
from m2gen.runtime import ahead, tune, wisdom
from m2gen.runtime.binding import Kernel, kernel_of
from m2gen.runtime.limits import live
from m2gen.runtime.spectral import Gradients, Operands

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
def bound(problem: FftConvProblem, limits: DeviceLimits, threads: int, generation: int) -> Kernel:
    """The kernel of the problem's plan, or of the best plan without generated C++ where that does not compile.

    `generation` is that of wisdom: plans of an older one are not used."""
    try:
        return kernel_of(ahead.plan(problem, limits) or wisdom.chosen(problem, limits, threads, measure=tune.measure))
    except CompileError as error:
        log.fallback(f"{problem} is done without generated C++: {error}")
        return kernel_of(plan(problem, replace(limits, languages=())))


def _kernel(x: Operands, mode: str, precision: str) -> Kernel:
    problem = problem_of(x, mode, precision)
    return bound(problem, live(x.u.device), torch.get_num_threads(), wisdom.generation())


def fftconv(x: Operands, mode: str, precision: str) -> Tensor:
    """The convolution of `x`; an empty tensor where there is nothing to compute."""
    if x.u.numel() == 0:
        return torch.empty_like(x.u)
    return _kernel(x, mode, precision).forward(x)


def fftconv_gradients(dy: Tensor, x: Operands, mode: str, precision: str, out: Gradients) -> None:
    """Fill the gradients wanted in `out`, given zeroed tensors for k, k_rev and skip."""
    if x.u.numel() != 0:
        _kernel(x, mode, precision).backward(dy, x, out)

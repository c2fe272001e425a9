"""A plan to the computation that does it: one row for each step that gives a result."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from m2gen.planner.fftconv.steps import FusedConv, NativeConv, SpectralConv
from m2gen.planner.plan import Plan
from m2gen.planner.step import Body
from m2gen.runtime.fused import FusedKernel
from m2gen.runtime.native import NativeKernel
from m2gen.runtime.spectral import SpectralKernel

Kernel = SpectralKernel | FusedKernel | NativeKernel

BINDINGS: dict[type[Body[Any]], Callable[[Any, Any], Kernel]] = {
    SpectralConv: SpectralKernel,
    FusedConv: FusedKernel,
    NativeConv: NativeKernel,
}


@lru_cache(maxsize=1024)
def kernel_of(chosen: Plan) -> Kernel:
    """The computation of a plan, bound once. Raises CompileError where its kernel does not compile."""
    return BINDINGS[type(chosen.body)](chosen.problem, chosen.body)

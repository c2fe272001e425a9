"""The launches that calls of a plan will make, found by making those calls on tensors without memory.

So nothing has to be listed by hand: a kernel that a binding launches is found here, with the arguments that it will
have. What calls do to other tensors, or to the same with other strides, is compiled when they do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from m2gen.device.limits import DeviceLimits
from m2gen.planner.monarch.problem import MonarchProblem
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.runtime.binding import bound_anew
from m2gen.runtime.build.cross_compile import Job
from m2gen.runtime.build.launched import Launched, recording
from m2gen.runtime.build.limits import planned_for
from m2gen.runtime.measure.cases import case_of

META = torch.device("meta")
_DRAWN = (torch.randn, torch.rand, torch.arange)


class _NoNumbers(TorchFunctionMode):
    """Inside, random numbers are not drawn, and ranges not counted: there are shapes alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _DRAWN:
            kwargs.pop("generator", None)
            kwargs["device"] = META
        return func(*args, **kwargs)


@lru_cache(maxsize=1024)
def launches(plan: Plan, limits: DeviceLimits, gradients: bool) -> tuple[Launched, ...]:
    """Every launch of a generated Triton kernel in a forward pass of the plan on a device with these limits, and with
    `gradients` in a backward pass that follows; in their order, each once."""
    if limits.kind != "gpu" or not plan.body.kernels(plan.problem, gradients):
        return ()
    problem = _called(plan)
    # the mode outside of inference mode, whose tensors are different; autocast is none of a binding's business
    with torch.inference_mode(False), torch.no_grad(), planned_for(limits), recording() as found:
        with _NoNumbers():
            case = case_of(problem)(problem, META)
        kernel = bound_anew(plan)
        y = case.call(kernel)
        if gradients:
            case.back(kernel, y)
    return tuple(found)


def _called(plan: Plan) -> Problem:
    """The problem that calls pose: of a Monarch matrix whose factors the plan has chosen, with these."""
    of, factors = plan.problem, getattr(plan.body, "factors", None)
    if isinstance(of, MonarchProblem) and factors is not None:
        return MonarchProblem(n_in=of.n_in, n_out=of.n_out, rows=of.rows, dtype=of.dtype, factors=factors)
    return of


def jobs(plan: Plan, limits: DeviceLimits, gradients: bool) -> list[Job]:
    """What is to be compiled for these launches; into Triton's cache, and no more."""
    return jobs_of(launches(plan, limits, gradients), limits)


def jobs_of(those: Iterable[Launched], limits: DeviceLimits) -> list[Job]:
    arch = limits.compiled_for
    return [Job(one.spec, arch, arguments=one.on(arch).arguments, look=False) for one in those]

"""Every fused plan that ranking can return: problems that between them ask for each kernel of the survey."""

from __future__ import annotations

from collections.abc import Iterator

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.search import rank

SIZES = tuple(2**power for power in range(6, 17))


def covering() -> Iterator[Problem]:
    """Causal and circular problems of every size of a ring, gated as in the survey, in both widths of operands."""
    for dtype in ("fp16", "fp32"):
        for n in SIZES:
            for mode in ("causal", "circular"):
                yield FftConvProblem(n=n, h=3, b=5, dtype=dtype, mode=mode, pre_gate=True, post_gate=True, skip=True)


def fused_plans(limits: DeviceLimits) -> dict[FftConvSpec, Plan]:
    """By forward kernel, the first plan with it."""
    found: dict[FftConvSpec, Plan] = {}
    for problem in covering():
        for plan in rank(problem, limits).plans:
            if isinstance(plan.body, FusedConv):
                found.setdefault(plan.body.spec, plan)
    return found

"""Kernels of either language, compiled together so that calls find them; and which are expected to be called."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from m2gen.config import config
from m2gen.device.limits import DeviceLimits
from m2gen.errors import CompileError
from m2gen.kernels.spec import KernelSpec
from m2gen.log import fallback
from m2gen.planner.plan import Plan
from m2gen.runtime.build import beforehand, cpp_kernel
from m2gen.runtime.build.background import cores
from m2gen.runtime.build.cross_compile import Job, compile_all
from m2gen.runtime.build.limits import elsewhere
from m2gen.runtime.measure import rehearsed


def there(plan: Plan, limits: DeviceLimits) -> bool:
    """Whether none of a plan's kernels has to be compiled, those of its gradients among them."""
    try:
        return all(map(cpp_kernel.there, _in_cpp([(plan, True)]))) and all(
            map(beforehand.there, rehearsed.jobs(plan, limits, True))
        )
    except CompileError:  # of who would compile them, or where it is not known what is there
        if limits.kind != "gpu":
            raise
        return False


def make_ready(plans: Iterable[tuple[Plan, bool]], limits: DeviceLimits) -> tuple[int, int, int]:
    """Compile all kernels that are missing, at once, those of gradients where a plan comes with True: how many were
    compiled, were there, and failed, which say so when they are called. Triton's cache is filled by other processes."""
    plans = list(plans)
    if limits.kind != "gpu":
        return cpp_kernel.ready(_in_cpp(plans))
    jobs = list(dict.fromkeys(job for plan, trained in plans for job in rehearsed.jobs(plan, limits, trained)))
    missing = [_prepared(job) for job in jobs if not _known(job)]
    failed = 0
    for job, made in zip(missing, compile_all(missing, processes=min(cores(), len(missing)) or 1), strict=True):
        if made.error:
            failed += 1
            fallback(f"{job.spec.name} is left to its first call: {made.error}")
    return len(missing) - failed, len(jobs) - len(missing), failed


def _known(job: Job) -> bool:
    try:
        return beforehand.there(job)
    except CompileError:
        return False  # which its worker will say


def _prepared(job: Job) -> Job:
    try:
        return job.ready
    except CompileError:
        return job  # as above


def _in_cpp(plans: Iterable[tuple[Plan, bool]]) -> list[KernelSpec]:
    specs = dict.fromkeys(spec for plan, trained in plans for spec in plan.body.kernels(plan.problem, trained))
    return [spec for spec in specs if spec.template.startswith("cpp/")]


def expect(plan: Plan, limits: DeviceLimits) -> Plan:
    """The plan; its first launch on the live device `limits` will have its other kernels compiled beside the first."""
    if limits.kind == "gpu" and not config().triton_interpret and not elsewhere():
        problem, body = plan.problem, plan.body
        what = beforehand.Expected(frozenset(body.kernels(problem, False)), partial(rehearsed.jobs, plan, limits))
        beforehand.expect(body.kernels(problem), what)
    return plan

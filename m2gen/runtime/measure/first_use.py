"""Kernels that no device has run are checked on the one at hand before their first use: once for a machine.

A plan of such kernels (`Body.untried`) is tried by another process on a problem of limited size, forward and every
gradient against float64 (m2gen/runtime/measure/trial.py), so an illegal address or a wrong number costs that process
and nothing else; this one's device is not touched. Verdicts are kept (m2gen/cache/verdicts.py) by the kernels' sources:
other sizes that use the same kernels are not checked again. Where a plan faults, the next one of the ranking is taken.
"""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from threading import Lock

import torch

from m2gen import log
from m2gen.cache import verdicts
from m2gen.cache.verdicts import Here, Verdict
from m2gen.codegen.render import render
from m2gen.config import config
from m2gen.device.limits import DeviceLimits
from m2gen.planner import search
from m2gen.planner.plan import Plan
from m2gen.runtime.build.limits import default_device, elsewhere, live
from m2gen.runtime.measure import trial
from m2gen.runtime.measure.cases import case_of

_MOST = 3  # plans of a problem that may fault, before one is taken that needs no check
_DRIVERS = ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version")
_found: dict[tuple[Here, frozenset[str]], Verdict] = {}  # of this process, what is not kept on disk as well
_lock = Lock()


def asked(plan: Plan, limits: DeviceLimits) -> bool:
    """Whether a plan is used on the live device `limits` only after a check, its verdict known or not."""
    here = limits.kind == "gpu" and not config().triton_interpret and not elsewhere()
    return here and config().untried == "check" and plan.body.untried is not None


def unknown(plan: Plan, limits: DeviceLimits) -> bool:
    """Whether a call would wait for a check of the plan."""
    return asked(plan, limits) and _remembered(kernels_of(plan), here_of(limits)) is None


def sound(chosen: Plan, limits: DeviceLimits, check: bool = True) -> Plan:
    """`chosen`, or where its kernels must not run on the live device `limits` the next plan of the ranking that may, in
    the end PyTorch's own products. Says in the log and in that plan what is not used, and why.

    Without `check` nothing is found out that is not known."""
    faults: list[str] = []
    for plan in (chosen, *(_ranked(chosen, limits) if asked(chosen, limits) else ())):
        if asked(plan, limits):
            if len(faults) == _MOST:
                continue
            found = verdict(plan, limits) if check else _remembered(kernels_of(plan), here_of(limits))
            if found is not None and found.why is not None:
                faults.append(f"{plan.choice} is not used on a {_name(limits)}: {found.why}")
                continue
        return _in_place(plan, faults)
    return _in_place(search.plan(chosen.problem, replace(limits, languages=())), faults)


def _in_place(plan: Plan, faults: list[str]) -> Plan:
    """The plan, which is taken because of the faults of others."""
    for one in faults:
        log.fallback(f"{one}; {plan.choice} does {plan.problem}")
    return replace(plan, left_out=(*plan.left_out, *faults)) if faults else plan


def _ranked(chosen: Plan, limits: DeviceLimits) -> tuple[Plan, ...]:
    """What may do in its place, the same with fewer generated kernels first."""
    plainer = chosen.plainer(limits)
    rest = tuple(plan for plan in search.rank(chosen.problem, limits).plans if plan not in (chosen, plainer))
    return rest if plainer is None else (plainer, *rest)


def verdict(plan: Plan, limits: DeviceLimits) -> Verdict:
    """What is known of the plan's kernels on the live device `limits`, or is found out now: minutes at most."""
    kernels, here = kernels_of(plan), here_of(limits)
    found = _remembered(kernels, here)
    if found is None:
        with _lock, verdicts.one_at_a_time(2 * trial.SECONDS):
            found = _remembered(kernels, here)  # another may have checked meanwhile
            if found is None:
                found = _check(plan, limits, kernels, here)
    return found


def _check(plan: Plan, limits: DeviceLimits, kernels: Mapping[str, str], here: Here) -> Verdict:
    log.fallback(
        f"{plan.choice} was {plan.body.untried}: it is checked in a process of its own, once for this {here.device}, "
        f"which takes as long as compiling its kernels and {trial.SECONDS:.0f} s at most (M2GEN_UNTRIED=trust or avoid "
        "does without)"
    )
    found = trial.tried(plan, case_of(plan.problem).checked(plan.problem), device_of(limits))
    given = Verdict(found.why)
    _note(kernels, here, given)
    if found.lasting:
        verdicts.keep(kernels, here, given, _now())
    return given


def right(plan: Plan, limits: DeviceLimits) -> None:
    """Keep that a plan's kernels, tried elsewhere, are right on the live device `limits`."""
    if plan.body.untried is not None and limits.kind == "gpu":
        kernels, here = kernels_of(plan), here_of(limits)
        _note(kernels, here, Verdict(None))
        verdicts.keep(kernels, here, Verdict(None), _now())


def _note(kernels: Mapping[str, str], here: Here, found: Verdict) -> None:
    those = [frozenset([one]) for one in kernels.values()] if found.why is None else [frozenset(kernels.values())]
    _found.update({(here, one): found for one in those})


def _remembered(kernels: Mapping[str, str], here: Here) -> Verdict | None:
    together = _found.get((here, frozenset(kernels.values())))
    if together is not None and together.why is not None:
        return together
    if all((here, frozenset([one])) in _found for one in kernels.values()):
        return Verdict(None)
    found = verdicts.find(kernels, here)
    if found is not None:
        _note(kernels, here, found)
    return found


def kernels_of(plan: Plan) -> dict[str, str]:
    """Digests of the sources of a plan's kernels, those of its gradients too, by the kernels' names."""
    return {spec.name: _digest(spec) for spec in plan.body.kernels(plan.problem)}


@lru_cache(maxsize=4096)
def _digest(spec: object) -> str:
    return render(spec).digest  # type: ignore[arg-type]


@lru_cache(maxsize=16)
def here_of(limits: DeviceLimits) -> Here:
    """What a verdict on the live device `limits` depends on."""
    return Here(
        device=_name(limits),
        arch=limits.arch,
        driver=_driver(),
        torch=str(torch.__version__),
        triton=importlib.metadata.version("triton"),
    )


def _name(limits: DeviceLimits) -> str:
    return limits.description.split(", planned for")[0]


def _driver() -> str:
    """The version that the system tells of the GPU's driver; else the newest CUDA or ROCm that PyTorch was made for."""
    for path in map(Path, _DRIVERS):
        with suppress(OSError):
            return " ".join(path.read_text().split("\n")[0].split())
    return str(torch.version.cuda or torch.version.hip)


def device_of(limits: DeviceLimits) -> torch.device:
    """A device of these limits, the current one where it is."""
    devices = [default_device(), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    return next((device for device in devices if live(device) == limits), devices[0])


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")

"""Kernels of either language, compiled together so that calls find them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.spec import KernelSpec
from m2gen.log import fallback
from m2gen.runtime.build import cpp_kernel

_IN_CACHE: set[tuple[KernelSpec, str]] = set()  # Triton's kernels, with the architecture


def there(kernels: Iterable[KernelSpec], limits: DeviceLimits) -> bool:
    """Whether none of them has to be compiled. What only Triton's own cache on disk has is not known to be there."""
    return all(
        cpp_kernel.there(spec) if _in_cpp(spec) else (spec, limits.arch) in _IN_CACHE
        for spec in kernels
        if _in_cpp(spec) or limits.kind == "gpu"
    )


def make_ready(kernels: Mapping[KernelSpec, str], limits: DeviceLimits) -> tuple[int, int, int]:
    """Compile all that are missing, at once: how many were compiled, were there, and failed, which say so when they are
    called. Each kernel with the layout of the tensors that it is first called with.

    Triton's cache is filled by processes that start anew."""
    if limits.kind == "gpu":
        return _fill_tritons_cache(kernels, limits)
    return cpp_kernel.ready(spec for spec in kernels if _in_cpp(spec))


def _in_cpp(spec: KernelSpec) -> bool:
    return spec.template.startswith("cpp/")


def _fill_tritons_cache(kernels: Mapping[KernelSpec, str], limits: DeviceLimits) -> tuple[int, int, int]:
    from m2gen.runtime.build.cross_compile import Job, compile_all  # late: it loads Triton

    jobs = [
        Job(spec, limits.arch, "BLH" if layout == "BLH" else "BHL")  # type: ignore[arg-type]
        for spec, layout in kernels.items()
        if not _in_cpp(spec) and (spec, limits.arch) not in _IN_CACHE
    ]
    failed = 0
    for job, made in zip(jobs, compile_all(jobs, processes=min(os.cpu_count() or 1, len(jobs)) or 1), strict=True):
        if made.error:
            failed += 1
            fallback(f"{job.spec.name} is left to its first call: {made.error}")
        else:
            _IN_CACHE.add((job.spec, job.arch))
    return len(jobs) - failed, len(kernels) - len(jobs), failed

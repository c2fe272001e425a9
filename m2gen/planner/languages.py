"""Whether generated code of a language runs on a device, in words for a solver's rejection."""

from __future__ import annotations

from m2gen.device.limits import DeviceLimits


def no_cpp(limits: DeviceLimits) -> str | None:
    """Why no generated C++ runs there; None where it does."""
    if "cpp" in limits.languages:
        return None
    why = f"{limits.arch} is a GPU" if limits.kind == "gpu" else "no C++ compiler works here"
    return f"its kernels are written in C++, and {why}"


def no_triton(limits: DeviceLimits) -> str | None:
    """Why no generated Triton runs there; None where it does."""
    if "triton" in limits.languages:
        return None
    why = f"{limits.arch} is a CPU" if limits.kind == "cpu" else "Triton is not installed"
    return f"its kernels are written in Triton, and {why}"

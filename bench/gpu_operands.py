"""What `python -m bench gpu` convolves, and what is right: operands, a copy of as many bytes, the call in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from m2gen.dtypes import DTYPES
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.runtime.bindings.spectral import Operands
from m2gen.runtime.posed import problem_of

NAMES = ("u", "k", "pre_gate", "post_gate")
SAMPLE = 4  # batch rows and channels that errors are measured on


def drawn(problem: FftConvProblem, device: str) -> dict[str, Tensor]:
    """u, k and gates of normal values, the filter decaying like a trained one; made where they are used."""
    torch.manual_seed(0)
    dtype = getattr(torch, DTYPES[problem.dtype].torch_name)
    shape, taps = (problem.b, problem.h, problem.n), problem.taps_given
    decay = torch.exp(-4 * torch.arange(taps, device=device, dtype=torch.float32) / taps)
    found = {"u": torch.randn(shape, device=device, dtype=dtype)}
    found["k"] = torch.randn((problem.h, taps), device=device, dtype=torch.float32) * decay
    for name in NAMES[2:]:
        if getattr(problem, name):
            found[name] = torch.randn(shape, device=device, dtype=dtype)
    return found


def whole(
    problem: FftConvProblem,
    u: Tensor,
    k: Tensor,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    wide: torch.dtype = torch.float32,
) -> Tensor:
    """The convolution as models write it on cuFFT, in float32: one transform of the whole tensor and one back."""
    size = problem.n if problem.mode == "circular" else 2 * problem.n
    z = u if pre_gate is None else u * pre_gate
    kf = torch.fft.rfft(k.to(wide), n=size)
    y = torch.fft.irfft(torch.fft.rfft(z.to(wide), n=size) * kf, n=size)[..., : problem.n].to(u.dtype)
    return y if post_gate is None else y * post_gate


def copying(problem: FftConvProblem, u: Tensor) -> Callable[[], Any]:
    """A copy that reads and writes as many bytes as u, gates and the result have."""
    moved = u.numel() * u.element_size() * (2 + problem.gates)
    source = torch.empty(moved // 2, dtype=torch.int8, device=u.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def relative(problem: FftConvProblem, x: dict[str, Tensor], y: Tensor) -> float:
    """Relative l2 error of some rows of y against float64."""
    some = {name: t[:SAMPLE] if name == "k" else t[:SAMPLE, :SAMPLE] for name, t in x.items()}
    right = whole(problem, **{name: t.double() for name, t in some.items()}, wide=torch.float64)
    return float((y[:SAMPLE, :SAMPLE].double() - right).norm() / right.norm())


def posed_as(problem: FftConvProblem) -> FftConvProblem:
    """The problem that calls on its tensors pose."""
    return problem_of(Operands(**drawn(problem, "meta")), problem.mode, "auto")

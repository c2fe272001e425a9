"""Spectra of filters on large rings and gradients of their taps by generated kernels, against sums in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn_filters import drawn
from torch import Tensor

from m2gen.device.limits import DeviceLimits, target
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.planner.fftconv.large_filters import LargeFilterKernels, kernels
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.runtime.bindings import large_filter_triton
from m2gen.runtime.bindings.large_filter import LibraryLargeFilters
from m2gen.runtime.bindings.large_filter_triton import GeneratedLargeFilters
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands

pytestmark = pytest.mark.usefixtures("poison")
SM90, SM80 = target("sm90"), target("sm80")
EXACT = 1e-6  # relative, of float32 sums
H = 2
Radices = tuple[int, ...]


def planned(problem: FftConvProblem, ring: str, radices: Radices, limits: DeviceLimits = SM90) -> LargeFilterKernels:
    """For outer stages and the last two radices on chip; the gradient's sums are in the same order."""
    *stages, n1, n2 = radices
    given: dict[str, Any] = {"ring": ring, "columns": 64, "dtype": "fp32", "compute": "fp32"}
    outer = tuple(OuterSpec(part="analysis", n0=n0, **given) for n0 in stages)
    spec = FftConvSpec(part="fwd", ring="cyclic", n1=n1, n2=n2, dtype="fp32", compute="fp32")
    found = kernels(problem, outer, spec, replace(spec, part="dk"), limits)
    assert not found.why
    return found


def filters(problem: FftConvProblem, ring: str, radices: Radices, compute: str = "fp32", **how: Any) -> Any:
    of = planned(problem, ring, radices, **how)
    return GeneratedLargeFilters(Ring(problem, math.prod(radices)), of, compute)


def placed(problem: FftConvProblem, size: int, causal: bool, k: Tensor, k_rev: Tensor | None) -> Tensor:
    """Lag d at d, lag -m at size - m, there times -i on the ring t^size = i; complex128, with a gradient."""
    lo, hi = problem.taps
    centre = (problem.taps_given - 1) // 2 if problem.mode == "same" else 0
    ring = torch.zeros(k.shape[0], size, dtype=torch.complex128)
    ring = ring.index_add(1, torch.arange(hi + 1), k[:, centre : centre + hi + 1].to(ring.dtype))
    if lo:
        before = k[:, centre - lo : centre].flip(1) if k_rev is None else k_rev[:, :lo]
        ring = ring.index_add(1, size - 1 - torch.arange(lo), before * (-1j if causal else 1.0 + 0j))
    return ring


def spectrum(problem: FftConvProblem, ring: str, radices: Radices, *taps: Any) -> Tensor:
    """(H, size) in the consumer's order: bin k0 + n0 (k0' + n0' (..)) at [k0, k0', ..]."""
    size, causal = math.prod(radices), ring == "causal"
    k, k_rev, skip = taps
    there = placed(problem, size, causal, k, k_rev)
    if skip is not None:
        there = there.index_add(1, torch.tensor([0]), skip.to(there.dtype).unsqueeze(1))
    angle = torch.arange(size, dtype=torch.float64) * (math.pi / (2 * size) if causal else 0.0)
    bins = torch.fft.fft(there * torch.polar(torch.ones_like(angle), angle))
    stages = len(radices)
    return bins.view(-1, *reversed(radices)).permute(0, *range(stages, 0, -1)).flatten(1)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def whole(kf: Tensor, scale: Tensor) -> Tensor:
    """The spectrum that a kernel reads, times what it was divided by, complex128."""
    return torch.complex(kf[:, :, 0].double(), kf[:, :, 1].double()).flatten(1) * scale.double().unsqueeze(1)


def doubled(x: Operands) -> list[Tensor | None]:
    return [None if t is None else t.double() for t in (x.k, x.k_rev, x.skip)]


def check_spectrum(problem: FftConvProblem, ring: str, radices: Radices, x: Operands, **how: Any) -> None:
    kf, scale = filters(problem, ring, radices, **how).spectrum(x, slice(None))
    assert kf.shape == (x.k.shape[0], math.prod(radices[:-2]), 2, radices[-2] * radices[-1])
    assert relative(whole(kf, scale), spectrum(problem, ring, radices, *doubled(x))) < EXACT
    assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))
    assert torch.complex(kf[:, :, 0], kf[:, :, 1]).abs().max() <= 1


def check_gradients(problem: FftConvProblem, ring: str, radices: Radices, x: Operands, **how: Any) -> None:
    """The adjoint: <sums, spectrum(taps)> in the taps, tap by tap, real."""
    rows, points = math.prod(radices[:-2]), radices[-2] * radices[-1]
    sums = torch.randn(x.k.shape[0] * rows, 2, points, generator=torch.Generator().manual_seed(2))
    leaves = [t if t is None else t.requires_grad_() for t in doubled(x)[:2]]
    bins = torch.view_as_real(spectrum(problem, ring, radices, *leaves, None)).view(-1, points, 2).mT
    wanted = torch.autograd.grad((bins * sums.double()).sum(), [t for t in leaves if t is not None])
    out = Gradients(k=torch.zeros_like(x.k), k_rev=None if x.k_rev is None else torch.zeros_like(x.k_rev))
    filters(problem, ring, radices, **how).write(sums, slice(None), out, radices[-2:])
    for found, want in zip((out.k, out.k_rev), wanted, strict=False):
        assert found is not None and relative(found.double(), want) < EXACT
        assert ((found != 0) == (want != 0)).all()  # taps that reach nothing stay as they are


@pytest.mark.parametrize(
    ("ring", "radices", "mode", "n", "k", "dtype", "how"),
    [
        ("causal", (16, 16, 16), "causal", 4096, 4096, torch.float32, "as is"),
        ("causal", (16, 16, 16), "bidirectional", 4001, 4096, torch.float64, "turned"),
        ("causal", (16, 16, 16), "same", 4000, 2001, torch.float32, "step"),
        ("cyclic", (16, 16, 16), "same", 3000, 1, torch.float32, "as is"),
        ("cyclic", (16, 16, 16), "bidirectional", 2000, 31, torch.float32, "step"),
        ("cyclic", (32, 16, 16), "circular", 8192, 8192, torch.float32, "turned"),
        ("cyclic", (32, 16, 16), "causal", 3000, 9999, torch.float32, "as is"),
        ("causal", (16, 16, 16, 16), "bidirectional", 65000, 70001, torch.float32, "as is"),
        ("causal", (64, 32, 32), "causal", 65536, 65536, torch.float32, "as is"),
        ("cyclic", (32, 64, 64), "circular", 131072, 131072, torch.float32, "as is"),
    ],
)
def test_every_mode_ring_length_dtype_and_stride(
    ring: str, radices: Radices, mode: str, n: int, k: int, dtype: torch.dtype, how: str
) -> None:
    """There and back, with outer stages one in the other, in launches as many as there are stages and one."""
    h = H if len(radices) == 3 and math.prod(radices) < 65536 else 1
    problem = FftConvProblem(n=n, k=k, h=h, mode=mode, skip=True)
    x = drawn(problem, h, dtype, how)
    check_spectrum(problem, ring, radices, x)
    check_gradients(problem, ring, radices, x)


@pytest.mark.parametrize("arch", ["sm80", "gfx942"])
def test_rows_in_the_order_of_other_radices(arch: str) -> None:
    """Where products of the consumer's radices are too large for a block, bins are stored at computed places."""
    problem = FftConvProblem(n=65536, k=999, h=1, mode="circular", skip=True)
    of = planned(problem, "cyclic", (16, 64, 64), target(arch))
    assert len(of.passes) == (2 if arch == "sm80" else 1)
    check_spectrum(problem, "cyclic", (16, 64, 64), drawn(problem, h=1), limits=target(arch))
    check_gradients(problem, "cyclic", (16, 64, 64), drawn(problem, h=1), limits=target(arch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_taps_of_half_precision_are_read_and_their_gradients_round_once(dtype: torch.dtype) -> None:
    problem, radices = FftConvProblem(n=4096, h=H, mode="bidirectional", skip=True), (16, 16, 16)
    x = drawn(problem, H, dtype)
    check_spectrum(problem, "causal", radices, x)
    of = filters(problem, "causal", radices)

    def filled(dtype: torch.dtype) -> Gradients:
        out = Gradients(k=torch.zeros(x.k.shape, dtype=dtype), k_rev=torch.zeros(x.k.shape, dtype=dtype))
        sums = torch.randn(H * 16, 2, 256, generator=torch.Generator().manual_seed(1))
        of.write(sums * 2.0**-4, slice(None), out, (16, 16))
        return out

    low, high = filled(dtype), filled(torch.float32)
    assert torch.equal(low.k, high.k.to(dtype)) and torch.equal(low.k_rev, high.k_rev.to(dtype))


def test_filters_of_any_size_are_scaled_into_half_precision() -> None:
    """No bin passes 1, and the largest is not far below it, whatever the taps' size; a NaN stays in its channel."""
    radices, size = (32, 16, 16), 8192
    problem = FftConvProblem(n=size, h=4, mode="causal", k=200)
    x = drawn(problem, h=4)
    x.k.mul_(torch.tensor([1e30, 1e-30, 0.0, float("nan")]).unsqueeze(1))
    kf, scale = filters(problem, "causal", radices, compute="fp16").spectrum(x, slice(None))
    assert kf.dtype == torch.float16
    bins = spectrum(problem, "causal", radices, *doubled(x))
    for channel in (0, 1):
        assert relative(whole(kf, scale)[channel], bins[channel]) < 2**-11
        largest = torch.complex(kf[channel, :, 0].float(), kf[channel, :, 1].float()).abs().max()
        assert 2**-5 < largest <= 1
    assert (kf[2] == 0).all() and scale[2].isfinite()
    assert kf[3].isnan().all()


def test_a_bound_of_the_bins_loses_no_more_than_the_root_of_a_row() -> None:
    """The scale is from sums of moduli of the rows that are left, no more than the root of their length times the
    largest bin. An impulse's bins are all of one size, and the bound is that; a wave's are one, and so is it."""
    radices, size = (32, 16, 16), 8192
    problem = FftConvProblem(n=size, h=3, mode="circular")
    x = drawn(problem, h=3)
    x.k[1] = 0
    x.k[1, 77] = 3.0
    x.k[2] = torch.cos(2 * math.pi * 5 * torch.arange(size) / size)
    kf, scale = filters(problem, "cyclic", radices).spectrum(x, slice(None))
    largest = torch.complex(kf[:, :, 0], kf[:, :, 1]).abs().amax((1, 2))
    assert (largest <= 1).all() and (largest > 0.5 / 16).all()
    assert torch.isclose(largest[1] * scale[1], torch.tensor(3.0)) and scale[1] == 4
    assert largest[2] > 0.49


def test_some_channels_and_one_gradient_alone() -> None:
    """As of all, bit for bit, and what is not of these channels stays as it is."""
    problem, radices = FftConvProblem(n=4096, h=3, mode="bidirectional", skip=True), (16, 16, 16)
    x, of = drawn(problem, h=3), filters(problem, "causal", radices)
    every, some = of.spectrum(x, slice(None)), of.spectrum(x, slice(1, 3))
    assert all(torch.equal(a[1:], b) for a, b in zip(every, some, strict=True))
    sums = torch.randn(3 * 16, 2, 256)
    both = Gradients(k=torch.zeros_like(x.k), k_rev=torch.zeros_like(x.k))
    of.write(sums.clone(), slice(None), both, (16, 16))
    for name in ("k", "k_rev"):
        out = Gradients(**{name: torch.zeros_like(x.k)})
        of.write(sums[16:].clone(), slice(1, 3), out, (16, 16))
        found = getattr(out, name)
        assert torch.equal(found[1:], getattr(both, name)[1:]) and not found[0].any()


@pytest.mark.parametrize(("radices", "stages"), [((16, 16, 16), 1), ((16, 16, 16, 16), 2)])
def test_launches(radices: Radices, stages: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each outer stage and one for the rows, and nothing of PyTorch's but memory."""
    problem = FftConvProblem(n=math.prod(radices), h=1, mode="causal", skip=True)
    x, of, names = drawn(problem, h=1), filters(problem, "causal", radices), []
    monkeypatch.setattr(large_filter_triton, "launch", lambda spec, *_: names.append(spec.name))
    monkeypatch.setattr(torch.fft, "fft", None)
    monkeypatch.setattr(torch.fft, "ifft", None)
    of.spectrum(x, slice(None))
    sums, out = torch.randn(problem.n // 256, 2, 256), Gradients(k=torch.zeros_like(x.k))
    of.write(sums, slice(None), out, (16, 16))
    planned_ = planned(problem, "causal", radices)
    assert names == [one.name for one in (*planned_.forward, *planned_.backward)]
    assert len(planned_.passes) == stages == len(planned_.back)


def test_the_librarys_way_gives_the_same() -> None:
    """What plans without such kernels do."""
    problem, radices = FftConvProblem(n=4000, h=H, mode="bidirectional", skip=True), (16, 16, 16)
    x, ring = drawn(problem, H), Ring(problem, 4096)
    library = LibraryLargeFilters(ring, "causal", radices, torch.float32)
    kf, scale = library.spectrum(x, slice(None))
    assert relative(whole(kf, scale), spectrum(problem, "causal", radices, *doubled(x))) < EXACT
    sums = torch.randn(H * 16, 2, 256)
    outs = [Gradients(k=torch.zeros_like(x.k), k_rev=torch.zeros_like(x.k)) for _ in range(2)]
    for of, out in zip((library, filters(problem, "causal", radices)), outs, strict=True):
        of.write(sums.clone(), slice(None), out, (16, 16))
    for name in ("k", "k_rev"):
        assert relative(getattr(outs[1], name), getattr(outs[0], name)) < EXACT


def test_radices_that_spill_stay_with_the_library() -> None:
    problem = FftConvProblem(n=65536, h=1, mode="causal")
    outer = (OuterSpec(part="analysis", ring="causal", n0=128, columns=32, dtype="fp16", compute="fp16"),)
    spec = FftConvSpec(part="fwd", ring="cyclic", n1=32, n2=16, dtype="fp16", compute="fp16")
    found = kernels(problem, outer, spec, replace(spec, part="dk"), SM90)
    assert not found.forward and "no float32 pass of radix 128" in found.why and found.why in found.line

"""Spectra of long filters and their gradients' taps by generated kernels, against the sums themselves in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn_filters import drawn
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from m2gen.device.limits import target
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.planner.fftconv.filters import kernels
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime.bindings import fused, spectrum_triton
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.spectrum_triton import FusedFilters
from m2gen.testing.operands import operands

pytestmark = pytest.mark.usefixtures("poison")
SM90, SM80 = target("sm90"), target("sm80")
EXACT = 1e-6  # relative, of float32 sums
H = 3
Radices = tuple[int, ...]


def consumer(ring: str, radices: Radices, compute: str = "fp32", stack: int = 1) -> FftConvSpec:
    n0, n1, n2 = radices if len(radices) == 3 else (1, *radices)
    fields: dict[str, Any] = {"ring": ring, "n0": n0, "n1": n1, "n2": n2, "compute": compute, "stack": stack}
    return FftConvSpec(part="fwd", dtype="fp32", **fields)


def filters(problem: FftConvProblem, spec: FftConvSpec, limits: Any = SM90) -> FusedFilters:
    of = kernels(problem, spec, replace(spec, part="dk"), limits)
    assert of.forward and of.back and not of.why
    return FusedFilters(Ring(problem, spec.size), spec, of.forward, of.back)


def placed(problem: FftConvProblem, size: int, causal: bool, x: Operands) -> Tensor:
    """Every tap on the ring, one after the other, complex128."""
    ring = torch.zeros(x.k.shape[0], size, dtype=torch.complex128)
    lo, hi = problem.taps
    centre = (problem.taps_given - 1) // 2 if problem.mode == "same" else 0
    for lag in range(-lo, hi + 1):
        tap = x.k_rev[:, -lag - 1] if lag < 0 and x.k_rev is not None else x.k[:, centre + lag]
        ring[:, lag % size] += tap.double() * (-1j if lag < 0 and causal else 1)
    if x.skip is not None:
        ring[:, 0] += x.skip.double()
    return ring


def points(size: int, causal: bool) -> Tensor:
    """theta^n, whose powers of t^size = i the ring is weighted with; ones on the cyclic ring."""
    angle = torch.arange(size, dtype=torch.float64) * (math.pi / (2 * size) if causal else 0.0)
    return torch.polar(torch.ones_like(angle), angle)


def in_order(bins: Tensor, spec: FftConvSpec) -> Tensor:
    """(H, size) -> (H, n0, n1, n2): bin k0 + n0 (k1 + n1 k2) at [k0, k1, k2]."""
    return bins.reshape(-1, spec.n2, spec.n1, spec.n0).permute(0, 3, 2, 1)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-300)).item()


def whole(kf: Tensor, scale: Tensor) -> Tensor:
    """The spectrum that a kernel reads, times what it was divided by, complex128."""
    return torch.complex(kf[:, 0].double(), kf[:, 1].double()) * scale.double().view(-1, 1, 1, 1)


def check_spectrum(problem: FftConvProblem, spec: FftConvSpec, x: Operands, limits: Any = SM90) -> None:
    kf, scale = filters(problem, spec, limits).spectrum(x)
    causal = spec.ring == "causal"
    bins = torch.fft.fft(placed(problem, spec.size, causal, x) * points(spec.size, causal))
    assert relative(whole(kf, scale), in_order(bins, spec)) < EXACT
    assert torch.equal(torch.frexp(scale).mantissa, torch.full((x.k.shape[0],), 0.5))
    assert torch.complex(kf[:, 0], kf[:, 1]).abs().max() <= 1


def check_gradients(problem: FftConvProblem, spec: FftConvSpec, x: Operands, splits: int, limits: Any = SM90) -> None:
    """The adjoint: <sums, spectrum(taps)> in the taps, tap by tap, real."""
    causal, stack = spec.ring == "causal", 1 if spec.staged else spec.stack
    shape = (x.k.shape[0], splits, 2, stack, spec.n0, spec.n1, spec.n2)
    sums = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    of_skip = torch.randn(x.k.shape[0], splits)
    out = Gradients(*(None if t is None else torch.zeros_like(t) for t in (None, x.k, x.k_rev, None, None, x.skip)))
    filters(problem, spec, limits).gradients(sums, of_skip, spec, out)
    total = sums.double().sum((1, 3))
    ring = torch.zeros(x.k.shape[0], spec.size, dtype=torch.complex128, requires_grad=True)
    bins = in_order(torch.fft.fft(ring * points(spec.size, causal)), spec)
    (bins.real * total[:, 0] + bins.imag * total[:, 1]).sum().backward()
    assert ring.grad is not None
    leaves = [t.detach().double().requires_grad_() for t in (x.k, x.k_rev) if t is not None]
    again = Operands(x.u, leaves[0], leaves[1] if len(leaves) > 1 else None)
    through = placed(problem, spec.size, causal, again)
    wanted = torch.autograd.grad(through, leaves, ring.grad)
    for found, want in zip((out.k, out.k_rev), wanted, strict=False):
        assert found is not None and relative(found.double(), want) < EXACT
        assert ((found != 0) == (want != 0)).all()  # taps that reach nothing stay as they are
    if x.skip is not None:
        assert out.skip is not None and relative(out.skip.double(), of_skip.double().sum(1)) < EXACT


RINGS: list[tuple[str, Radices, int]] = [
    ("causal", (16, 16), 250),
    ("causal", (32, 16), 512),
    ("cyclic", (16, 32), 200),
    ("cyclic", (64, 32), 900),
]


@settings(max_examples=80)
@given(
    st.sampled_from(["causal", "bidirectional", "same", "circular"]),
    st.sampled_from(RINGS),
    st.sampled_from([1, 31, 201, 699]),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    st.sampled_from(["as is", "step", "turned"]),
    st.sampled_from([1, 2]),
)
def test_every_mode_ring_length_dtype_and_stride(
    mode: str, on: tuple[str, Radices, int], k: int, skip: bool, dtype: torch.dtype, how: str, splits: int
) -> None:
    ring, radices, n = on
    if mode == "circular":
        ring, n = "cyclic", math.prod(radices)
    spec = consumer(ring, radices, stack=2)
    if ring == "cyclic" and mode != "circular":
        n = min(n, math.prod(radices) - k)
    if n < 1:
        return
    problem = FftConvProblem(n=n, k=min(k, n) if mode == "circular" else k, h=H, mode=mode, skip=skip)
    x = drawn(problem, H, dtype, how)
    check_spectrum(problem, spec, x)
    if dtype in (torch.float32, torch.float64):  # of others the gradient is rounded
        check_gradients(problem, spec, x, splits)


@pytest.mark.parametrize(
    "ring, radices, arch",
    [
        ("causal", (64, 64), "sm90"),
        ("cyclic", (64, 64), "sm80"),  # two launches, in the order of another's
        ("causal", (128, 64), "sm90"),
        ("cyclic", (32, 16, 16), "sm90"),
        ("causal", (64, 16, 16), "sm80"),
        ("causal", (64, 16, 16), "gfx942"),
        ("causal", (32, 32, 32), "sm90"),
    ],
)
def test_every_size_and_way(ring: str, radices: Radices, arch: str) -> None:
    size = math.prod(radices)
    mode = "same" if ring == "causal" else "bidirectional"
    n = size - 3 if ring == "causal" else size // 2 - 5
    problem = FftConvProblem(n=n, k=301, h=H, mode=mode, skip=True)
    x, spec = drawn(problem, H), consumer(ring, radices)
    check_spectrum(problem, spec, x, target(arch))
    check_gradients(problem, spec, x, 2, target(arch))


@pytest.mark.parametrize("radices", [(16, 16), (32, 16, 16)])
def test_the_same_bits_every_time_and_a_nan_stays_in_its_channel(radices: Radices) -> None:
    n = math.prod(radices)
    problem = FftConvProblem(n=n, h=H, mode="causal")
    x, spec = drawn(problem, H), consumer("causal", radices, "fp16")
    of = filters(problem, spec)
    first, second = of.spectrum(x), of.spectrum(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    x.k[1, 17] = float("nan")
    kf, scale = of.spectrum(x)
    assert kf[1].isnan().all()
    for channel in (0, 2):
        assert torch.equal(kf[channel], first[0][channel]) and scale[channel] == first[1][channel]


@pytest.mark.parametrize("radices", [(16, 32), (32, 16, 16)])
def test_filters_of_any_size_are_scaled_into_half_precision(radices: Radices) -> None:
    n = math.prod(radices)
    problem = FftConvProblem(n=n, h=H, mode="causal", k=200)
    x, spec = drawn(problem, H), consumer("causal", radices, "fp16")
    x.k.mul_(torch.tensor([1e5, 1e-9, 0.0]).unsqueeze(1))
    kf, scale = filters(problem, spec).spectrum(x)
    bins = in_order(torch.fft.fft(placed(problem, spec.size, True, x) * points(spec.size, True)), spec)
    for channel in (0, 1):
        error = relative(whole(kf, scale)[channel], bins[channel])
        assert error < 2**-11
        largest = torch.complex(kf[channel, 0].float(), kf[channel, 1].float()).abs().max()
        assert 2**-5 < largest <= 1
    assert (kf[2] == 0).all() and scale[2].isfinite()


def test_a_bound_of_the_bins_loses_no_more_than_the_root_of_a_row() -> None:
    """With an outer stage the scale comes before the largest bin is known: from sums of moduli, which are no more than
    sqrt(n1 n2) times it. An impulse's bins are all of one size: the bound is that size."""
    spec = consumer("cyclic", (32, 16, 16))
    problem = FftConvProblem(n=8192, h=H, mode="circular")
    x = drawn(problem, H)
    x.k[1] = 0
    x.k[1, 77] = 3.0
    kf, scale = filters(problem, spec).spectrum(x)
    largest = torch.complex(kf[:, 0], kf[:, 1]).abs().amax((1, 2, 3))
    assert (largest <= 1).all() and (largest > 0.5 / 16).all()
    assert torch.isclose(largest[1] * scale[1], torch.tensor(3.0)) and scale[1] == 4


def test_gradients_of_bfloat16_taps_round_once() -> None:
    """The interpreter would cut them off."""
    problem = FftConvProblem(n=256, h=H, mode="bidirectional", skip=True)
    x, spec = drawn(problem, H, torch.bfloat16), consumer("causal", (16, 16))
    sums = torch.randn(H, 2, 2, 1, 1, 16, 16)
    of_skip, of = torch.randn(H, 2), filters(problem, spec)

    def filled(dtype: torch.dtype) -> Gradients:
        out = Gradients(*(None if t is None else t.to(dtype) * 0 for t in (None, x.k, x.k_rev, None, None, x.skip)))
        of.gradients(sums, of_skip, spec, out)
        return out

    low, high = filled(torch.bfloat16), filled(torch.float32)
    for name in ("k", "k_rev", "skip"):
        assert torch.equal(getattr(low, name), getattr(high, name).bfloat16())


@pytest.mark.parametrize("wanted", [("k",), ("k_rev",), ("skip",), ("k", "skip")])
def test_gradients_one_by_one(wanted: tuple[str, ...]) -> None:
    problem = FftConvProblem(n=256, h=H, mode="bidirectional", skip=True)
    x, spec = drawn(problem, H), consumer("causal", (16, 16))
    sums, of_skip, of = torch.randn(H, 1, 2, 1, 1, 16, 16), torch.randn(H, 1), filters(problem, spec)
    every = Gradients(k=torch.zeros_like(x.k), k_rev=torch.zeros_like(x.k), skip=torch.zeros(H))
    of.gradients(sums, of_skip, spec, every)
    some = Gradients(**{name: torch.zeros_like(getattr(every, name)) for name in wanted})
    of.gradients(sums, of_skip, spec, some)
    assert all(torch.equal(getattr(some, name), getattr(every, name)) for name in wanted)


@pytest.mark.parametrize("text, most", [("n=256", 1), ("n=4096", 1), ("n=8192", 2), ("n=16384", 2)])
def test_few_launches(text: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a spectrum, and of taps from sums: no more than two, and nothing of PyTorch's but memory. By the fused plan
    whose gradients are on chip, too."""
    problem: Problem = parse(f"fftconv {text} h=1 b=1 fp16 circular skip")
    args = operands(problem)
    names: list[str] = []
    for module in (spectrum_triton, fused):
        real = module.launch

        def counted(spec: Any, *more: Any, real: Any = real) -> None:
            names.append(spec.name)
            real(spec, *more)

        monkeypatch.setattr(module, "launch", counted)
    monkeypatch.setattr(torch.fft, "fft", None)
    monkeypatch.setattr(torch.fft, "ifft", None)
    body = next(plan.body for plan in rank(problem, target("sm90")).plans if isinstance(plan.body, FusedConv))
    kernel = fused.FusedKernel(problem, replace(body, back=None))
    x = Operands(*(args.get(name) for name in ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")))
    y = kernel.forward(x)
    assert len([name for name in names if name.startswith("spectrum_fwd")]) == most == len(names) - 1
    names.clear()
    kernel.backward(torch.ones_like(y), x, Gradients(k=torch.zeros_like(args["k"])))
    assert len([name for name in names if name.startswith("spectrum_inverse")]) == most == len(names) - 1

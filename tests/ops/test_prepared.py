"""A filter that its user keeps: the same convolution, its spectra made once."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import m2gen
from m2gen import ProblemError
from m2gen.runtime.bindings import kept_spectra
from m2gen.runtime.bindings.native import NativeKernel


def given(mode: str, length: int = 40, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, dict]:
    torch.manual_seed(0)
    k = torch.randn(6, 21)
    rest = {"skip": torch.randn(6)}
    if mode == "bidirectional":
        rest["k_rev"] = torch.randn(6, 21)
    return torch.randn(2, 6, length, dtype=dtype), k, rest


@pytest.fixture
def spectra(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that spectra were derived."""
    derived: list[int] = []
    get = kept_spectra.KeptFilter.get
    monkeypatch.setattr(
        kept_spectra.KeptFilter,
        "get",
        lambda self, how, derive: get(self, how, lambda: (derived.append(1), derive())[1]),
    )
    return derived


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["causal", "bidirectional", "same", "circular"])
def test_the_same_convolution(mode: str, dtype: torch.dtype, grad: bool) -> None:
    u, k, rest = given(mode, dtype=dtype)
    gate = torch.randn_like(u)
    prepared = m2gen.prepare_filter(k, mode=mode, **rest)
    with torch.set_grad_enabled(grad):
        for add in (None, torch.randn_like(u)):
            want = m2gen.fftconv(u, k, mode=mode, post_gate=gate, add=add, **rest)
            for _ in range(3):
                torch.testing.assert_close(m2gen.fftconv(u, prepared, post_gate=gate, add=add), want)
            turned = {"post_gate": gate.mT, "add": None if add is None else add.mT}
            found = m2gen.fftconv(u.mT, prepared, layout="BLH", **turned).mT
            assert torch.equal(found, want) or dtype != torch.float64


def test_a_write_to_the_original_changes_nothing() -> None:
    u, k, rest = given("causal")
    prepared = m2gen.prepare_filter(k, **rest)
    want = m2gen.fftconv(u, prepared)
    k.zero_(), rest["skip"].zero_()
    assert torch.equal(m2gen.fftconv(u, prepared), want)
    assert m2gen.fftconv(u, k, **rest).abs().max() == 0, "and the tensor itself is read in every call"


def test_spectra_are_made_once_for_a_length(spectra: list[int]) -> None:
    u, k, rest = given("causal")
    prepared = m2gen.prepare_filter(k, **rest)

    for _ in range(3):
        m2gen.fftconv(u, prepared)
    once = len(spectra)
    assert once <= 1  # none where no plan keeps them
    with torch.inference_mode():
        m2gen.fftconv(u, prepared)
    m2gen.fftconv(u.clone().requires_grad_(), prepared).sum().backward()
    torch.func.vmap(lambda v: m2gen.fftconv(v, prepared))(u[:, None])
    assert len(spectra) == once
    if once:  # there is a C++ compiler
        prepared.forget()
        m2gen.fftconv(u, prepared)
        assert len(spectra) == 2
        held = prepared.nbytes
        assert held > 4 * (k.numel() + 6)
    m2gen.fftconv(u, k, **rest)
    assert len(spectra) <= 2, "a plain filter has nothing kept"


def test_gradients_reach_u_and_gates() -> None:
    u, k, rest = given("bidirectional", dtype=torch.float64)
    k, rest = k.double(), {name: t.double() for name, t in rest.items()}
    prepared = m2gen.prepare_filter(k, mode="bidirectional", **rest)
    gate = torch.randn_like(u).requires_grad_()
    u.requires_grad_()
    torch.autograd.gradcheck(lambda a, g: m2gen.fftconv(a, prepared, pre_gate=g), (u[:1, :, :9], gate[:1, :, :9]))


def test_compiled_and_copied() -> None:
    u, k, rest = given("causal")
    prepared = m2gen.prepare_filter(k, **rest)
    want = m2gen.fftconv(u, prepared)
    compiled = torch.compile(lambda v: m2gen.fftconv(v, prepared), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(u), want)
    for other in (copy.deepcopy(prepared), pickle.loads(pickle.dumps(prepared)), prepared.to("cpu")):
        assert torch.equal(m2gen.fftconv(u, other), want)
        assert "6, 21" in repr(other)


def test_an_address_used_again_is_another_filter() -> None:
    """When a prepared filter is gone, so are its spectra."""
    u, k, _ = given("causal")
    for i in range(50):
        prepared = m2gen.prepare_filter(k + i)
        torch.testing.assert_close(m2gen.fftconv(u, prepared), m2gen.fftconv(u, k + i))
        torch.testing.assert_close(m2gen.fftconv(u, prepared), m2gen.fftconv(u, k + i))
    del prepared
    assert not any(f.tensors[0].shape == k.shape for f in list(kept_spectra._known.values()))


def test_refusals() -> None:
    u, k, rest = given("bidirectional")
    prepared = m2gen.prepare_filter(k, mode="bidirectional", **rest)
    for wrong in ({"mode": "causal"}, {"skip": rest["skip"]}, {"k_rev": k}):
        with pytest.raises(ProblemError, match="beside a prepared filter"):
            m2gen.fftconv(u, prepared, **wrong)
    m2gen.fftconv(u, prepared, mode="bidirectional")
    with pytest.raises(ProblemError, match="requires a gradient"):
        m2gen.prepare_filter(k.clone().requires_grad_())
    with torch.no_grad():
        m2gen.prepare_filter(k.clone().requires_grad_())
    for wrong in ({"mode": "backwards"}, {"k_rev": k}, {"skip": torch.randn(5)}, {"mode": "bidirectional"}):
        with pytest.raises(ProblemError):
            m2gen.prepare_filter(k, **wrong)
    with pytest.raises(ProblemError):
        m2gen.prepare_filter(torch.randn(3, 4, 5))
    with pytest.raises(ProblemError, match="shape"):
        m2gen.fftconv(u[:, :3], prepared)


def test_the_kernel_that_reads_kept_spectra_runs() -> None:
    """Once at least, so that the tests above are of more than the kernel that makes them anew."""
    runs: list[bool] = []
    run = NativeKernel._run

    def noted(self: NativeKernel, spec: object, *args: object, **kwargs: object) -> None:
        runs.append(getattr(spec, "kept", False))
        run(self, spec, *args, **kwargs)  # type: ignore[arg-type]

    u, k, _ = given("causal")
    from m2gen.runtime.build.cpp_kernel import available

    if available():
        pytest.skip("no C++ compiler")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeKernel, "_run", noted)
        m2gen.fftconv(u, m2gen.prepare_filter(k))
    assert any(runs)


def test_no_transform_or_tangent_is_lost() -> None:
    k = torch.randn(2, 3, 5)
    with pytest.raises(ProblemError, match="function transform"):
        torch.vmap(lambda k: m2gen.prepare_filter(k).k)(k)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level(), pytest.raises(ProblemError, match="tangent"):
        m2gen.prepare_filter(torch.autograd.forward_ad.make_dual(k[0], k[1]))


def test_other_filters_with_a_kept_ones_taps() -> None:
    """The memory of a kept filter's k, but fewer taps of it, another reverse filter, another skip: none is mistaken."""
    u, k, more = given("bidirectional")
    kept = m2gen.prepare_filter(k, mode="bidirectional", **more)
    m2gen.fftconv(u, kept)  # its spectra are there
    others = [{"k_rev": -kept.k_rev, "skip": kept.skip}, {"k_rev": kept.k_rev, "skip": kept.skip + 1}]
    for other in others:
        want = m2gen.fftconv(u, kept.k.clone(), mode="bidirectional", **{n: t.clone() for n, t in other.items()})
        assert torch.equal(m2gen.fftconv(u, kept.k, mode="bidirectional", **other), want)
    short = kept.k[:, :10]
    want = m2gen.fftconv(u, short.clone(), mode="causal")
    assert torch.equal(m2gen.fftconv(u, short, mode="causal"), want)

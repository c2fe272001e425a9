"""The implicit filter against an independent transcription of its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import m2gen
from m2gen.errors import ProblemError
from m2gen.modules import HyenaFilter, LongConv, SequenceMixer, param_groups
from m2gen.modules.hyena_filter import position_features, unit_times
from m2gen.reference import fftconv as reference


def transcription(state: dict[str, torch.Tensor], length: int, channels: int, rev: str = "") -> torch.Tensor:
    """k[c][i], entry by entry over positions, from the published formula; float64."""
    net = f"implicit_filter{rev}"
    weight = {name: tensor.double() for name, tensor in state.items()}
    rows = []
    for i in range(length):
        h = weight["pos_emb.z"][0, i]
        for layer in (0, 2, 4):
            h = weight[f"{net}.{layer}.weight"] @ h + weight[f"{net}.{layer}.bias"]
            h = torch.sin(weight[f"{net}.{layer + 1}.freq"][0] * h)
        rows.append(weight[f"{net}.6.weight"] @ h)
    t = [i / (len(weight["pos_emb.t"][0]) - 1) for i in range(length)]
    slow, fast = math.log(0.01) / 1.5, math.log(0.01) / 0.3
    for i in range(length):
        for c in range(channels):
            delta = slow + (fast - slow) * c / (channels - 1)
            rows[i][c] *= math.exp(-t[i] * abs(delta))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("length", [1, 7, 20])
def test_formula(length: int) -> None:
    torch.manual_seed(0)
    filter_fn = HyenaFilter(6, 20, width=16, bidirectional=True)
    k, k_rev = filter_fn(length)
    state = filter_fn.state_dict()
    torch.testing.assert_close(k.double(), transcription(state, length, 6), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(k_rev.double(), transcription(state, length, 6, "_rev"), rtol=1e-4, atol=1e-6)
    assert k.shape == k_rev.shape == (6, length)


@pytest.mark.parametrize(("emb_dim", "length"), [(5, 128), (3, 10), (33, 64)])
def test_positional_features(emb_dim: int, length: int) -> None:
    z = HyenaFilter(2, length, emb_dim=emb_dim).pos_emb.z
    bands = (emb_dim - 1) // 2
    t = torch.linspace(0, 1, length)[:, None]
    w = 2 * math.pi * torch.linspace(0, length - 1, length)[:, None] / length
    f = torch.linspace(1e-4, bands - 1, bands)
    want = torch.cat([t, torch.cos(f * w), -torch.sin(f * w)], dim=1)
    torch.testing.assert_close(z[0], want, rtol=0, atol=2e-5)


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        filter_fn = HyenaFilter(768, 128, bidirectional=True)
    found = {name: tuple(tensor.shape) for name, tensor in filter_fn.state_dict().items()}
    want = {"bias": (768,), "pos_emb.z": (1, 128, 5), "pos_emb.t": (1, 128, 1), "modulation.deltas": (1, 1, 768)}
    for net in ("implicit_filter", "implicit_filter_rev"):
        for layer, fan_in in ((0, 5), (2, 128), (4, 128)):
            want |= {f"{net}.{layer}.weight": (128, fan_in), f"{net}.{layer}.bias": (128,)}
            want[f"{net}.{layer + 1}.freq"] = (1, 128)
        want[f"{net}.6.weight"] = (768, 128)
    assert found == want


def test_one_frequency_shared_by_both_networks() -> None:
    filter_fn = HyenaFilter(4, 8, bidirectional=True)
    assert filter_fn.implicit_filter_rev is not None
    freqs = {id(net[i].freq) for net in (filter_fn.implicit_filter, filter_fn.implicit_filter_rev) for i in (1, 3, 5)}
    assert len(freqs) == 1
    assert torch.equal(filter_fn.implicit_filter[1].freq, torch.full((1, 128), 10.0))


def test_shorter_length_is_a_prefix() -> None:
    filter_fn = HyenaFilter(4, 32)
    torch.testing.assert_close(filter_fn(32)[0][:, :9], filter_fn(9)[0])
    assert filter_fn(9)[1] is None
    assert filter_fn()[0].shape == (4, 32)


def test_fixed_frequency_factor() -> None:
    once, twice = HyenaFilter(4, 16, w=10.0, w_mod=1.0), HyenaFilter(4, 16, w=5.0, w_mod=2.0)
    state = once.state_dict()
    twice.load_state_dict({name: t / 2 if name.endswith("freq") else t for name, t in state.items()})
    torch.testing.assert_close(once(16)[0], twice(16)[0], rtol=1e-5, atol=1e-6)


def test_times_beyond_one_continue_the_features() -> None:
    """Positions 128 to 191 of a table for 128: the same cosines and sines, further on."""
    t = torch.arange(192, dtype=torch.float64)[None, :, None] / 127
    z = position_features(t, 128, 5)
    torch.testing.assert_close(z[0, :128], position_features(unit_times(128), 128, 5)[0])
    for i in (128, 191):
        w = 2 * math.pi * i / 128
        want = [i / 127, math.cos(1e-4 * w), math.cos(w), -math.sin(1e-4 * w), -math.sin(w)]
        torch.testing.assert_close(z[0, i], torch.tensor(want, dtype=torch.float64))


def test_heads_share_filters() -> None:
    filter_fn = HyenaFilter(12, 16, heads=3)
    k, _ = filter_fn(16)
    assert torch.equal(k[:4], k[4:8])
    assert torch.equal(k[:4], k[8:])
    assert filter_fn.implicit_filter[-1].weight.shape == (4, 128)
    assert filter_fn.bias.shape == (12,)


def test_modulation_decays_from_slow_to_fast() -> None:
    filter_fn = HyenaFilter(2, 101, fast_decay=0.1, slow_decay=1.0)
    assert filter_fn.modulation is not None
    window = filter_fn.modulation(filter_fn.pos_emb.t)
    assert window[0, 100].item() == pytest.approx(0.01, rel=1e-4)
    assert window[1, 10].item() == pytest.approx(0.01, rel=1e-4)
    assert HyenaFilter(2, 8, modulate=False).modulation is None


@pytest.mark.parametrize("half", ["autocast", "bfloat16", "float16"])
def test_filter_stays_float32(half: str) -> None:
    filter_fn = HyenaFilter(4, 16)
    want, _ = filter_fn(16)
    if half == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            k, _ = filter_fn(16)
        assert torch.equal(k, want)
    else:
        k, _ = filter_fn.to(getattr(torch, half))(16)
        assert torch.equal(k, want), "a cast to half precision rounds neither positions nor weights"
        assert {t.dtype for t in filter_fn.state_dict().values()} == {torch.float32}
    assert k.dtype == torch.float32
    assert filter_fn.double()(16)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HyenaFilter(4, 16)(17), "at most 16"),
        (lambda: HyenaFilter(4, 16)(-3), "a whole number"),
        (lambda: HyenaFilter(4, 16)(True), "a whole number"),
        (lambda: HyenaFilter(4, 16)(2.0), "a whole number"),
        (lambda: HyenaFilter(4, 16, emb_dim=4), "odd"),
        (lambda: HyenaFilter(4, 16, heads=3), "divisor of 4"),
        (lambda: HyenaFilter(0, 16), "positive"),
    ],
)
def test_refusals(make: type, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        make()


def test_param_groups_hold_every_parameter_once() -> None:
    model = nn.Sequential(SequenceMixer(8, 16), nn.Linear(8, 8))
    groups = {group["name"]: group for group in param_groups(model, lr=8e-4, weight_decay=1e-5)}
    listed = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    settings = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert settings == {
        "matrices": (8e-4, 1e-5),
        "vectors": (8e-4, 0.0),
        "filters": (1e-3, 0.1),
        "positions": (1e-5, 0.0),
    }
    mixer = model[0]
    assert {id(p) for p in groups["positions"]["params"]} == {
        id(f.pos_emb.z) for f in (mixer.filter_fn, mixer.filter_fn2)
    }
    torch.optim.AdamW(groups.values()).step()


@pytest.mark.parametrize("kind", ["foreach", "fused"])
def test_evaluation_sees_every_step_of_an_optimizer(kind: str) -> None:
    """A fused step counts no version of the parameters that it changes."""
    filters = HyenaFilter(4, 16, width=8)
    optimizer = torch.optim.AdamW(filters.parameters(), lr=0.1, **{kind: True})
    for _ in range(3):
        filters.train()(16)[0].sum().backward()
        optimizer.step()
        with torch.no_grad():
            kept = filters.eval()(16)[0]
            assert torch.equal(kept, filters._filters(16)[0])


@pytest.mark.parametrize("train", [True, False])
def test_convolutions_see_every_step_of_a_fused_optimizer(train: bool) -> None:
    """A filter that is itself a parameter: no spectrum of before the step, in training nor in evaluation."""
    k, u = torch.nn.Parameter(torch.randn(8, 64)), torch.randn(1, 8, 64)
    optimizer = torch.optim.AdamW([k], lr=0.1, fused=True)
    for _ in range(4):
        m2gen.fftconv(u, k).square().sum().backward()
        optimizer.step()
        with torch.set_grad_enabled(train):
            for _ in range(3):
                y = m2gen.fftconv(u, k).detach()
                torch.testing.assert_close(y, reference.fftconv(u, k).detach().float(), rtol=1e-4, atol=1e-4)


class Table(nn.Module):
    """A layer that gives its own parameter, turned: what is written to it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(4, 16))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.taps[:, : h.shape[0]].T


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("whole", [False, True])
def test_what_layers_give_is_not_written_to(mode: type, whole: bool) -> None:
    torch.manual_seed(0)
    module, u = LongConv(4, 16).eval(), torch.randn(1, 4, 16)
    table = Table()
    if whole:
        module.filter_fn.implicit_filter = table
    else:
        module.filter_fn.implicit_filter[-1] = table
    before = table.taps.detach().clone()
    with mode():
        first, again = module(u), module(u)
    assert torch.equal(first, again) and torch.equal(table.taps, before)


@torch.no_grad()
def test_what_hooks_saw_or_gave_is_not_written_to() -> None:
    """With one filter a turned product is the product itself, in memory."""
    module, u = LongConv(1, 16).eval(), torch.randn(1, 1, 16)
    seen: list[torch.Tensor] = []
    layer = module.filter_fn.implicit_filter[-1]
    handle = layer.register_forward_hook(lambda m, args, out: seen.extend((out, out.clone())))
    module(u)
    assert torch.equal(*seen)
    handle.remove()
    given = torch.randn(16, 1)
    layer.register_forward_hook(lambda *_: given)
    before = given.clone()
    module(u)
    assert torch.equal(given, before)


def test_a_trace_is_the_same_with_gradients_on_and_off() -> None:
    """torch.jit.trace checks its graph against one made without gradients."""
    module, u = LongConv(4, 32).eval(), torch.randn(1, 4, 16)
    torch.testing.assert_close(torch.jit.trace(module, u)(u), module(u))


@torch.no_grad()
def test_vmap_over_the_window_alone() -> None:
    module, u = LongConv(4, 16).eval(), torch.randn(1, 4, 16)
    windows = torch.stack([module.filter_fn.modulation.deltas * scale for scale in (1, 2)])

    def call(deltas: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"filter_fn.modulation.deltas": deltas}, (u,))

    torch.testing.assert_close(torch.vmap(call)(windows), torch.stack([call(window) for window in windows]))

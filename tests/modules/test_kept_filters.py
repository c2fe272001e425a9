"""What is kept from call to call in evaluation: verified by content, or declared to stay."""

from __future__ import annotations

import copy
import ctypes
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import m2gen
from m2gen import ProblemError
from m2gen.models import M2GPT, M2GPTConfig
from m2gen.modules import HyenaFilter, LongConv, SequenceMixer
from m2gen.modules.hyena_filter import HyenaFilter as _Filter
from m2gen.modules.kept import Checked


def filters(**options: object) -> HyenaFilter:
    torch.manual_seed(0)
    return HyenaFilter(4, 32, width=8, **options).eval()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of all filters that were computed."""
    lengths: list[int] = []
    compute = _Filter._filters

    def counted(self: _Filter, length: int) -> tuple[Tensor, Tensor | None]:
        lengths.append(length)
        return compute(self, length)

    monkeypatch.setattr(_Filter, "_filters", counted)
    return lengths


# -- ways of writing that count no version, or that come from outside --------------------------------------------------


def _memmove(p: Tensor) -> None:
    other = torch.randn_like(p)
    ctypes.memmove(p.data_ptr(), other.data_ptr(), p.numel() * p.element_size())


def _swap(p: Tensor) -> None:
    """The sum of all values stays."""
    flat = p.detach().numpy().reshape(-1)
    flat[[0, -1]] = flat[[-1, 0]]


WRITES: dict[str, Callable[[nn.Parameter], object]] = {
    "in place": lambda p: p.detach().mul_(2),
    "data.copy_": lambda p: p.data.copy_(torch.randn_like(p)),
    "data=": lambda p: setattr(p, "data", torch.randn_like(p)),
    "data-=": lambda p: setattr(p, "data", p.data - 0.1),
    "numpy": lambda p: p.detach().numpy().__imul__(2),
    "one element": lambda p: p.detach().numpy().reshape(-1).__setitem__(3, 7.0),
    "swapped": _swap,
    "storage.copy_": lambda p: p.untyped_storage().copy_((2 * p.detach()).untyped_storage()),
    "set_": lambda p: p.set_(torch.randn_like(p)),
    "foreach": lambda p: torch._foreach_mul_([p.data], 2.0),
    "vector_to_parameters": lambda p: nn.utils.vector_to_parameters(torch.randn(p.numel()), [p]),
    "memmove": _memmove,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("way", WRITES)
def test_every_write_is_seen(way: str, mode: Callable[[], torch.no_grad]) -> None:
    """Of each parameter, at its next call; a module made anew with the same values is what it is compared with."""
    module = filters(bidirectional=True)
    nn.init.uniform_(module.implicit_filter[1].freq, 1, 10)
    for name, p in module.named_parameters():
        if name == "bias":
            continue
        with mode():
            before = module(20)[0], module(20)[1]
        with torch.no_grad():
            WRITES[way](p)
        fresh = HyenaFilter(4, 32, width=8, bidirectional=True).eval()
        fresh.load_state_dict({key: value.clone() for key, value in module.state_dict().items()})
        with mode():
            after, want = module(20), fresh(20)
        assert all(torch.equal(a, w) for a, w in zip(after, want, strict=True)), name
        assert not all(torch.equal(a, b) for a, b in zip(after, before, strict=True)), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_filters_are_computed_once(made: list[int], mode: Callable[[], torch.no_grad]) -> None:
    conv = LongConv(4, 32, width=8).eval()
    u = torch.randn(2, 4, 20)
    with mode():
        first = conv(u)
        for _ in range(3):
            assert torch.equal(conv(u), first)
    assert made == [20]
    with torch.no_grad():
        conv(u[..., :10])
        conv(u)
    assert made == [20, 10, 20], "of the last length only"
    conv(u)
    assert len(made) == 4, "gradients ask for a filter that they reach"
    conv.train()
    with torch.no_grad():
        conv(u), conv(u)
    assert len(made) == 6, "nor in training"


def test_frozen_filters_are_kept_with_gradients_on(made: list[int]) -> None:
    conv = LongConv(4, 32, width=8).eval().requires_grad_(False)
    u = torch.randn(2, 4, 20, requires_grad=True)
    for _ in range(3):
        (grad,) = torch.autograd.grad(conv(u).square().sum(), u)
    assert made == [20]
    conv.requires_grad_(True)
    torch.testing.assert_close(grad, torch.autograd.grad(conv(u).square().sum(), u)[0])


@pytest.mark.parametrize("declared", [False, True])
def test_what_is_given_out_may_be_written_to(declared: bool) -> None:
    module = filters(bidirectional=True)
    if declared:
        m2gen.keep_filters(module, 20)
    with torch.no_grad():
        want = [k.clone() for k in module(20)]
        for _ in range(2):
            for k in module(20):
                k.zero_()
        assert all(torch.equal(a, b) for a, b in zip(module(20), want, strict=True))


def test_settings_are_seen() -> None:
    module = filters(w_mod=2.0)
    with torch.no_grad():
        first = module(20)[0]
        module.implicit_filter[1].w_mod = 3.0
        second = module(20)[0]
        module.modulation = None
        third = module(20)[0]
        module.implicit_filter.append(nn.Tanh())
        fourth = module(20)[0]
    assert not torch.equal(first, second) and not torch.equal(second, third)
    torch.testing.assert_close(fourth, third.tanh())


@pytest.mark.parametrize("part", ["", "pos_emb", "implicit_filter", "implicit_filter.0", "implicit_filter.3",
                                  "implicit_filter.6", "modulation"])  # fmt: skip
def test_hooks_on_any_part_take_effect(part: str) -> None:
    """In evaluation, on a module that has kept something; and they are gone when removed."""
    conv = LongConv(4, 32, width=8).eval()
    u = torch.randn(2, 4, 20)

    def double(module: nn.Module, args: object, out: object) -> object:
        return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out  # type: ignore[operator]

    with torch.no_grad():
        plain = conv(u), conv(u)
        handle = conv.filter_fn.get_submodule(part).register_forward_hook(double)
        k = conv.filter_fn(20)[0]
        hooked = conv(u)
        expected = m2gen.fftconv(u, k, skip=conv.filter_fn.bias)
        handle.remove()
        assert torch.equal(conv(u), plain[0])
    assert not torch.allclose(hooked, plain[0], rtol=1e-3)
    torch.testing.assert_close(hooked, expected)


def test_parametrizations_take_effect() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    module, same = filters(), filters()
    with torch.no_grad():
        module(20)
        for i in (0, 2, 6):
            nn.utils.parametrize.register_parametrization(module.implicit_filter[i], "weight", Double())
            same.implicit_filter[i].weight.mul_(2)
        torch.testing.assert_close(module(20)[0], same(20)[0])
        nn.utils.parametrize.remove_parametrizations(module.implicit_filter[0], "weight")
        torch.testing.assert_close(module(20)[0], same(20)[0])


def test_forward_mode_sees_the_tangent() -> None:
    """Values may be the same, and yet more is asked for."""
    module = filters()
    tangent = torch.randn_like(module.implicit_filter[0].weight)

    def k(weight: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"implicit_filter.0.weight": weight}, 20)[0]

    weight = module.implicit_filter[0].weight.detach()
    want = torch.func.jvp(k, (weight,), (tangent,))[1]
    assert want.abs().max() > 0
    with torch.no_grad():
        module(20)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(weight, tangent)
            found = torch.autograd.forward_ad.unpack_dual(k(dual)).tangent
    torch.testing.assert_close(found, want)


def test_traces_follow_the_weights() -> None:
    """A trace of a module that has kept its filters is not a trace of the filters' values."""
    conv = LongConv(4, 32, width=8).eval()
    u, weight = torch.randn(2, 4, 20), conv.filter_fn.implicit_filter[0].weight.detach().clone()

    def by_weight(weight: Tensor) -> Tensor:
        return torch.func.functional_call(conv, {"filter_fn.implicit_filter.0.weight": weight}, u)

    with torch.no_grad():
        conv(u), conv(u)
        traced, by_fx = torch.jit.trace(conv, (u,)), make_fx(by_weight)(weight)
        conv.filter_fn.implicit_filter[0].weight.data.mul_(2)
        torch.testing.assert_close(by_fx(2 * weight), conv(u))
        torch.testing.assert_close(traced(u), conv(u))


# -- functional_call, copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", [False, True])
def test_functional_call_changes_nothing(declared: bool) -> None:
    """It computes with what it is given, and the module is afterwards what it was: the frequency is one parameter of
    several modules."""
    module = filters(bidirectional=True)
    if declared:
        m2gen.keep_filters(module, 20)
    own = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    given = {name: 2 * p.detach() for name, p in module.named_parameters()}
    other = copy.deepcopy(module)
    with torch.no_grad():
        want = [k.clone() for k in module(20)]
        for p in other.parameters():
            p.mul_(2)
        found = torch.func.functional_call(module, given, 20)
        assert all(torch.equal(a, b) for a, b in zip(found, other(20), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(module(20), want, strict=True))
    assert {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)} == own
    assert all(isinstance(p, nn.Parameter) for m in module.modules() for p in m._parameters.values() if p is not None)


def test_ensembles_by_vmap() -> None:
    modules = [HyenaFilter(4, 32, width=8).eval() for _ in range(3)]
    params, buffers = torch.func.stack_module_state(modules)
    found = torch.func.vmap(lambda p, b: torch.func.functional_call(modules[0], (p, b), 20)[0])(params, buffers)
    for module, k in zip(modules, found, strict=True):
        torch.testing.assert_close(module(20)[0], k)


def test_one_frequency_for_all_sines() -> None:
    """Whatever is done to the module; names are those of the published checkpoints."""
    module = filters(bidirectional=True)

    def freqs(m: HyenaFilter) -> set[int]:
        found = [p for name, p in m.named_parameters(remove_duplicate=False) if name.endswith("freq")]
        assert len(found) == 6
        return {id(p) for p in found}

    state = {key: value.clone() for key, value in module.state_dict().items()}
    assert {f"implicit_filter{r}.{i}.freq" for r in ("", "_rev") for i in (1, 3, 5)} <= state.keys()
    on_meta = copy.deepcopy(module).to("meta").to_empty(device="cpu")
    assigned = filters(bidirectional=True)
    assigned.load_state_dict(state, assign=True)
    for m in (module, copy.deepcopy(module), module.double(), on_meta, assigned):
        assert len(freqs(m)) == 1
    assert len([name for name, _ in module.named_parameters() if "freq" in name]) == 1


# -- declared to stay --------------------------------------------------------------------------------------------------


def test_declared_filters_are_not_looked_at_again(made: list[int]) -> None:
    conv = LongConv(4, 32, width=8).eval()
    u = torch.randn(2, 4, 20)
    m2gen.keep_filters(conv, 20, 12)
    assert made == [20, 12]
    with torch.no_grad():
        first = conv(u)
        conv.filter_fn.implicit_filter[0].weight.data.mul_(2)
        assert torch.equal(conv(u), first), "kept by the user's own act"
        conv(u[..., :12])
        assert made == [20, 12]
        conv(u[..., :11])
        conv(u[..., :11])
        assert made == [20, 12, 11], "other lengths are checked by content"
        m2gen.forget_filters(conv)
        assert not torch.equal(conv(u), first)


@pytest.mark.parametrize("act", ["train", "to", "load_state_dict", "keep_filters"])
def test_what_drops_declared_filters(act: str) -> None:
    conv = LongConv(4, 32, width=8).eval()
    u = torch.randn(2, 4, 20)
    m2gen.keep_filters(conv)
    with torch.no_grad():
        first = conv(u)
        conv.filter_fn.implicit_filter[0].weight.data.mul_(2)
        assert torch.equal(conv(u), first)
        if act == "train":
            conv.train().eval()
        elif act == "to":
            conv.to(torch.float64).to(torch.float32)
        elif act == "load_state_dict":
            conv.load_state_dict(conv.state_dict())
        else:
            m2gen.keep_filters(conv)
        second = conv(u)
        assert not torch.equal(second, first)
        conv.filter_fn.implicit_filter[0].weight.data.mul_(2)
        assert torch.equal(conv(u), second), "the declaration stands"
        assert not torch.equal(copy.deepcopy(conv)(u), second), "but not for copies"


def test_declared_filters_give_gradients_where_they_are_wanted() -> None:
    conv = LongConv(4, 32, width=8).eval()
    m2gen.keep_filters(conv, 20)
    conv(torch.randn(2, 4, 20)).sum().backward()
    assert all(p.grad is not None for p in conv.parameters())


def test_declared_filters_inside_a_compiled_graph(made: list[int]) -> None:
    mixer = SequenceMixer(8, 32, width=8).eval()
    u = torch.randn(2, 20, 8)
    with torch.no_grad():
        want = mixer(u)
        m2gen.keep_filters(mixer, 20)
        made.clear()
        compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(u), want)
        assert not made
        m2gen.forget_filters(mixer)
        mixer.filter_fn.implicit_filter[0].weight.mul_(2)
        assert not torch.allclose(compiled(u), want)
        torch.testing.assert_close(compiled(u), mixer(u))


def test_at_most_eight_lengths_stay(made: list[int]) -> None:
    module = filters()
    m2gen.keep_filters(module)
    with torch.no_grad():
        for _ in range(2):
            for length in range(11, 21):
                module(length)
    assert len(made) == 12, "eight lengths once, two twice"


def test_the_bank_of_a_language_model_is_verified() -> None:
    model = M2GPT(M2GPTConfig(vocab_size=16, d_model=8, n_layers=2, max_length=32)).eval()
    with torch.no_grad():
        assert model.new_cache().long.bank is model.new_cache().long.bank
        before = model.new_cache().long.bank
        model.layers[1].attention.filter_fn.bias.data.add_(1)
        assert model.new_cache().long.bank is not before
        m2gen.keep_filters(model)
        before = model.new_cache().long.bank
        model.layers[1].attention.filter_fn.bias.data.add_(1)
        assert model.new_cache().long.bank is before
        m2gen.forget_filters(model)
        assert model.new_cache().long.bank is not before
    with torch.inference_mode():
        inside = model.new_cache().long.bank
    with torch.no_grad():
        assert model.new_cache().long.bank is inside and not inside.near.is_inference()


def test_nothing_to_keep_is_an_error() -> None:
    with pytest.raises(ProblemError, match="no module in it has long filters"):
        m2gen.keep_filters(nn.Linear(2, 2))
    with pytest.raises(ProblemError, match="no module in it has long filters"):
        m2gen.forget_filters(nn.Linear(2, 2))
    with pytest.raises(ProblemError, match="at most 32"):
        m2gen.keep_filters(filters(), 33)


def test_several_threads_may_ask_at_once() -> None:
    """Each gets what it asked for, not what another thread has just had kept."""
    kept, weight, found = Checked[int](), torch.zeros(3), []
    interval = sys.getswitchinterval()

    def ask(key: int) -> None:
        found.extend(kept.get(key, [weight], lambda: key) == key for _ in range(5000))

    threads = [threading.Thread(target=ask, args=(key,)) for key in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(found) == 4 * 5000 and all(found)


@pytest.mark.parametrize("length", [[16], "16", -3, 0, True, 1.5])
def test_lengths_are_whole_numbers(length: object) -> None:
    with pytest.raises(ProblemError, match="whole numbers"):
        m2gen.keep_filters(filters(), length)  # type: ignore[arg-type]


def test_what_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("m2gen.modules.hyena_filter.fallback", said.append)
    module = filters()
    m2gen.keep_filters(module, 20)
    assert not said
    module.implicit_filter[2].register_forward_hook(lambda m, args, out: None)
    m2gen.keep_filters(module, 20)
    assert len(said) == 1 and "computed in every call" in said[0]


@pytest.mark.parametrize("place", ["attribute", "buffer"])
def test_a_tensor_in_a_parameters_place_is_compared(place: str) -> None:
    """As hypernetworks put one there; gradients reach it."""
    conv = LongConv(4, 32, width=8).eval()
    layer, u = conv.filter_fn.implicit_filter[2], torch.randn(2, 4, 20)
    del layer.weight

    def put(weight: Tensor) -> None:
        if place == "buffer":
            layer.register_buffer("weight", weight)
        else:
            layer.weight = weight

    for _ in range(3):
        with torch.no_grad():
            put(torch.randn(8, 8))
            k, _ = conv.filter_fn._filters(20)
            torch.testing.assert_close(conv(u), m2gen.fftconv(u, k, skip=conv.filter_fn.bias))
    conv.requires_grad_(False)
    weight = torch.randn(8, 8, requires_grad=True)
    put(weight)
    assert torch.autograd.grad(conv(u).sum(), weight)[0].abs().max() > 0


def test_compiled_functional_call_reads_what_it_is_given() -> None:
    torch._dynamo.reset()
    conv, u = LongConv(4, 32, width=8).eval(), torch.randn(2, 4, 20)

    def call(params: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(conv, params, (u,))

    with torch.no_grad():
        m2gen.keep_filters(conv, 20)
        params = {name: 1.5 * p.detach() for name, p in conv.named_parameters()}
        want = call(params)
        assert not torch.allclose(want, conv(u))
        torch.testing.assert_close(torch.compile(call, backend="aot_eager")(params), want)


def test_a_bank_is_dropped_with_the_filters_it_is_made_of() -> None:
    model = M2GPT(M2GPTConfig(vocab_size=16, d_model=8, n_layers=2, max_length=32)).eval()
    own = model.layers[1].attention.filter_fn
    with torch.no_grad():
        m2gen.keep_filters(model)
        before = model.new_cache().long.bank
        assert model.new_cache().long.bank is before
        own.load_state_dict({key: 1.1 * value for key, value in own.state_dict().items()})
        after = model.new_cache().long.bank
        assert after is not before and model.new_cache().long.bank is after
        own.train().eval()
        assert model.new_cache().long.bank is not after
        m2gen.keep_filters(model, 16)  # the bank is of the longest texts
        before = model.new_cache().long.bank
        own.bias.data.add_(1)
        assert model.new_cache().long.bank is not before

"""Whatever is put around a module of a model, or in place of its weights, takes effect: everywhere, in every mode."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from small_models import NAMES, double
from torch import Tensor, nn
from torch.nn.modules import module as everywhere
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_map

from m2gen.modules import BlockDiagLinear, HyenaFilter

GPT = [name for name in NAMES if name.startswith("M2-GPT")]
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules below `model` that do something."""
    return ((name, m) for name, m in model.named_modules() if name and type(m) not in CONTAINERS)


def scaled(values: Any) -> Any:
    # not by a constant: a LayerNorm after it would undo that
    def one(t: Any) -> Any:
        if not isinstance(t, Tensor) or not t.is_floating_point():
            return t
        return t * torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype).view(t.shape)

    return tree_map(one, values)


def scale_output(module: nn.Module, args: Any, output: Any) -> Any:
    return scaled(output)


def scale_input(module: nn.Module, args: Any) -> Any:
    return scaled(args)


def takes_tensors(model: nn.Module, batch: dict[str, Tensor]) -> set[nn.Module]:
    """The modules that are called with floating tensors as positional arguments."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, args: Any) -> None:
        if any(isinstance(a, Tensor) and a.is_floating_point() for a in args):
            found.add(module)

    handle = everywhere.register_module_forward_pre_hook(look)
    model(**batch)
    handle.remove()
    return found


def with_gradient(model: nn.Module, batch: dict[str, Tensor]) -> set[nn.Module]:
    """The modules that give tensors with a gradient; PyTorch's backward hooks do not look into dataclasses."""
    found: set[nn.Module] = set()

    def look(module: nn.Module, args: Any, output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        if any(isinstance(t, Tensor) and t.requires_grad for t in outputs):
            found.add(module)

    handle = everywhere.register_module_forward_hook(look)
    model(**batch)
    handle.remove()
    return found


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_forward_hooks_of_every_module(name: str, training: bool) -> None:
    model, batch = double(name)
    model.train(training)
    want = model(**batch).logits
    with_input = takes_tensors(model, batch)
    for part, module in parts(model):
        handles = [lambda m=module: m.register_forward_hook(scale_output)]
        if module in with_input:
            handles.append(lambda m=module: m.register_forward_pre_hook(scale_input))
        for register in handles:
            handle = register()
            assert (model(**batch).logits - want).abs().max() > 1e-9, part
            handle.remove()
    assert torch.equal(model(**batch).logits, want)


@torch.no_grad()
@pytest.mark.parametrize("name", GPT)
def test_hooked_parts_with_a_cache_are_the_whole(name: str) -> None:
    """A hook that acts on each position by itself is the same for a text in parts."""
    model, batch = double(name)
    ids = batch["input_ids"]

    def in_parts() -> Tensor:
        cache = model.new_cache(2)
        found = [model(input_ids=p, past_key_values=cache).logits for p in ids.split([7, 1, 1, 9, 2], dim=1)]
        return torch.cat(found, dim=1)

    def bend(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map(lambda t: t + 0.3 * t.tanh() if isinstance(t, Tensor) else t, output)

    plain = in_parts()
    for part, module in parts(model):
        handle = module.register_forward_hook(bend)
        found = in_parts()
        torch.testing.assert_close(found, model(input_ids=ids).logits, rtol=1e-9, atol=1e-9, msg=part)
        assert (found - plain).abs().max() > 1e-9, part
        handle.remove()
    torch.testing.assert_close(in_parts(), plain, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_backward_and_global_hooks_see_every_module(name: str) -> None:
    model, batch = double(name)
    seen: dict[str, set[nn.Module]] = {}

    def saw(what: str) -> Callable[..., None]:
        return lambda module, *_: seen.setdefault(what, set()).add(module)  # type: ignore[func-returns-value]

    handles = [
        everywhere.register_module_forward_hook(saw("forward")),
        everywhere.register_module_forward_pre_hook(saw("forward pre")),
        everywhere.register_module_full_backward_hook(saw("backward")),
        everywhere.register_module_full_backward_pre_hook(saw("backward pre")),
    ]
    trained = [(n, m) for n, m in parts(model) if m in with_gradient(model, batch)]
    own = [m.register_full_backward_hook(saw("own backward")) for _, m in parts(model)]
    for mode in (True, False):
        seen.clear()
        model.train(mode)(**batch).loss.backward()
        for what in ("forward", "forward pre", "backward", "backward pre", "own backward"):
            asked = trained if "backward" in what else parts(model)
            assert not [n for n, m in asked if m not in seen[what]], what
    for handle in (*handles, *own):
        handle.remove()


class Bent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * x.tanh()


def pruned(module: nn.Module, name: str) -> Tensor:
    """What is pruned is made anew from the parameter in every call."""
    prune.random_unstructured(module, name, amount=0.5)
    module._parameters[f"{name}_orig"] = nn.Parameter(1.3 * getattr(module, f"{name}_orig"))
    value: Tensor = getattr(module, f"{name}_orig") * getattr(module, f"{name}_mask")
    return value


def bent(module: nn.Module, name: str) -> Tensor:
    parametrize.register_parametrization(module, name, Bent())
    value: Tensor = getattr(module, name)
    return value


def weight_norm(module: nn.Module, name: str) -> Tensor:
    parametrizations.weight_norm(module, name)
    module.parametrizations[name].original0.mul_(1.3)  # type: ignore[union-attr,index]
    value: Tensor = getattr(module, name)
    return value


def spectral_norm(module: nn.Module, name: str) -> Tensor:
    value: Tensor = getattr(parametrizations.spectral_norm(module, name).eval(), name)
    return value


@torch.no_grad()
@pytest.mark.parametrize("change", [pruned, bent, weight_norm, spectral_norm])
@pytest.mark.parametrize("name", NAMES)
def test_changed_weights_of_every_module(name: str, change: Callable[[nn.Module, str], Tensor]) -> None:
    """What a changed parameter gives is what a plain one of its value gives; in parts as well."""
    model, batch = double(name)
    plain = copy.deepcopy(model)
    for part, module in parts(model):
        set_plainly = plain.get_submodule(part)
        for own in list(module._parameters):
            p, before = module._parameters[own], set_plainly._parameters[own]
            if p is None or (p.dim() < 2 and change in (weight_norm, spectral_norm)):
                continue
            other = copy.deepcopy(model, {id(model.config): model.config})  # which takes longest to copy
            changed = other.get_submodule(part)
            set_plainly._parameters[own] = change(changed, own).detach()  # type: ignore[assignment]
            for mode in (False, True):
                if change is spectral_norm and mode:
                    continue  # it goes on iterating in training
                found, want = (m.train(mode)(**batch).logits for m in (other, plain))
                torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9, msg=f"{part}.{own}")
            if name in GPT:
                cache = other.eval().new_cache(2)
                ids = batch["input_ids"].split([15, 1, 4], dim=1)
                logits = [other(input_ids=piece, past_key_values=cache).logits for piece in ids]
                torch.testing.assert_close(torch.cat(logits, dim=1), want, rtol=1e-9, atol=1e-9, msg=f"{part}.{own}")
            set_plainly._parameters[own] = before


@torch.no_grad()
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.Embedding, BlockDiagLinear, HyenaFilter])
@pytest.mark.parametrize("name", NAMES)
def test_a_forward_put_on_a_class_takes_effect(name: str, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some quantisers and injectors of adapters do it."""
    model, batch = double(name)
    model.eval()
    ours = [m for m in model.modules() if type(m) is kind]
    want, plain, called = model(**batch).logits, kind.forward, set()

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.add(self)
        return scaled(plain(self, *args, **kwargs))

    monkeypatch.setattr(kind, "forward", forward)
    found = model(**batch).logits
    assert called >= set(ours) if kind is not nn.Embedding else called or not ours
    assert not ours or (found - want).abs().max() > 1e-9
    monkeypatch.undo()
    assert torch.equal(model(**batch).logits, want)

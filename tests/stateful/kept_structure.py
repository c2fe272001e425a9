"""What users put around layers: hooks, parametrizations, LoRA adapters; and what they take away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kept_subjects import Gain, Times, TimesBefore
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.utils import parametrize

from m2gen.models import M2GPT
from m2gen.modules.hyena_filter import ExponentialModulation, HyenaFilter, Sine


def filters(module: nn.Module) -> list[HyenaFilter]:
    return [part for part in module.modules() if isinstance(part, HyenaFilter)]


def layers(module: nn.Module) -> list[nn.Module]:
    """What a hook may be put on; three of four choices are a filter or a part of one."""
    inside = [part for f in filters(module) for part in f.modules()]
    return [*inside, *inside, *inside, *list(module.modules())[: len(inside) or None]]


def hook(layer: nn.Module, before: bool) -> None:
    if before:
        layer.register_forward_pre_hook(TimesBefore())
    else:
        layer.register_forward_hook(Times())


def unhook(module: nn.Module) -> None:
    """By what they are: the handles are lost where a module was copied or pickled."""
    for layer in module.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            for key in [key for key, found in hooks.items() if isinstance(found, Times | TimesBefore)]:
                del hooks[key]


def parametrized(module: nn.Module) -> list[tuple[nn.Module, str]]:
    return [
        (layer, entry)
        for layer in module.modules()
        if parametrize.is_parametrized(layer)
        for entry in layer.parametrizations  # type: ignore[union-attr]
    ]


def can_be_parametrized(module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Parameters that have no parametrization yet, those of filters first."""
    return [
        (layer, entry)
        for part in [*filters(module), module]
        for layer in part.modules()
        if not isinstance(layer, parametrize.ParametrizationList | Gain | nn.ParameterList)
        for entry in layer._parameters
        if layer._parameters[entry] is not None
    ]


def add_gain(layer: nn.Module, entry: str) -> None:
    parametrize.register_parametrization(layer, entry, Gain().to(getattr(layer, entry).dtype))


def take_window(module: nn.Module) -> None:
    """No decaying window any more, in every filter that has one."""
    for part in filters(module):
        if isinstance(part.modulation, ExponentialModulation):
            part.modulation = None


def turn_sines(module: nn.Module, factor: float) -> None:
    for part in module.modules():
        if isinstance(part, Sine):
            part.w_mod *= factor


@dataclass
class Adapters:
    """LoRA on every linear layer: which there are, which is on; the same on a fresh copy by `put`."""

    names: list[str] = field(default_factory=list)
    active: str = ""
    enabled: bool = True
    merged: bool = False
    wrapped: bool = False

    def put(self, module: nn.Module) -> nn.Module:
        """All of them, in the state they are in, on a module that has none."""
        for name in self.names:
            module = self._add(module, name)
        if self.names:
            self.switch(module)
            if self.merged:
                self.merge(module)
        return module

    def add(self, module: nn.Module, name: str) -> nn.Module:
        module = self._add(module, name)
        self.names.append(name)
        self.active = name
        self.switch(module)
        return module

    def _add(self, module: nn.Module, name: str) -> nn.Module:
        options: dict[str, Any] = {"r": 2, "init_lora_weights": False}
        if self.wrapped:  # peft's own way, for models of transformers
            config = LoraConfig(target_modules="all-linear", **options)
            if not hasattr(module, "peft_config"):
                return get_peft_model(module, config, name)
            module.add_adapter(name, config)
            return module
        linear = [n for n, part in module.named_modules() if type(part).__name__ in ("Linear", "DenseLinear")]
        linear = [n.removesuffix(".base_layer") for n in linear if ".lora_" not in n]
        return inject_adapter_in_model(LoraConfig(target_modules=linear, **options), module, name)

    def switch(self, module: nn.Module) -> None:
        for layer in _tuned(module):
            layer.set_adapter(self.active)
            layer.enable_adapters(self.enabled)

    def merge(self, module: nn.Module) -> None:
        for layer in _tuned(module):
            layer.merge()

    def unmerge(self, module: nn.Module) -> None:
        for layer in _tuned(module):
            layer.unmerge()


def _tuned(module: nn.Module) -> Iterator[Any]:
    return (part for part in module.modules() if isinstance(part, BaseTunerLayer))


def tie_again(module: nn.Module) -> bool:
    """After a write that gave an M2-GPT's embedding another parameter, which is an error until `tie_head`."""
    if not isinstance(module, M2GPT):
        return False
    head, embedding = (layer._parameters.get("weight") for layer in (module.head, module.embedding))
    if head is None or embedding is None or head is embedding:
        return False
    module.tie_head()
    return True

"""What models in the conventions of transformers have to say of their modules: initial values, shared tensors."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from transformers import initialization as init

from m2gen.modules.hyena_filter import (
    ExponentialModulation,
    HyenaFilter,
    PositionalFeatures,
    Sine,
    position_features,
    unit_times,
)


def reset_filter_part(module: nn.Module) -> bool:
    """Give a part of a `HyenaFilter` its initial values; False where `module` is none.

    For `_init_weights`, which is called for every module; the linear layers of a filter are its caller's.
    """
    if isinstance(module, HyenaFilter):
        init.normal_(module.bias)
    elif isinstance(module, Sine):
        init.constant_(module.freq, module.w)
    elif isinstance(module, PositionalFeatures):
        length = module.z.shape[1]
        init.copy_(module.t, unit_times(length))
        init.copy_(module.z, position_features(unit_times(length), length, module.emb_dim))
    elif isinstance(module, ExponentialModulation):
        init.copy_(module.deltas, module.rates(module.deltas.shape[-1]))
    else:
        return False
    return True


def owner(model: nn.Module, part: nn.Module) -> nn.Module:
    """The module whose `reset_parameters` draws `part`: itself, or what a ParameterList belongs to.

    For `_init_weights`: transformers passes over modules that have no parameters but those in such a list.
    """
    if not isinstance(part, nn.ParameterList):
        return part
    return next(module for module in model.modules() if any(child is part for child in module.children()))


def shared_names(model: nn.Module, ending: str = ".freq") -> Iterator[str]:
    """The names, with that ending, of what is another name's tensor: safetensors hold no tensor twice."""
    seen = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name.endswith(ending):
            if id(tensor) in seen:
                yield name
            seen.add(id(tensor))

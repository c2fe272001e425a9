"""What models in the conventions of transformers have to say of their modules: initial values, shared tensors."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from m2gen.modules.hyena_filter import (
    ExponentialModulation,
    HyenaFilter,
    PositionalFeatures,
    Sine,
    position_features,
    unit_times,
)
from m2gen.modules.rehearsal import Rehearses
from m2gen.modules.tied import LoadsTies, shared, tied_names


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

    For `_init_weights`: transformers passes over modules that have no parameters but those in such a list. A list whose
    parameters are another's is drawn there.
    """
    if not isinstance(part, nn.ParameterList):
        return part
    if any(holder is part for (_, first, _), *rest in shared(model) for _, holder, _ in rest if first is not part):
        return part
    return next(module for module in model.modules() if any(child is part for child in module.children()))


class Shares(Rehearses, LoadsTies, PreTrainedModel):  # type: ignore[misc]
    """A `PreTrainedModel` with parameters that are built into several places (`m2gen.modules.tied`).

    They are saved once, as safetensors hold no tensor twice, and come back in all their places with the one that was
    saved, whatever the configuration says of word embeddings.
    """

    def post_init(self) -> None:
        self._built_ties = dict(tied_names(self))
        self._keys_to_ignore_on_save = list(self._built_ties)
        super().post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        found: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        return found if all_submodels else {**self._built_ties, **found}

    def mark_tied_weights_as_initialized(self, loading_info: object) -> None:
        """Nothing is marked: built-in ties are one object under all their names while a model is made, so that the mark
        would stand at the parameter itself, and one that a file lacks would never be drawn. The other names' places are
        on the meta device, where drawing costs nothing."""

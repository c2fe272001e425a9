"""from_pretrained, from_published and the way back, for all M2-BERT models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from m2gen.models.filters import Shares
from m2gen.models.m2bert import checkpoints
from m2gen.models.m2bert.configuration import M2BertConfig

if TYPE_CHECKING:
    from typing_extensions import Self

_FILES = ("model.safetensors", "pytorch_model.bin")
# where a file is looked for: these go with every question to the Hub
_HUB = ("cache_dir", "force_download", "proxies", "token", "revision", "subfolder", "local_files_only")
# ways of loading that are transformers' alone
_OTHER_WAYS = ("state_dict", "gguf_file", "variant", "quantization_config", "use_safetensors", "adapter_kwargs")
_ADAPTER = "_adapter_model_path"  # in adapter_kwargs, which are there without an adapter, too, where PEFT is installed


class Pretrained(Shares):
    """A `PreTrainedModel` that also reads the published M2-BERT files, and writes them."""

    @classmethod
    def from_pretrained(cls, name: str | Path | None, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """A model from a folder or the Hub, as of any transformers model; published files and our own alike.

        Prefixes, padded vocabularies and derived buffers of published files are seen to, `max_position_embeddings` may
        be larger or smaller than the file's (`checkpoints.fitted` says how), and choices that only the weights show are
        read off them. Pickled files are read with weights_only. Keywords that name a field of `M2BertConfig` change it.
        """
        if _ADAPTER not in (kwargs.get("adapter_kwargs") or {}):
            kwargs.pop("adapter_kwargs", None)
        hub = {key: kwargs[key] for key in _HUB if key in kwargs}
        file = None if name is None or any(kwargs.get(key) is not None for key in _OTHER_WAYS) else _file(name, hub)
        if file is None:
            return super().from_pretrained(name, *args, config=config, **kwargs)
        state = checkpoints.cleaned(checkpoints.read(file))
        if not isinstance(config, PreTrainedConfig):
            names = {f.name for f in fields(M2BertConfig)} - {"dtype"} | {"num_labels"}
            changes = {key: kwargs.pop(key) for key in list(kwargs) if key in names}
            config = M2BertConfig.from_pretrained(name if config is None else config, **hub, **changes)
        rest = {key: value for key, value in kwargs.items() if key not in _HUB}
        found = cls._from_state(state, config, *args, **rest)
        model = found[0] if isinstance(found, tuple) else found
        model.name_or_path = model.config.name_or_path = str(name)
        return found

    @classmethod
    def from_published(cls, path: str | Path, **changes: Any) -> Self:
        """A model from one published file of weights that has no config.json beside it, sizes read off its tensors.

        `changes` are fields of `M2BertConfig`: what weights do not show (pool_all, num_labels, ...) and other lengths.
        """
        state = checkpoints.cleaned(checkpoints.read(path))
        config = M2BertConfig(**{**checkpoints.settings(state), **changes})
        model: Self = cls._from_state(state, config)
        return model

    @classmethod
    def _from_state(cls, state: Mapping[str, Tensor], config: Any, *args: Any, **kwargs: Any) -> Any:
        config = copy.deepcopy(config)
        for name, value in checkpoints.additions(state).items():
            setattr(config, name, value)
        fitted = checkpoints.fitted(state, config.vocab_size, config.max_position_embeddings)
        return super().from_pretrained(None, *args, config=config, state_dict=fitted, **kwargs)

    @staticmethod
    def _load_pretrained_model(model: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Where a state is put on a disk, transformers writes what is one parameter in several places under one name,
        and then looks for it under all."""
        info, on_disk = PreTrainedModel._load_pretrained_model(model, *args, **kwargs)
        for name, source in model.all_tied_weights_keys.items():
            if on_disk and source in on_disk:
                on_disk.setdefault(name, on_disk[source])
        return info, on_disk

    def save_published(self, path: str | Path, *, prefix: str = "", vocab_multiple: int = 1) -> None:
        """Write the weights under exactly the published names, to a .safetensors file or a pickled one.

        prefix           of every name, such as "model."
        vocab_multiple   pad the vocabulary with zero rows; the published files have multiples of 8
        """
        checkpoints.write(checkpoints.published(self, prefix=prefix, vocab_multiple=vocab_multiple), path)


def _file(name: str | Path, hub: dict[str, Any]) -> str | None:
    """The one file of weights there, or None: a sharded model, say, is left to transformers."""
    for candidate in _FILES:
        found = cached_file(
            str(name),
            candidate,
            **hub,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            return str(found)
    return None

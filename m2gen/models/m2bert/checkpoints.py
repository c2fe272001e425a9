"""Published M2-BERT checkpoints: reading, the way from their tensors to a model's and back.

Published files have the names of these models' own state dict. What may differ: a prefix (`model.`), a vocabulary
padded to a multiple, tables for another number of positions, and buffers that a library derived from the sizes. Tensors
that several names share (the frequencies of a filter, the embedding and the decoder) stand under all of them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import M2GenError, ProblemError
from m2gen.modules.hyena_filter import position_features, unit_times
from m2gen.modules.tied import same_values

State = dict[str, Tensor]

_PREFIXES = ("module.", "model.", "_orig_mod.")
# what an FFT library left in the files: DFT matrices and twiddle factors, by the last part of the name
_DERIVED = re.compile(r"flashfft|(^|\.)(f_[^.]*|[^.]*twid[^.]*|[^.]*_i?fft)$")
_WORDS = "embeddings.word_embeddings.weight"
_POSITIONS = "embeddings.position_embeddings.weight"
_VOCABULARY = (_WORDS, "predictions.decoder.weight", "predictions.decoder.bias", "predictions.bias")
_MOST_PADDING = 128  # rows: a vocabulary that differs by more is another vocabulary


def read(path: str | Path) -> State:
    """The tensors of a .safetensors file or of a pickled one, which is read with weights_only.

    Raises M2GenError where the pickle holds anything but tensors and plain containers.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise M2GenError(
            f"reading {path}",
            f"it holds more than tensors ({error})",
            "convert it, in a process you trust it with, to a file of its state dict alone",
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> State:
    """The state dict itself, or the one that a trainer's file holds."""
    for key in ("state", "model", "state_dict", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        raise M2GenError(f"reading {path}", "no state dict is in it", "give a file of a model's state dict")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def cleaned(state: Mapping[str, Tensor]) -> State:
    """`state` without prefixes and derived buffers. Raises ProblemError where shared frequencies differ."""
    found: State = {}
    for name, tensor in state.items():
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if not _DERIVED.search(name):
            found[name] = tensor
    _check_shared(found)
    return found


def _check_shared(state: State) -> None:
    first: State = {}
    for name, tensor in state.items():
        if not name.endswith(".freq"):
            continue
        owner = name.split(".implicit_filter")[0]
        if not same_values(first.setdefault(owner, tensor), tensor):
            raise ProblemError(
                f"loading {name}", "its filter's frequencies are not one tensor", "one shared tensor is needed"
            )


def settings(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The sizes and choices that a (cleaned) state dict shows, as fields of an `M2BertConfig`."""
    try:
        words, positions, types = (_find(state, f"embeddings.{w}_embeddings.weight") for w in _TABLES)
        layers = {int(m[1]) for name in state if (m := re.search(r"encoder\.layer\.(\d+)\.", name))}
        gated = _find(state, "layer.0.mlp.gated_layers.weight")
        first = _find(state, "layer.0.attention.filter_fn.implicit_filter.0.weight")
    except KeyError as error:
        raise ProblemError("an M2-BERT", f"there is no {error.args[0]} in it", "give an M2-BERT's state dict") from None
    names = " ".join(state)
    return {
        "vocab_size": words.shape[0],
        "hidden_size": words.shape[1],
        "num_hidden_layers": len(layers),
        "intermediate_size": gated.shape[0] * gated.shape[1] // 2,
        "monarch_mlp_nblocks": gated.shape[0],
        "max_position_embeddings": positions.shape[0],
        "type_vocab_size": types.shape[0],
        "hyena_filter_order": first.shape[0],
        "hyena_emb_dim": first.shape[1],
        **additions(state),
        "bidirectional": ".implicit_filter_rev." in names,
    }


_TABLES = ("word", "position", "token_type")


def additions(state: Mapping[str, Tensor]) -> dict[str, bool]:
    """The choices that show in a state dict and that a config.json may not tell."""
    names = " ".join(state)
    return {
        "residual_long_conv": ".filter_fn2." in names,
        "hyena_training_additions": ".attention.layernorm." in names,
    }


def _find(state: Mapping[str, Tensor], suffix: str) -> Tensor:
    for name, tensor in state.items():
        if name.endswith(suffix):
            return tensor
    raise KeyError(suffix)


def fitted(state: Mapping[str, Tensor], vocab_size: int, max_length: int) -> State:
    """A cleaned `state` with the vocabulary and the number of positions asked for.

    Rows that only pad the vocabulary are cut or added as zeros. Fewer positions are the first ones. More positions
    repeat the table of position embeddings (as the published 32K model was started from the 8K one) and continue the
    filters' features beyond their old end at the same spacing, so that inputs of the old lengths keep their result.

    Raises ProblemError where the vocabularies differ by more than padding.
    """
    found = {}
    for name, tensor in state.items():
        if name.endswith(_VOCABULARY):
            tensor = _padded_rows(name, tensor, vocab_size)
        elif name.endswith(_POSITIONS):
            tensor = tensor[torch.arange(max_length) % tensor.shape[0]]
        elif name.endswith("position_ids"):
            tensor = torch.arange(max_length)[None]
        found[name] = tensor
    for name in state:
        if name.endswith("pos_emb.z") and state[name].shape[1] != max_length:
            _fit_features(found, name.removesuffix("z"), max_length)
    return found


def _padded_rows(name: str, table: Tensor, rows: int) -> Tensor:
    """The first `rows` rows of a table, zeros behind those that it has."""
    missing = rows - table.shape[0]
    if abs(missing) >= _MOST_PADDING:
        raise ProblemError(
            f"loading {name} for a vocabulary of {rows}",
            f"it has {table.shape[0]} rows",
            f"give vocab_size={table.shape[0]}, or a tokenizer that fits",
        )
    return table[:rows] if missing <= 0 else F.pad(table, (0, 0) * (table.dim() - 1) + (0, missing))


def _fit_features(state: State, prefix: str, length: int) -> None:
    """Cut or continue the tables `z` and `t` of one filter, in place in `state`."""
    z, t = state[f"{prefix}z"], state.get(f"{prefix}t")
    old = z.shape[1]
    t = unit_times(old).to(z) if t is None else t
    step = t[0, -1].item() / (old - 1) if old > 1 and t[0, -1].item() > 0 else 1.0
    times = torch.arange(old, max(old, length), dtype=torch.float64)[None, :, None] * step
    more = position_features(times, 1 / step + 1, z.shape[2])
    state[f"{prefix}z"] = torch.cat([z, more.to(z)], dim=1)[:, :length]
    state[f"{prefix}t"] = torch.cat([t, times.to(t)], dim=1)[:, :length]


def published(model: nn.Module, *, prefix: str = "", vocab_multiple: int = 1) -> State:
    """The model's state under exactly the published names, each tensor under every name that shares it.

    `vocab_multiple` pads the vocabulary with zero rows (8 in the published files: 30,528 rows). The tensors are the
    model's own where nothing was padded.
    """
    found = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(_VOCABULARY):
            tensor = _padded_rows(name, tensor, -(-tensor.shape[0] // vocab_multiple) * vocab_multiple)
        found[prefix + name] = tensor
    return found


def write(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a state dict to a .safetensors file, or else to a pickled one (`pytorch_model.bin`)."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        # such files hold no tensor twice: shared ones are written under each of their names
        save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(dict(state), path)

"""Whole models on top of `m2gen.modules`.

M2GPT is a plain module. M2-BERT, M2-ViT, and M2-GPT once more, follow the conventions of transformers, which is
optional (`pip install 'm2gen[models]'`). Where it is installed, importing this package registers them with its Auto
classes; where it is not, their names raise.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING

from m2gen.errors import MissingError
from m2gen.log import fallback
from m2gen.models.m2gpt import M2GPT, M2GPTConfig

if TYPE_CHECKING:
    from m2gen.models.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
    from m2gen.models.m2gpt.pretrained import M2GPTForCausalLM, M2GPTPretrainedConfig
    from m2gen.models.m2vit import M2ViTConfig, M2ViTForImageClassification, M2ViTModel

__all__ = [
    "M2GPT",
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertModel",
    "M2GPTConfig",
    "M2GPTForCausalLM",
    "M2GPTPretrainedConfig",
    "M2ViTConfig",
    "M2ViTForImageClassification",
    "M2ViTModel",
]
# the modules that need transformers, by the start of the names in them
_FAMILIES = {"M2Bert": "m2gen.models.m2bert", "M2GPT": "m2gen.models.m2gpt.pretrained", "M2ViT": "m2gen.models.m2vit"}


def _register() -> str | None:
    """Import what needs transformers, which registers it; why that is not possible, or None."""
    if find_spec("transformers") is None:
        return "transformers is not installed"
    try:
        for family in _FAMILIES.values():
            importlib.import_module(family)
    except ImportError as error:  # another version of it; M2GPT does without
        fallback(f"there are only plain modules, no M2-BERT and no M2-ViT: transformers does not fit ({error})")
        return f"transformers does not fit ({error})"
    return None


_MISSING = _register()


def needed_for(asked: str) -> None:
    """Raises MissingError, about what is asked for, where transformers cannot be used."""
    if _MISSING is not None:
        raise MissingError(asked, _MISSING, "run pip install 'm2gen[models]'")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'm2gen.models' has no attribute {name!r}")
    needed_for(f"m2gen.models.{name}")
    family = next(module for start, module in _FAMILIES.items() if name.startswith(start))
    return getattr(importlib.import_module(family), name)

"""Whole models on top of `m2gen.modules`.

M2-BERT follows the conventions of transformers, which is optional (`pip install 'm2gen[models]'`). Where it is
installed, importing this package registers M2-BERT with its Auto classes; where it is not, the M2-BERT names raise.
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

__all__ = [
    "M2GPT",
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertModel",
    "M2GPTConfig",
]


def _register() -> str | None:
    """Import M2-BERT, which registers it; why that is not possible, or None."""
    if find_spec("transformers") is None:
        return "transformers is not installed"
    try:
        importlib.import_module("m2gen.models.m2bert")
    except ImportError as error:  # another version of it; M2-GPT does without
        fallback(f"there is no M2-BERT: transformers does not fit ({error})")
        return f"transformers does not fit ({error})"
    return None


_MISSING = _register()


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'm2gen.models' has no attribute {name!r}")
    if _MISSING is not None:
        raise MissingError(f"m2gen.models.{name}", _MISSING, "pip install 'm2gen[models]'")
    return getattr(importlib.import_module("m2gen.models.m2bert"), name)

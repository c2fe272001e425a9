"""Whole models on top of `m2gen.modules`.

M2-BERT follows the conventions of transformers, which is optional (`pip install 'm2gen[models]'`). Where it is
installed, importing this package registers M2-BERT with its Auto classes; where it is not, the M2-BERT names raise.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from m2gen.models.m2gpt import M2GPT, M2GPTConfig

_M2BERT = ("M2BertConfig", "M2BertForMaskedLM", "M2BertForSequenceClassification", "M2BertModel")

if TYPE_CHECKING or find_spec("transformers") is not None:
    from m2gen.models.m2bert import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

__all__ = [
    "M2GPT",
    "M2BertConfig",
    "M2BertForMaskedLM",
    "M2BertForSequenceClassification",
    "M2BertModel",
    "M2GPTConfig",
]


def __getattr__(name: str) -> object:
    if name in _M2BERT:
        from m2gen.errors import MissingError

        raise MissingError(f"m2gen.models.{name}", "transformers is not installed", "pip install 'm2gen[models]'")
    raise AttributeError(f"module 'm2gen.models' has no attribute {name!r}")

"""M2-GPT, a plain module; `m2gen.models.m2gpt.pretrained` puts it into the conventions of transformers."""

from m2gen.models.m2gpt.configuration import PRESETS, M2GPTConfig
from m2gen.models.m2gpt.generation import sample
from m2gen.models.m2gpt.modeling import M2GPT

__all__ = ["M2GPT", "PRESETS", "M2GPTConfig", "sample"]

"""Whole models on top of `m2gen.modules`."""

from m2gen.models.m2gpt import M2GPT, M2GPTConfig

__all__ = ["M2GPT", "M2GPTConfig"]

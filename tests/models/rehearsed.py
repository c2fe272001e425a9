"""Calls of a small model, and a proof that they compile nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2gen.runtime import binding, executor
from m2gen.runtime.build import cpp_kernel

LENGTHS, BATCHES = (1, 9, 20), (1, 3)


def forget() -> None:
    """What this process has bound and loaded."""
    for cache in (*vars(executor).values(), binding.kernel_of, cpp_kernel.load):
        if hasattr(cache, "cache_clear"):
            cache.cache_clear()


@contextmanager
def nothing_new(bind: bool = True) -> Iterator[None]:
    """Raise where a process is started, or a kernel loaded; with `bind` also where a problem is bound."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process is started")

    caches = (cpp_kernel.load, binding.kernel_of, executor.bound)[: 3 if bind else 1]
    before = [cache.cache_info().misses for cache in caches]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", refuse)
        yield
    assert [cache.cache_info().misses for cache in caches] == before


def batches_of(model: nn.Module, given: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """A batch of `small` at every size: with labels, and padded on either side where there are masks."""
    if "pixel_values" in given:
        for rows in BATCHES:
            yield {name: value[:rows] for name, value in given.items()}
        return
    for length, rows in product(LENGTHS, BATCHES):
        ids = given["input_ids"].repeat(2, 1)[:rows, :length].contiguous()
        labels = ids if given["labels"].dim() == 2 else given["labels"].repeat(2)[:rows]
        yield {"input_ids": ids, "labels": labels}
        mask = torch.ones_like(ids)
        mask[0, (length + 1) // 2 :] = 0
        yield {"input_ids": ids, "labels": labels, "attention_mask": mask}
        if not hasattr(model, "new_cache"):  # with a CausalMonarch only on the right
            yield {"input_ids": ids, "labels": labels, "attention_mask": mask.flip(1)}


def use(model: Any, batch: dict[str, Tensor], training: bool = True) -> None:
    """Calls of evaluation, of which the later ones read what was kept, and of training."""
    model.eval()
    for mode in (torch.no_grad(), torch.no_grad(), torch.inference_mode()):
        with mode:
            model(**batch)
    if training:
        model(**batch).loss.backward()
        model.train()
        model(**batch).loss.backward()

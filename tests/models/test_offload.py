"""Models whose weights are brought, by accelerate, only where a module is called: what they give with all at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import NAMES, double, small
from torch import Tensor, nn

accelerate = pytest.importorskip("accelerate")

GPT = [name for name in NAMES if name.startswith("M2-GPT")]
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 12}


def everything_is_away(model: nn.Module) -> bool:
    return all(p.device.type == "meta" for p in model.parameters())


def offloaded(model: Any, way: str, folder: Path) -> Any:
    if way == "cpu_offload":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))
    assert everything_is_away(model)
    return model


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
@pytest.mark.parametrize("name", NAMES)
def test_offloaded_models_give_the_same(name: str, way: str, tmp_path: Path) -> None:
    model, batch = double(name)
    want = model(**batch)
    found = offloaded(model, way, tmp_path)(**batch)
    same(found.logits, want.logits)
    same(found.loss, want.loss)
    assert everything_is_away(model)
    same(model.train()(**batch).logits, want.logits)


@torch.no_grad()
@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload"])
@pytest.mark.parametrize("name", GPT)
def test_offloaded_generation(name: str, way: str, tmp_path: Path) -> None:
    model, batch = double(name)
    ids = batch["input_ids"]
    want, logits = model.generate(input_ids=ids, **GREEDY), model(input_ids=ids).logits
    offloaded(model, way, tmp_path)
    assert torch.equal(model.generate(input_ids=ids, **GREEDY), want)
    assert torch.equal(model.generate(input_ids=ids, use_cache=False, **GREEDY), want)
    cache = model.new_cache(2)
    parts = [model(input_ids=part, past_key_values=cache).logits for part in ids.split([7, 1, 1, 9, 2], dim=1)]
    same(torch.cat(parts, dim=1), logits)
    assert everything_is_away(model)


@torch.no_grad()
@pytest.mark.parametrize("device_map", ["cpu", "disk"])
@pytest.mark.parametrize("name", NAMES)
def test_loaded_with_a_device_map(name: str, device_map: str, tmp_path: Path) -> None:
    model, batch = small(name)
    model.save_pretrained(tmp_path / "model")
    where = {"": "cpu"} if device_map == "cpu" else dict.fromkeys((n for n, _ in model.named_children()), "disk")
    loaded = type(model).from_pretrained(tmp_path / "model", device_map=where, offload_folder=tmp_path / "away")
    assert everything_is_away(loaded) == (device_map == "disk")
    want = model(**batch).logits
    torch.testing.assert_close(loaded.eval()(**batch).logits, want, rtol=1e-5, atol=1e-5)
    if name in GPT:
        ids = batch["input_ids"]
        assert torch.equal(loaded.generate(input_ids=ids, **GREEDY), model.generate(input_ids=ids, **GREEDY))

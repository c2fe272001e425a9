"""Whole M2-ViT models under torch.compile(fullgraph=True) and torch.export give what eager gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from m2vit_tiny import KINDS, images, tiny

from m2gen.models import M2ViTForImageClassification

pytestmark = pytest.mark.slow

LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(("kind", "training"), [*((kind, True) for kind in KINDS), ("m2 gated", False)])
def test_one_graph(kind: str, training: bool) -> None:
    """Traced whole, with its backward pass, but not made into code: loss, logits and every gradient."""
    model = tiny(kind).double().train(training)
    compare(torch.compile(model, fullgraph=True, backend="aot_eager"), model)


def test_compiled_whole() -> None:
    """The same with the default compiler."""
    model = tiny("m2", num_hidden_layers=1).double().train()
    compare(torch.compile(model, fullgraph=True), model)


def compare(compiled: Any, model: M2ViTForImageClassification) -> None:
    pixels, results = images(dtype=torch.float64), []
    for call in (compiled, model):
        model.zero_grad()
        out = call(pixels, labels=LABELS)
        out.loss.backward()
        results.append((out.logits, [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_exported(kind: str, tmp_path: Path) -> None:
    """With any batch, and through a file."""
    model = tiny(kind).double()
    dims = {"pixel_values": {0: torch.export.Dim("batch", min=2, max=64)}}
    program = torch.export.export(model, (), {"pixel_values": images(dtype=torch.float64)}, dynamic_shapes=dims)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (3, 2, 40):
        pixels = images(batch, dtype=torch.float64)
        torch.testing.assert_close(loaded(pixel_values=pixels).logits, model(pixels).logits, rtol=1e-9, atol=1e-9)

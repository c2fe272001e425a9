"""Whole M2-ViT models under torch.compile(fullgraph=True) and torch.export give what eager gives."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from m2vit_tiny import KINDS, images, tiny

pytestmark = pytest.mark.slow

LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("kind", ["m2", "m2 gated", "monarch", "vit"])
def test_compiled_whole(kind: str) -> None:
    """In training: loss, logits and every gradient."""
    model, pixels = tiny(kind).double().train(), images(dtype=torch.float64)
    results = []
    for call in (torch.compile(model, fullgraph=True), model):
        model.zero_grad()
        out = call(pixels, labels=LABELS)
        out.loss.backward()
        results.append((out.logits, [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)


def test_compiled_in_evaluation_with_stochastic_depth_off() -> None:
    model, pixels = tiny("hyena", drop_path_rate=0.5).double(), images(dtype=torch.float64)
    with torch.no_grad():
        found = torch.compile(model, fullgraph=True)(pixels).logits
        torch.testing.assert_close(found, model(pixels).logits, rtol=1e-9, atol=1e-9)


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

"""Whole M2-BERT models under torch.compile(fullgraph=True) and torch.export give what eager gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from m2bert_tiny import tiny, tokens
from torch import Tensor, nn

from m2gen.models import M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel

pytestmark = pytest.mark.slow

SMALL = {"hidden_size": 16, "intermediate_size": 32, "hyena_filter_order": 8, "hidden_dropout_prob": 0.0}
HEADS = {
    "encoder": (M2BertModel, None),
    "masked lm": (M2BertForMaskedLM, (3, 40)),
    "classification": (M2BertForSequenceClassification, (3,)),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def inputs(length: int, labels: tuple[int, ...] | None = None, left: int = 0) -> dict[str, Tensor]:
    """Three rows of different lengths, the first `left` positions padded as well."""
    at = torch.arange(length)
    ends = torch.tensor([[length], [length - 3], [left + 1]])
    found = {"input_ids": tokens(3, length), "attention_mask": ((at >= left) & (at < ends)).long()}
    if labels is not None:
        found["labels"] = found["input_ids"] if len(labels) == 2 else torch.tensor([0, 1, 1])
    return found


def make(kind: str, **changes: Any) -> tuple[nn.Module, tuple[int, ...] | None]:
    cls, labels = HEADS[kind]
    return tiny(cls, **{**SMALL, **changes}).double(), labels


def same(found: Any, want: Any) -> None:
    """All outputs of a model, by name; transformers takes losses in float32."""
    assert list(found) == list(want)
    for name in want:
        bound = 1e-6 if name == "loss" else 1e-9
        torch.testing.assert_close(found[name], want[name], rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("kind", "pool_all", "backend"),
    [
        ("encoder", False, "aot_eager"),
        ("encoder", True, "aot_eager"),
        ("masked lm", False, "inductor"),
        ("classification", False, "aot_eager"),
    ],
)
def test_compiled_whole(kind: str, pool_all: bool, backend: str) -> None:
    """In training: outputs and gradients, with padding on both sides."""
    model, labels = make(kind, pool_all=pool_all)
    model.train()
    batch = inputs(40, labels, left=2)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = []
    for call in (compiled, model):
        model.zero_grad()
        out = call(**batch)
        (out.loss if labels else out.pooler_output.square().sum()).backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        results.append((out, grads))
    same(results[0][0], results[1][0])
    same(results[0][1], results[1][1])


def test_compiled_in_evaluation_for_every_length() -> None:
    """One graph for all lengths, and one for a missing mask."""
    model, _ = make("encoder")
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for length in (40, 23, 64, 11):
            same(compiled(**inputs(length)), model(**inputs(length)))
            same(compiled(tokens(3, length)), model(tokens(3, length)))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@pytest.mark.parametrize("kind", HEADS)
def test_exported(kind: str) -> None:
    """With any batch and any length."""
    model, _ = make(kind)
    batch, length = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("length", min=2, max=64)
    dims = {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}
    program = torch.export.export(model, (), inputs(40), dynamic_shapes=dims)
    for size in (40, 17, 64):
        same(program.module()(**inputs(size)), model(**inputs(size)))


def test_exported_program_survives_a_file(tmp_path: Any) -> None:
    model, _ = make("encoder")
    torch.export.save(torch.export.export(model, (), inputs(40)), tmp_path / "model.pt2")
    same(torch.export.load(tmp_path / "model.pt2").module()(**inputs(40)), model(**inputs(40)))

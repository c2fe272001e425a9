"""M2-BERT where transformers' own tools use it: tokenizers, pipelines, batches that they pad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from m2bert_tiny import tiny
from transformers import AutoTokenizer, BertTokenizer, PreTrainedModel, pipeline

from m2gen.models import M2BertForMaskedLM, M2BertForSequenceClassification

TEXTS = ["the quick brown fox jumps over a lazy dog", "a dog", "the fox jumps again and again and again"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]


def saved(model: PreTrainedModel, path: Path) -> str:
    (path / "vocab.txt").write_text("\n".join(WORDS))
    model.save_pretrained(path)
    BertTokenizer(vocab=str(path / "vocab.txt")).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_is_classified_as_its_texts_are(tmp_path: Path, side: str) -> None:
    model = tiny(M2BertForSequenceClassification, num_labels=3)
    classify = pipeline("text-classification", model=saved(model, tmp_path), device="cpu", top_k=None)
    classify.tokenizer.padding_side = side
    alone, together = ([scores for text in TEXTS for scores in classify([text])], classify(TEXTS, batch_size=3))
    for a, b in zip(alone, together, strict=True):
        assert [s["label"] for s in a] == [s["label"] for s in b]
        assert [s["score"] for s in a] == pytest.approx([s["score"] for s in b], abs=1e-5)
    spread = torch.tensor([[s["score"] for s in scores] for scores in alone])
    assert spread.std(0).max() > 1e-3, "the texts differ"


def test_fill_mask_and_features(tmp_path: Path) -> None:
    path = saved(tiny(M2BertForMaskedLM, vocab_size=len(WORDS)), tmp_path)
    fill = pipeline("fill-mask", model=path, device="cpu")
    ids = AutoTokenizer.from_pretrained(path)("the [MASK] fox", return_tensors="pt")
    with torch.no_grad():
        likely = fill.model(**ids).logits[0, 2].softmax(-1)
    found = fill("the [MASK] fox", top_k=len(WORDS))
    assert [f["score"] for f in found] == pytest.approx(likely.sort(descending=True).values.tolist(), rel=1e-5)
    features = pipeline("feature-extraction", model=path, device="cpu")("the fox")
    assert torch.tensor(features).shape == (1, 4, 32)

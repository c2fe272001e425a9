"""The usual metrics on transformers' Trainer: predictions are the logits, whatever else a model returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_adapter_tasks import MODELS, inputs

pytest.importorskip("accelerate")
from transformers import Trainer, TrainingArguments

from m2gen.models import M2GPTForCausalLM, M2GPTPretrainedConfig

KINDS = [kind for kind in MODELS if "labels" in inputs(kind)]


def accuracy(prediction: Any) -> dict[str, float]:
    logits, labels = prediction
    return {"accuracy": float((np.argmax(logits, axis=-1) == labels).mean())}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adapter", [False, True])
def test_evaluate_and_predict(kind: str, adapter: bool, tmp_path: Path) -> None:
    model, batch = MODELS[kind](), inputs(kind)
    if adapter:
        peft = pytest.importorskip("peft")
        model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["in_linear", "out_linear"]))
    rows = [{name: value[i] for name, value in batch.items()} for i in range(3)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_eval_batch_size=2, report_to=[], use_cpu=True, label_names=["labels"]
    )
    trainer = Trainer(model=model, args=arguments, eval_dataset=rows, compute_metrics=accuracy)
    with torch.no_grad():
        want = model.eval()(**batch).logits.numpy()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == accuracy((want, batch["labels"].numpy()))["accuracy"]
    predicted = trainer.predict(rows)
    assert isinstance(predicted.predictions, np.ndarray)
    np.testing.assert_allclose(predicted.predictions, want, rtol=1e-4, atol=1e-5)


def test_the_pooled_vector_stays(tmp_path: Path) -> None:
    """In the model's result, and for those who ask the trainer for it."""
    model, batch = MODELS["classification"](), inputs("classification")
    with torch.no_grad():
        out = model(**batch)
    assert out.sentence_embedding.shape == (3, 16)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    rows = [{name: value[i] for name, value in batch.items()} for i in range(3)]
    logits, vectors = Trainer(model=model, args=arguments).predict(rows, ignore_keys=[]).predictions
    np.testing.assert_allclose(logits, out.logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(vectors, out.sentence_embedding, rtol=1e-4, atol=1e-5)


def test_smoothed_labels_are_shifted(tmp_path: Path) -> None:
    """Trainer's own loss with label_smoothing_factor is that of the next token, as for every causal model."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 32}
    model, ids = M2GPTForCausalLM(M2GPTPretrainedConfig(**sizes)), torch.randint(0, 64, (4, 16))
    trainer = Trainer(model, TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[]))
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    want = F.cross_entropy(logits, ids[:, 1:].flatten(), label_smoothing=0.1)
    torch.testing.assert_close(trainer.compute_loss(model, {"input_ids": ids, "labels": ids.clone()}), want)

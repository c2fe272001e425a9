"""PEFT's adapters on every model, for every task: trained, saved and loaded, or told why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from m2bert_tiny import tiny, tokens
from m2vit_tiny import images
from m2vit_tiny import tiny as tiny_vit
from torch import Tensor, nn

from m2gen.models import (
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
    M2GPTForCausalLM,
    M2GPTPretrainedConfig,
)

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # PEFT's, of names it does not know

LENGTH, VIRTUAL = 12, 3
SMALL = {"hidden_size": 16, "intermediate_size": 32, "hyena_filter_order": 8, "num_hidden_layers": 1}
PROJECTIONS = ["in_linear", "out_linear"]
TASKS = [None, *(task.value for task in peft.TaskType)]
DECODING = ("SEQ_2_SEQ_LM", "CAUSAL_LM")


def gpt() -> M2GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 32}
    model = M2GPTForCausalLM(M2GPTPretrainedConfig(**sizes, filter_options={"width": 8, "heads": 2})).eval()
    for block in model.model.blocks():
        nn.init.normal_(block.attention.out_linear.weight, std=0.3)
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "encoder": lambda: tiny(M2BertModel, **SMALL),
    "masked lm": lambda: tiny(M2BertForMaskedLM, **SMALL),
    "classification": lambda: tiny(M2BertForSequenceClassification, **SMALL),
    "gpt": gpt,
    "vit": lambda: tiny_vit().vit,
    "vit classification": tiny_vit,
}
ADAPTERS: dict[str, Callable[[str | None], Any]] = {
    "lora": lambda task: peft.LoraConfig(task_type=task, target_modules=PROJECTIONS),
    "ia3": lambda task: peft.IA3Config(task_type=task, target_modules=PROJECTIONS, feedforward_modules=["out_linear"]),
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
    "p-tuning": lambda task: peft.PromptEncoderConfig(
        task_type=task, num_virtual_tokens=VIRTUAL, encoder_hidden_size=8
    ),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=VIRTUAL),
}


def inputs(kind: str) -> dict[str, Tensor]:
    if kind.startswith("vit"):
        found = {"pixel_values": images()}
    else:
        real = torch.arange(LENGTH) < torch.tensor([[12], [9], [5]])
        found = {"input_ids": tokens(3, LENGTH), "attention_mask": real.long()}
    if kind in ("masked lm", "gpt"):
        found["labels"] = found["input_ids"]
    if kind.endswith("classification"):
        found["labels"] = torch.tensor([0, 1, 1])
    return found


def refusal(kind: str, adapter: str, task: str | None) -> str | None:
    """What the error says of a combination that cannot work; None where it has to."""
    learned_prompt = adapter in ("prompt", "p-tuning", "prefix")
    if learned_prompt and (task is None or kind.startswith("vit")):
        return "None" if task is None else "vocab_size"  # PEFT puts prompts before words only, and by the task
    if task in DECODING and kind != "gpt":
        return "prepare_inputs_for_generation"
    if adapter == "prefix":
        if kind == "gpt":
            return "no keys and values of attention"
        return "keeps nothing for a next part|not support past key values|transformer_backbone_name"
    if learned_prompt and kind in ("masked lm", "gpt") and task != "CAUSAL_LM":
        return "give one label a token|Give one label a token"  # PEFT makes those of the prompt for CAUSAL_LM alone
    return None


def trained(kind: str, adapter: str, task: str | None) -> Any:
    """A model whose adapter has had a backward pass, and values of its own."""
    model = peft.get_peft_model(MODELS[kind](), ADAPTERS[adapter](task)).train()
    out = model(**inputs(kind))
    loss = out.last_hidden_state.square().mean() if out.get("loss") is None else out.loss
    loss.backward()
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert learning and all(p.grad is not None or "modules_to_save" in name for name, p in learning.items())
    assert any(bool(p.grad.count_nonzero()) for p in learning.values() if p.grad is not None)
    torch.manual_seed(3)
    with torch.no_grad():
        for p in learning.values():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("kind", MODELS)
def test_every_adapter_and_task(kind: str, adapter: str, task: str | None, tmp_path: Path) -> None:
    why = refusal(kind, adapter, task)
    if why is not None:
        with pytest.raises((ValueError, AttributeError, KeyError), match=why):
            trained(kind, adapter, task)
        return
    model = trained(kind, adapter, task)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(MODELS[kind](), tmp_path).eval()
    plain = MODELS[kind]()
    with torch.no_grad():
        found, want, without = (m(**inputs(kind)) for m in (again, model, plain))
    name = "logits" if "logits" in want else "last_hidden_state"
    torch.testing.assert_close(found[name], want[name])
    same = want[name].shape == without[name].shape and torch.allclose(want[name], without[name])
    assert not same, "the adapter does something"


def test_a_prompt_stands_before_the_text() -> None:
    """The same as its vectors as inputs_embeds, with a mask of integers."""
    model = trained("encoder", "prompt", "FEATURE_EXTRACTION")
    batch = inputs("encoder")
    prompt = model.get_prompt(3)
    words = torch.cat([prompt, model.get_base_model().get_input_embeddings()(batch["input_ids"])], dim=1)
    mask = torch.cat([torch.ones(3, VIRTUAL, dtype=torch.long), batch["attention_mask"]], dim=1)
    with torch.no_grad():
        found = model(**batch).last_hidden_state
        want = model.get_base_model()(inputs_embeds=words, attention_mask=mask).last_hidden_state
    assert torch.equal(found[mask.bool()], want[mask.bool()])


@pytest.mark.parametrize("adapter", ["lora", "ia3", "prompt"])
def test_generation_with_an_adapter(adapter: str) -> None:
    model, ids = trained("gpt", adapter, "CAUSAL_LM"), tokens(2, 5)
    options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 15}
    with_cache, without = (model.generate(input_ids=ids, use_cache=c, **options) for c in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape == (2, 20)

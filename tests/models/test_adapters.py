"""LoRA by PEFT on every linear layer: what is trained counts, and what counts is trained."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import NAMES, small
from torch import Tensor, nn

from m2gen.modules.hyena_filter import HyenaFilter

peft = pytest.importorskip("peft")

WITH_LINEAR = [name for name in NAMES if name != "ViT, Monarch"]  # where everything is a Monarch matrix there is none
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 12}


def adapted(name: str, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """With adapters that do something, as after training: lora_B is zero at its start."""
    model, batch = small(name, layers=2)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=4))
    return drawn(wrapped, "default", seed), batch


def drawn(wrapped: Any, adapter: str, seed: int) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if f".lora_B.{adapter}." in name:
                p.normal_(std=0.05)
    return wrapped


def linear_layers(name: str) -> set[str]:
    """The layers that "all-linear" has to reach: all but the one that makes the logits."""
    model, _ = small(name, layers=2)
    head = model.get_output_embeddings() or model.get_submodule("classifier")
    return {n for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


@pytest.mark.parametrize("name", WITH_LINEAR)
def test_every_adapter_has_a_gradient(name: str) -> None:
    wrapped, batch = adapted(name)
    wrapped.train()
    wrapped(**batch).loss.backward()
    found = {n: p.grad for n, p in wrapped.named_parameters() if ".lora_" in n}
    assert not [n for n, grad in found.items() if grad is None or not grad.any()]
    prefix = "base_model.model."
    layers = {n.removeprefix(prefix).partition(".lora_")[0] for n in found}
    assert layers >= linear_layers(name)
    assert any("implicit_filter" in n for n in layers) and any(n.endswith("in_linear") for n in layers)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", WITH_LINEAR)
def test_merged_is_unmerged(name: str, training: bool) -> None:
    wrapped, batch = adapted(name)
    wrapped.train(training)
    with torch.no_grad():
        want = wrapped(**batch).logits
        wrapped.merge_adapter()
        merged = wrapped(**batch).logits
        wrapped.unmerge_adapter()
        again = wrapped(**batch).logits
        with wrapped.disable_adapter():
            assert (wrapped(**batch).logits - want).abs().max() > 1e-2
        plain = wrapped.merge_and_unload()(**batch).logits
    for found in (merged, again, plain):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("M2-GPT")])
def test_generation_with_adapters_is_that_of_the_merged_model(name: str) -> None:
    wrapped, batch = adapted(name)
    wrapped.eval()
    ids = batch["input_ids"]
    cache = wrapped.get_base_model().new_cache(2)
    parts = [wrapped(input_ids=part, past_key_values=cache).logits for part in ids.split([7, 1, 1, 9, 2], dim=1)]
    whole = wrapped(input_ids=ids).logits
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    cached = wrapped.generate(input_ids=ids, **GREEDY)
    assert torch.equal(cached, wrapped.generate(input_ids=ids, use_cache=False, **GREEDY))
    with wrapped.disable_adapter():
        assert not torch.equal(wrapped.generate(input_ids=ids, **GREEDY), cached)
    assert torch.equal(wrapped.merge_and_unload().generate(input_ids=ids, **GREEDY), cached)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_LINEAR)
def test_adapters_change_at_once_in_evaluation(name: str) -> None:
    """Each call is compared with that of a model that never had another adapter on."""
    wrapped, batch = adapted(name)
    wrapped.add_adapter("other", peft.LoraConfig(target_modules="all-linear", r=4, lora_alpha=4))
    drawn(wrapped, "other", 7).eval()
    first = wrapped(**batch).logits
    wrapped.set_adapter("other")
    second = wrapped(**batch).logits
    wrapped.set_adapter("default")
    torch.testing.assert_close(wrapped(**batch).logits, first, rtol=0, atol=0)
    with wrapped.disable_adapter():
        off = wrapped(**batch).logits
    torch.testing.assert_close(wrapped(**batch).logits, first, rtol=0, atol=0)

    fresh, _ = small(name, layers=2)
    torch.testing.assert_close(off, fresh(**batch).logits, rtol=1e-5, atol=1e-5)
    wrapped.set_adapter("other")
    merged = wrapped.merge_and_unload()
    for part in merged.modules():
        if isinstance(part, HyenaFilter):
            part.train().eval()
    torch.testing.assert_close(second, merged(**batch).logits, rtol=1e-4, atol=1e-4)
    assert (first - second).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("kept", [["embedding"], ["head"], ["embedding", "head"]])
def test_trained_copies_of_the_embedding_and_the_head(kept: list[str]) -> None:
    """What PEFT trains whole stands in the model afterwards, no longer tied."""
    model, batch = small("M2-GPT", layers=2)
    config = peft.LoraConfig(target_modules=["in_linear"], modules_to_save=kept, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config).eval()
    torch.manual_seed(0)
    for p in wrapped.parameters():
        if p.requires_grad:
            p.add_(0.05 * torch.randn_like(p))
    want = wrapped(**batch).logits
    torch.testing.assert_close(wrapped.merge_and_unload()(**batch).logits, want, rtol=1e-4, atol=1e-4)


TRAIN = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, sys.argv[2])
from test_adapters import adapted

rank = int(os.fork() == 0)  # what takes long to import is there


def train(name):
    wrapped, batch = adapted(name)
    ddp = DistributedDataParallel(wrapped.train())
    optimizer = torch.optim.SGD([p for p in wrapped.parameters() if p.requires_grad], lr=0.05)
    mine = {key: t[rank : rank + 1] for key, t in batch.items()}
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = ddp(**mine).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    trained = torch.cat([p.detach().flatten() for p in wrapped.parameters() if p.requires_grad])
    both = [torch.empty_like(trained) for _ in range(2)]
    dist.all_gather(both, trained)
    assert torch.equal(both[0], both[1]) and trained.isfinite().all(), f"{name}: the two processes differ"
    mean = torch.tensor(losses)
    dist.all_reduce(mean)
    assert mean[2] < mean[0], f"{name}: {mean}"
    print(f"trained {name}\\n", end="", flush=True)  # in one piece: two write there


dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
for name in sys.argv[3:]:
    train(name)
dist.destroy_process_group()
sys.exit(rank == 0 and os.wait()[1] != 0)
"""


def test_two_processes_train_every_adapter(tmp_path: Path) -> None:
    """DistributedDataParallel raises where a parameter has no gradient, unless told to look for such."""
    names = ["M2-BERT, classes", "M2-GPT", "M2-GPT, Monarch", "M2-ViT"]
    args = [str(tmp_path / "meeting"), str(Path(__file__).parent), *names]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", TRAIN, *args]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == sorted(f"trained {name}" for name in [*names, *names])

"""M2-BERT: sizes, the independent transcription, padding, pooling, losses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from m2bert_tiny import shaken, tiny, tokens
from torch import Tensor
from transcription import encode, masked_lm

from m2gen.errors import MissingError, ProblemError
from m2gen.models import M2BertConfig, M2BertForMaskedLM, M2BertForSequenceClassification, M2BertModel
from m2gen.models.m2bert import PRESETS
from m2gen.modules import HyenaFilter, param_groups

SIZES = ("80M", "110M", "260M", "341M")


# -- sizes -------------------------------------------------------------------------------------------------------------


def count(config: M2BertConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in M2BertForMaskedLM(config).parameters())


def test_parameters_of_the_published_80m() -> None:
    assert count(M2BertConfig()) == count(M2BertConfig.preset("80M")) == 80_262_714


def by_formula(d: int, vocabulary: int, length: int, width: int = 128, blocks: int = 4, expand: int = 4) -> int:
    """Counted on paper: the parts of the table of published names."""
    network = 5 * width + width + 2 * (width * width + width) + width * d
    filters = 2 * (
        d + 5 * length + width + 2 * network
    )  # skip, features, shared frequencies, two networks; two filters
    mixer = 3 * d * d + 3 * d + 3 * d * 4 + d * d + d + filters
    mlp = 2 * expand * d * d // blocks + expand * d * d // blocks + d + 2 * d
    embeddings = d * (vocabulary + length + 2 + 2)
    head = d * d + d + 2 * d + vocabulary  # the decoder's weight is the embedding
    return embeddings + 12 * (mixer + mlp) + head


@pytest.mark.parametrize(("name", "millions"), [("80M", 80.27), ("110M", 115.58), ("260M", 259.13), ("341M", 341.04)])
def test_parameters_of_the_published_sizes(name: str, millions: float) -> None:
    """The published counts are with a vocabulary padded to 30,528."""
    found = count(M2BertConfig.preset(name, vocab_size=30528))
    assert found == by_formula(PRESETS[name]["hidden_size"], 30528, 128)
    assert found == pytest.approx(millions * 1e6, rel=1e-4)


@pytest.mark.parametrize("name", ["80M-2k-retrieval", "80M-8k-retrieval", "80M-32k-retrieval"])
def test_parameters_of_the_long_models(name: str) -> None:
    config = M2BertConfig.preset(name)
    length = config.max_position_embeddings
    assert length == {"2": 2048, "8": 8192, "3": 32768}[name[4]]
    assert config.long_conv_l_max == length
    assert count(config) == by_formula(768, 30522, length)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ProblemError, match="80M-8k-retrieval"):
        M2BertConfig.preset("80m")
    with pytest.raises(ProblemError, match="use_glu_mlp=False"):
        M2BertConfig(use_glu_mlp=False)
    with pytest.raises(ProblemError, match="not a multiple"):
        M2BertConfig(hidden_size=768, intermediate_size=3000)


# -- the transcription -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIZES)
def test_logits_of_every_size(name: str) -> None:
    """Full widths, two layers; all lengths with one model."""
    torch.manual_seed(0)
    config = M2BertConfig.preset(name, num_hidden_layers=2, vocab_size=500)
    model = shaken(M2BertForMaskedLM(config).eval())
    state = model.state_dict()
    for length in (1, 2, 37, 100, 128):
        ids = tokens(2, length, 500, seed=length)
        with torch.no_grad():
            found = model(ids).logits
        want = masked_lm(state, ids)
        assert want.abs().max() > 1, "logits large enough for the bound to mean something"
        torch.testing.assert_close(found.double(), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize("length", [200, 1000, 2048])
def test_logits_of_a_long_model(length: int) -> None:
    model = tiny(M2BertForMaskedLM, max_position_embeddings=2048, hyena_training_additions=True)
    ids = tokens(1, length, seed=length)
    with torch.no_grad():
        found = model(ids).logits
    torch.testing.assert_close(found.double(), masked_lm(model.state_dict(), ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changed", ["filter_fn.bias", "filter_fn2.bias", "short_filter.weight", "implicit_filter_rev.6"]
)
def test_the_transcription_tells_models_apart(changed: str) -> None:
    model, other = (tiny(M2BertForMaskedLM) for _ in range(2))
    with torch.no_grad():
        for name, p in other.named_parameters():
            if changed in name:
                p.add_(0.05 * torch.randn_like(p))
    ids = tokens(1, 30)
    assert (model(ids).logits.double() - masked_lm(other.state_dict(), ids)).abs().max() > 1e-3


# -- padding -----------------------------------------------------------------------------------------------------------


def in_batch(texts: list[Tensor], length: int, left: list[int], junk: int) -> dict[str, Tensor]:
    """The texts as rows of `length`, each after `left` padded positions, padding filled with some token."""
    ids = torch.full((len(texts), length), junk)
    mask = torch.zeros(len(texts), length, dtype=torch.long)
    for row, (text, start) in enumerate(zip(texts, left, strict=True)):
        ids[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def agree(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert F.cosine_similarity(found.double(), want.double(), dim=-1).min() > 0.99999


@pytest.mark.parametrize("pool_all", [False, True])
@pytest.mark.parametrize("additions", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_embeddings_of_a_text_are_its_own(pool_all: bool, additions: bool, side: str) -> None:
    """Alone, padded to twice its length, and in a batch of others: the same vector, and the same logits."""
    model = tiny(M2BertModel, pool_all=pool_all, hyena_training_additions=additions)
    texts = [tokens(1, n, seed=n)[0] for n in (30, 7, 60, 1)]
    for junk in (0, 17):
        with torch.no_grad():
            alone = torch.cat([model.embed(text[None]) for text in texts])
            lefts = [0 if side == "right" else 60 - len(text) for text in texts]
            together = model.embed(**in_batch(texts, 60, lefts, junk))
            twice = model.embed(**in_batch(texts[:1], 60, lefts[:1], junk))
        agree(together, alone)
        agree(twice, alone[:1])


def test_embeddings_at_full_width() -> None:
    torch.manual_seed(0)
    model = shaken(M2BertModel(M2BertConfig(num_hidden_layers=3, vocab_size=500)).eval())
    texts = [tokens(1, n, 500, seed=n)[0] for n in (60, 12)]
    with torch.no_grad():
        alone = torch.cat([model.embed(text[None]) for text in texts])
        agree(model.embed(**in_batch(texts, 120, [0, 0], 0)), alone)


def test_logits_of_real_tokens_do_not_see_padding() -> None:
    model = tiny(M2BertForMaskedLM)
    texts = [tokens(1, n, seed=n)[0] for n in (20, 33)]
    with torch.no_grad():
        logits = model(**in_batch(texts, 50, [5, 0], 3)).logits
        for row, (text, start) in enumerate(zip(texts, (5, 0), strict=True)):
            agree(logits[row, start : start + len(text)], model(text[None]).logits[0])


@pytest.mark.parametrize("pool_all", [False, True])
def test_the_released_behaviour_reads_padding(pool_all: bool) -> None:
    """mask_padding=False: the states are those of the padded row read as text; the mean is over real tokens."""
    model = tiny(M2BertModel, mask_padding=False, pool_all=pool_all)
    batch = in_batch([tokens(1, 30)[0]], 60, [0], 0)
    with torch.no_grad():
        found = model(**batch)
        want = encode(model.state_dict(), batch["input_ids"], prefix="")
        torch.testing.assert_close(found.last_hidden_state.double(), want, rtol=0, atol=1e-4)
        pooled = want[:, :30].mean(1) if pool_all else want[:, 0]
        w = model.state_dict()
        pooled = torch.tanh(pooled @ w["pooler.dense.weight"].double().T + w["pooler.dense.bias"])
        torch.testing.assert_close(found.pooler_output.double(), pooled, rtol=0, atol=1e-4)
        alone = model.embed(batch["input_ids"][:, :30])
    assert (found.pooler_output - alone).abs().max() > 1e-3


def test_masks_of_another_kind_are_refused() -> None:
    model, ids = tiny(M2BertModel), tokens(2, 5)
    additive = torch.zeros(2, 5).index_fill(1, torch.arange(2), -torch.inf)
    others = (torch.ones(2, 4, dtype=torch.bool), torch.ones(2, 1, 1, 5, dtype=torch.long))
    for mask in (additive, torch.zeros(2, 5), torch.full((2, 5), 0.5), *others):
        with pytest.raises(ProblemError, match="true at real tokens"):
            model(ids, mask)


# -- outputs -----------------------------------------------------------------------------------------------------------


def test_embeddings() -> None:
    model = tiny(M2BertModel)
    batch = in_batch([tokens(1, n, seed=n)[0] for n in (20, 9)], 24, [4, 0], 0)
    with torch.no_grad():
        states = model(**batch).last_hidden_state
        first, mean = (model.embed(**batch, pooling=p, dense=False) for p in ("first", "mean"))
        torch.testing.assert_close(first, torch.stack([states[0, 4], states[1, 0]]))
        torch.testing.assert_close(mean, torch.stack([states[0, 4:].mean(0), states[1, :9].mean(0)]))
        torch.testing.assert_close(model.embed(**batch), torch.tanh(model.pooler.dense(first)))
        torch.testing.assert_close(model.embed(**batch), model(**batch).pooler_output)
        unit = model.embed(**batch, pooling="mean", dense=False, normalize=True)
    torch.testing.assert_close(unit, mean / mean.norm(dim=-1, keepdim=True))
    with pytest.raises(ProblemError, match="'first' or 'mean'"):
        model.embed(**batch, pooling="max")
    with pytest.raises(ProblemError, match="dense=False"):
        tiny(M2BertForMaskedLM).bert.embed(**batch)


@pytest.mark.parametrize("sparse", [False, True])
def test_masked_lm_loss(sparse: bool) -> None:
    model, ids = tiny(M2BertForMaskedLM, sparse_prediction=sparse), tokens(2, 12)
    labels = torch.where(torch.arange(12) % 3 == 0, ids, -100)
    out = model(ids, labels=labels)
    chosen = masked_lm(model.state_dict(), ids).log_softmax(-1)[labels != -100]
    want = -chosen.gather(1, labels[labels != -100][:, None])
    torch.testing.assert_close(out.loss.double(), want.mean(), rtol=1e-5, atol=0)
    assert out.logits.shape == ((8, 90) if sparse else (2, 12, 90))
    counted = model(ids, labels=labels, num_items_in_batch=torch.tensor(16)).loss
    torch.testing.assert_close(counted.double(), want.sum() / 16, rtol=1e-5, atol=0)
    with pytest.raises(TypeError, match="lables"):
        model(ids, lables=labels)


@pytest.mark.parametrize(
    ("labels", "num_labels"),
    [(torch.tensor([2, 0]), 3), (torch.tensor([0.5, -1.0]), 1), (torch.tensor([[1.0, 0, 1], [0, 0, 1]]), 3)],
    ids=["classes", "numbers", "several"],
)
def test_classification(labels: Tensor, num_labels: int) -> None:
    model = tiny(M2BertForSequenceClassification, num_labels=num_labels, output_hidden_states=True)
    ids = tokens(2, 12)
    out = model(ids, labels=labels)
    pooled = torch.tanh(model.bert.pooler.dense(out.hidden_states[-1][:, 0]))
    torch.testing.assert_close(out.sentence_embedding, pooled)
    torch.testing.assert_close(out.logits, model.classifier(pooled))
    losses = {
        (torch.int64, 1): lambda: F.cross_entropy(out.logits, labels),
        (torch.float32, 1): lambda: F.mse_loss(out.logits[:, 0], labels),
        (torch.float32, 2): lambda: F.binary_cross_entropy_with_logits(out.logits, labels),
    }
    torch.testing.assert_close(out.loss, losses[labels.dtype, labels.dim()]())


def test_hidden_states_and_tuples() -> None:
    model, ids = tiny(M2BertModel), tokens(2, 12)
    out = model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3
    assert out.hidden_states[-1] is out.last_hidden_state
    torch.testing.assert_close(
        out.hidden_states[0], model.embeddings(model.embeddings.word_embeddings(ids), None, None)
    )
    last, pooled = model(ids, return_dict=False)
    assert torch.equal(last, out.last_hidden_state) and torch.equal(pooled, out.pooler_output)


def test_inputs_may_be_spelled_out() -> None:
    model, ids = tiny(M2BertModel), tokens(2, 12)
    words = model.embeddings.word_embeddings(ids)
    spelled = model(
        inputs_embeds=words,
        token_type_ids=torch.zeros_like(ids),
        position_ids=torch.arange(12).expand(2, 12),
        attention_mask=torch.ones_like(ids),
    )
    torch.testing.assert_close(spelled.last_hidden_state, model(ids).last_hidden_state)
    types = torch.arange(12).expand(2, 12) // 6
    assert (model(ids, token_type_ids=types).last_hidden_state - spelled.last_hidden_state).abs().max() > 1e-3
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": words}):
        with pytest.raises(ProblemError, match="Give one of them"):
            model(**wrong)
    with pytest.raises(ProblemError, match="at most 64"):
        model(tokens(1, 65))


# -- training and evaluation -------------------------------------------------------------------------------------------


def gradients(model: torch.nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids, attention_mask=(ids > 20).long(), labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def checkpointed(model: Any) -> None:
    """transformers changed the method's name in 5.2x."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


def test_gradient_checkpointing_changes_no_gradient() -> None:
    model, ids = tiny(M2BertForMaskedLM, hidden_dropout_prob=0.0).train(), tokens(2, 16)
    want = gradients(model, ids)
    assert len(want) == len(list(model.parameters())), "every parameter is trained"
    calls: list[Any] = []
    model.bert.encoder.layer[0].register_forward_pre_hook(lambda *_: calls.append(None))
    checkpointed(model)
    found = gradients(model, ids)
    assert len(calls) == 2, "the layer is computed again in the backward pass"
    for name, grad in found.items():
        torch.testing.assert_close(grad, want[name], rtol=1e-5, atol=1e-7)


def test_training_with_the_published_groups_learns() -> None:
    """One batch by heart, padding and checkpointing included."""
    model, ids = tiny(M2BertForMaskedLM, hidden_dropout_prob=0.0).train(), tokens(4, 24)
    checkpointed(model)
    optimizer = torch.optim.AdamW(param_groups(model, lr=3e-3, weight_decay=1e-5))
    batch = {"input_ids": ids, "attention_mask": (torch.arange(24) < torch.tensor([[24], [20], [9], [3]])).long()}
    batch["labels"] = torch.where(batch["attention_mask"].bool(), ids, -100)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]


def test_filters_are_computed_once_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(M2BertModel)
    calls: list[int] = []
    filters = HyenaFilter._filters
    monkeypatch.setattr(HyenaFilter, "_filters", lambda self, n: calls.append(n) or filters(self, n))
    with torch.no_grad():
        first = model(tokens(1, 20)).last_hidden_state
        again = model(tokens(1, 20)).last_hidden_state
    assert calls == [20] * 4, "two layers of two filters"
    assert torch.equal(first, again)


def test_bfloat16_follows_float32() -> None:
    model = tiny(M2BertForMaskedLM)
    ids = tokens(2, 40)
    with torch.no_grad():
        want = model(ids).logits
        model.to(torch.bfloat16)
        kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
        found = model(ids).logits
    assert kept and all("filter_fn" in name for name in kept)
    assert found.dtype == torch.bfloat16
    # two layers of about ten roundings each, which add up like a random walk
    assert (found - want).norm() < 4 * torch.finfo(torch.bfloat16).eps * want.norm()


# -- the optional dependency -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["none", "another version"])
def test_without_transformers(found: str, tmp_path: Path) -> None:
    """M2-GPT is there, M2-BERT says what to install, and nothing imports transformers before it is asked for."""
    code = (
        "import sys, importlib.util as u; find = u.find_spec\n"
        "if sys.argv[1] == 'none': u.find_spec = lambda name, *a: None if name == 'transformers' else find(name, *a)\n"
        "else: sys.path.insert(0, sys.argv[2])\n"
        "import m2gen; assert 'transformers' not in sys.modules and 'torch' not in sys.modules\n"
        "from m2gen.models import M2GPT, M2GPTConfig; M2GPT(M2GPTConfig(d_model=8, n_layers=1)); print('M2-GPT')\n"
        "from m2gen.models import M2BertModel\n"
    )
    (tmp_path / "transformers.py").touch()
    run = subprocess.run([sys.executable, "-c", code, found, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.split() == ["M2-GPT"]
    assert "MissingError" in run.stderr and "pip install 'm2gen[models]'" in run.stderr.lower()
    assert ("m2gen: there are only plain modules" in run.stderr) == (found != "none"), (
        "an installed one is told of at once"
    )
    assert issubclass(MissingError, ImportError)

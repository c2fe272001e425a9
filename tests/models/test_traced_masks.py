"""A model that is traced, exported or vmapped with one padding mask is right for every other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from m2bert_tiny import tiny, tokens
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from m2gen.errors import ProblemError
from m2gen.models import (
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertModel,
    M2GPTForCausalLM,
    M2GPTPretrainedConfig,
)
from m2gen.modules import SequenceMixer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning"),
]

LENGTH = 20
ONES = torch.ones(3, LENGTH, dtype=torch.long)
AT = torch.arange(LENGTH)
RIGHT = AT.lt(torch.tensor([[20], [13], [5]])).long()
BOTH = (AT.ge(torch.tensor([[0], [3], [6]])) & AT.lt(torch.tensor([[20], [13], [9]]))).long()


class Traceable(nn.Module):
    """(ids, mask) -> one tensor, zero at padded positions, where nothing is promised."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = getattr(self.model(ids, attention_mask=mask), self.name)
        return torch.where(mask[..., None] != 0, out, 0) if out.dim() == mask.dim() + 1 else out


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(90, 16)
        self.mixer = SequenceMixer(16, 32, width=8)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[..., None] != 0, self.mixer(self.table(ids), mask), 0)


def gpt(causal: str = "fft") -> M2GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 1, "max_position_embeddings": 32}
    options = {"filter_options": {"width": 8, "heads": 2}, "causal": causal}
    config = M2GPTPretrainedConfig(**sizes, **options)
    model = M2GPTForCausalLM(config).eval()
    for block in model.model.blocks():
        nn.init.normal_(block.attention.out_linear.weight, std=0.3)
    return model


SMALL = {"hidden_size": 16, "intermediate_size": 32, "hyena_filter_order": 8, "max_position_embeddings": 32}
SMALL["num_hidden_layers"] = 1
MODELS: dict[str, Callable[[], nn.Module]] = {
    "encoder": lambda: Traceable(tiny(M2BertModel, **SMALL), "last_hidden_state"),
    "pooled": lambda: Traceable(tiny(M2BertModel, **SMALL), "pooler_output"),
    "mean": lambda: Traceable(tiny(M2BertModel, **SMALL, pool_all=True, mask_padding=False), "pooler_output"),
    "masked lm": lambda: Traceable(tiny(M2BertForMaskedLM, **SMALL), "logits"),
    "classification": lambda: Traceable(tiny(M2BertForSequenceClassification, **SMALL), "logits"),
    "gpt": lambda: Traceable(gpt(), "logits"),
    "mixer": Mixer,
}
Call = Callable[[Tensor, Tensor], Any]


def traced(model: nn.Module, ids: Tensor) -> Call:
    found: Call = torch.jit.trace(model, (ids, ONES), check_trace=False)
    return found


def frozen(model: nn.Module, ids: Tensor) -> Call:
    found: Call = torch.jit.optimize_for_inference(
        torch.jit.freeze(torch.jit.trace(model, (ids, ONES), check_trace=False))
    )
    return found


def proxied(mode: str) -> Callable[[nn.Module, Tensor], Call]:
    return lambda model, ids: make_fx(model, tracing_mode=mode, _allow_non_fake_inputs=True)(ids, ONES)


def exported(strict: bool) -> Callable[[nn.Module, Tensor], Call]:
    return lambda model, ids: torch.export.export(model, (ids, ONES), strict=strict).module()


WAYS = {
    "jit": traced,
    "frozen": frozen,
    "make_fx real": proxied("real"),
    "make_fx fake": proxied("fake"),
    "make_fx symbolic": proxied("symbolic"),
    "export": exported(False),
    "export strict": exported(True),
    "compile": lambda model, ids: torch.compile(model, backend="eager", fullgraph=True),
}


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["encoder", "mean", "classification", "gpt", "mixer"])
def test_traced_with_ones_and_run_with_padding(kind: str, way: str) -> None:
    model, ids = MODELS[kind]().eval().double(), tokens(3, LENGTH)
    torch.compiler.reset()
    graph = WAYS[way](model, ids)
    for mask in (RIGHT, BOTH, ONES, RIGHT):
        torch.testing.assert_close(graph(ids, mask), model(ids, mask), rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("transform", ["vmap", "vmap of ids too", "vmap twice", "vmap of jvp"])
def test_a_mask_for_each_row_of_vmap(kind: str, transform: str) -> None:
    """Each alone gives the same; masks of ones among them, and nothing else."""
    model, ids = MODELS[kind]().eval().double(), tokens(3, LENGTH)
    for masks in (torch.stack([ONES, RIGHT, BOTH, ONES]), torch.stack([ONES, ONES])):
        want = torch.stack([model(ids, mask) for mask in masks])
        if transform == "vmap":
            found = torch.vmap(lambda mask: model(ids, mask))(masks)
        elif transform == "vmap of ids too":
            found = torch.vmap(model)(ids.expand(len(masks), -1, -1), masks)
        elif transform == "vmap twice":
            found = torch.vmap(torch.vmap(lambda mask: model(ids, mask)))(masks[None])[0]
        else:
            one = (torch.ones((), dtype=torch.float64),)
            found = torch.vmap(lambda mask, one=one: torch.func.jvp(lambda s: s * model(ids, mask), one, one)[1])(masks)
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
def test_padding_on_the_left_of_a_causal_monarch_is_never_silent(way: str) -> None:
    """A graph that was made with ones has the check in it, and is right for padding on the right."""
    model, ids = Traceable(gpt("monarch"), "logits").eval().double(), tokens(3, LENGTH)
    torch.compiler.reset()
    graph = WAYS[way](model, ids)
    for mask in (RIGHT, ONES):
        torch.testing.assert_close(graph(ids, mask), model(ids, mask), rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="padded on the left"):
        graph(ids, BOTH)
    with pytest.raises(ProblemError, match="padded on the left"):
        model(ids, BOTH)
    with pytest.raises(ProblemError, match="padded on the left"):
        torch.vmap(lambda mask: model(ids, mask))(torch.stack([ONES, BOTH]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["token_type_ids", "position_ids", "cache_position"])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_gpt_has_not_is_refused_inside_of_a_graph(way: str, name: str) -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = gpt()

        def forward(self, ids: Tensor, value: Tensor) -> Tensor:
            logits: Tensor = self.model(ids, **{name: value[0] if name == "cache_position" else value}).logits
            return logits

    model, ids = Given().eval(), tokens(3, LENGTH)
    right = torch.zeros_like(ids) if name == "token_type_ids" else AT.expand(3, -1)
    torch.compiler.reset()
    if way in ("jit", "frozen"):
        graph = torch.jit.trace(model, (ids, right), check_trace=False)
        graph = torch.jit.freeze(graph) if way == "frozen" else graph
    elif way.startswith("make_fx"):
        graph = make_fx(model, tracing_mode=way.split()[1], _allow_non_fake_inputs=True)(ids, right)
    elif way.startswith("export"):
        graph = torch.export.export(model, (ids, right), strict=way.endswith("strict")).module()
    else:
        graph = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(graph(ids, right), model(ids, right))
    with pytest.raises(RuntimeError, match=f"{name} of an M2-GPT"):
        graph(ids, right + 1)


def test_a_mask_of_floats_is_not_read_where_its_values_are_not_known() -> None:
    """Zeros and ones, or zeros and minus infinity: a graph could not tell."""
    model, ids = MODELS["encoder"]().eval(), tokens(3, LENGTH)
    torch.testing.assert_close(model(ids, RIGHT.float()), model(ids, RIGHT))
    with pytest.raises(ProblemError, match="Give a bool or 0/1 integer mask"):
        torch.jit.trace(model, (ids, RIGHT.float()))

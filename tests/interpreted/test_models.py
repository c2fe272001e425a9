"""Whole models as on a GPU, their kernels interpreted, against the CPU's way in float64: outputs and the gradient of
every parameter, odd lengths, masks, compiled graphs."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from m2gen.device.limits import target
from m2gen.errors import ProblemError
from m2gen.models import M2GPT, M2BertForMaskedLM, M2GPTConfig
from m2gen.modules import MixerBlock, SequenceMixer
from m2gen.modules.dimension_mixer import DimensionMixer
from m2gen.ops.values import on_gpu
from m2gen.runtime.build.cpu import local_arch
from m2gen.runtime.build.limits import planned_for

sys.path.append(str(Path(__file__).parents[1] / "models"))
import m2bert_tiny
import m2vit_tiny

pytestmark = pytest.mark.usefixtures("poison")
BOUND = {torch.float32: 2e-5, torch.float16: 2e-2}  # relative l2


@contextmanager
def the_cpu_s_way() -> Iterator[None]:
    with planned_for(target(local_arch())):
        assert not on_gpu(torch.empty(1))
        yield


Calls = list[Callable[[Any], Tensor]]


def bert() -> tuple[nn.Module, Calls]:
    sizes = {"hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 40, "hyena_filter_order": 8}
    model = m2bert_tiny.tiny(
        M2BertForMaskedLM, hyena_training_additions=True, hidden_dropout_prob=0.0, num_hidden_layers=1, **sizes
    )
    ids = m2bert_tiny.tokens(3, 37)
    mask = torch.ones_like(ids)
    mask[0, 20:], mask[1, :5] = 0, 0
    return model, [
        lambda model: model(input_ids=ids).logits,
        lambda model: model(input_ids=ids, attention_mask=mask).logits[mask.bool()],
    ]


def gpt() -> tuple[nn.Module, Calls]:
    model = M2GPT(
        M2GPTConfig(vocab_size=50, d_model=8, n_layers=1, max_length=33, expand=2, filter_options={"heads": 2})
    )
    ids = torch.randint(1, 50, (2, 33), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 33, dtype=torch.bool)
    mask[0, :7] = False
    return model, [lambda model: model(ids, mask=mask)[mask]]


def vit() -> tuple[nn.Module, Calls]:
    model = m2vit_tiny.tiny("m2 gated", num_hidden_layers=1, hidden_size=8, intermediate_size=16)
    images = torch.randn(2, 2, 12, 12, generator=torch.Generator().manual_seed(1))
    return model, [lambda model: model(pixel_values=images.to(next(model.parameters()))).logits]


def gradients(model: nn.Module, call: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """The result and the gradient of every parameter, in float64."""
    model.zero_grad()
    y = call(model)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
    (y * dy).sum().backward()
    grads = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return {"result": y.detach().double(), **grads}


def compare(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float, other: Any = None) -> None:
    """No further from `wanted` than `bound` allows or, where a gradient's terms cancel, than four times as far as
    `other`, the CPU's way in the same dtype."""
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        size = want.norm().clamp_min(1e-12)
        allowed = bound if other is None else max(bound, 4 * float((other[name] - want).norm() / size))
        error = float((found[name] - want).norm() / size)
        assert error < allowed, (name, error, allowed)


@pytest.mark.parametrize("build", [bert, gpt, vit])
def test_models_as_on_a_gpu(build: Any) -> None:
    torch.manual_seed(0)
    model, calls = build()
    model.train()
    exact = copy.deepcopy(model).double()
    for call in calls:
        assert on_gpu(torch.empty(1))
        found = gradients(model, call)
        with the_cpu_s_way():
            wanted, other = gradients(exact, call), gradients(model, call)
        compare(found, wanted, BOUND[torch.float32], other)
        model.eval(), exact.eval()
        with torch.no_grad():
            y = call(model)
            with the_cpu_s_way():
                compare({"result": y.double()}, {"result": call(exact).double()}, BOUND[torch.float32])
        model.train(), exact.train()


def block(norm: bool = True, **options: Any) -> MixerBlock:
    torch.manual_seed(0)
    mixer = SequenceMixer(8, 40, width=8, norm=norm, **options)
    return MixerBlock(mixer, DimensionMixer(8, 2, nblocks=4))


@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"short_kernel": 6},
        {"bidirectional": False, "residual_long_conv": False},
        {"bidirectional": False, "residual_long_conv": False, "monarch": {}},
    ],
    ids=str,
)
def test_a_layer_with_masks_in_every_place(options: dict[str, Any], dtype: torch.dtype) -> None:
    layer = block(**options).to(dtype)
    exact = copy.deepcopy(layer).double()
    for length in (2, 31):
        x = torch.randn(2, length, 8, generator=torch.Generator().manual_seed(length)).to(dtype)
        for mask in (None, torch.rand(2, length, generator=torch.Generator().manual_seed(5)) < 0.7):
            kept = torch.ones(2, length, dtype=torch.bool) if mask is None else mask

            def call(m: nn.Module, x: Tensor = x, mask: Any = mask, kept: Tensor = kept) -> Tensor:
                y: Tensor = m(x.to(next(m.parameters()).dtype), mask)[kept]
                return y

            found = gradients(layer, call)
            with the_cpu_s_way():
                wanted, other = gradients(exact, call), gradients(layer, call)
            compare(found, wanted, BOUND[dtype], other)


def test_no_sequences_at_all() -> None:
    """A last batch that is empty, as on a CPU."""
    layer = block()
    y = layer(torch.empty(0, 5, 8), torch.empty(0, 5, dtype=torch.bool))
    y.sum().backward()
    assert y.shape == (0, 5, 8)
    with the_cpu_s_way():
        assert layer(torch.empty(0, 5, 8)).shape == (0, 5, 8)
    with pytest.raises(ProblemError, match="no taps"):
        layer(torch.empty(2, 0, 8))


def test_a_compiled_layer_is_one_graph_and_gives_the_same() -> None:
    """By Inductor in test_compile.py."""
    layer = block()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, mask = torch.randn(2, 33, 8), torch.rand(2, 33) < 0.8
    for given in (None, mask):
        kept = torch.ones(2, 33, dtype=torch.bool) if given is None else given
        found = gradients(layer, lambda m, given=given, kept=kept: compiled(x, given)[kept])
        compare(found, gradients(layer, lambda m, given=given, kept=kept: m(x, given)[kept]), 1e-5)


def test_what_is_not_plain_is_called() -> None:
    """A hook on a projection sees its call, and the result is the same."""
    layer = block()
    x = torch.randn(2, 33, 8)
    wanted, seen = layer(x), []
    for part in (layer.attention.in_linear, layer.attention.out_linear, layer.attention.short_filter):
        handle = part.register_forward_hook(lambda *_: seen.append(1))
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
        handle.remove()
    assert len(seen) == 3


def test_filters_that_stay_are_used_without_being_made() -> None:
    import m2gen

    layer = block().eval()
    x = torch.randn(2, 33, 8)
    with torch.no_grad():
        wanted = layer(x)
        m2gen.keep_filters(layer, 33)
        calls: list[int] = []
        layer.attention.filter_fn._filters = lambda *_: calls.append(1)  # type: ignore[method-assign,assignment]
        assert torch.equal(layer(x), wanted) and not calls

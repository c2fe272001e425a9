"""Models with linear layers in 8 bits, by torchao and by PyTorch: those of the rounded weights, and close to their own.

Rounded to steps of 1/127 of the largest in its row (torchao) or matrix (PyTorch), no weight moves by more than half a
step. What that makes of a model depends on its filters' frequencies; that it is nothing else is what is tested.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_models import NAMES, small
from torch import Tensor, nn

CLOSE = 1e-4  # two orders of one float32 computation, through sines of frequency 10
GREEDY = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 8}
WITH_LINEAR = [name for name in NAMES if name != "ViT, Monarch"]
GPT = [name for name in NAMES if name.startswith("M2-GPT")]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of quantize_dynamic's future
        yield


def in_8_bits(model: nn.Module) -> Any:
    """By torchao, weights alone."""
    quantization = pytest.importorskip("torchao.quantization")
    quantised = copy.deepcopy(model)
    quantization.quantize_(quantised, quantization.Int8WeightOnlyConfig())
    return quantised


def rounded(model: nn.Module, quantised: nn.Module) -> Any:
    """The float model of the weights that `quantised` stands for."""
    result = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            weight = quantised.get_submodule(name).weight
            by_row = not callable(weight)  # torchao's, with a step for every row; PyTorch's have one for all
            values = (weight if by_row else weight()).dequantize()
            largest = layer.weight.abs().amax(1, keepdim=True) if by_row else layer.weight.abs().max()
            assert ((values - layer.weight).abs() <= largest / 254 * (1 + 1e-3)).all()
            assert not torch.equal(values, layer.weight)
            # a tied weight, too, is in 8 bits in this place only
            result.get_submodule(name)._parameters["weight"] = values  # type: ignore[assignment]
    return result


def round_input(layer: nn.Module, args: tuple[Tensor]) -> Tensor:
    """What quantize_dynamic does to what a layer is given: 128 steps between its extremes, one of them at zero."""
    step, zero = torch._choose_qparams_per_tensor(args[0], True)
    return torch.fake_quantize_per_tensor_affine(args[0], step, zero, 0, 127)


def distance(a: Tensor, b: Tensor) -> float:
    """Relative to the size of b."""
    return float((a - b).norm() / b.norm())


@torch.no_grad()
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", WITH_LINEAR)
def test_torchao_int8_is_the_model_of_the_rounded_weights(name: str, training: bool) -> None:
    model, batch = small(name)
    quantised = in_8_bits(model).train(training)
    want = rounded(model, quantised).train(training)(**batch).logits
    assert distance(quantised(**batch).logits, want) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("name", GPT)
def test_torchao_int8_generates(name: str) -> None:
    model, batch = small(name)
    ids, quantised = batch["input_ids"], in_8_bits(model)
    cache = quantised.new_cache(2)
    parts = [quantised(input_ids=part, past_key_values=cache).logits for part in ids.split([7, 1, 1, 9, 2], dim=1)]
    assert distance(torch.cat(parts, dim=1), rounded(model, quantised)(input_ids=ids).logits) < CLOSE
    found = quantised.generate(input_ids=ids, **GREEDY)
    assert torch.equal(found, quantised.generate(input_ids=ids, use_cache=False, **GREEDY))


def dynamic(model: nn.Module) -> Any:
    """By PyTorch: weights, and what a layer is given."""
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = [m for m in quantised.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(found) == sum(isinstance(m, nn.Linear) for m in model.modules())
    return quantised


def without_ties(name: str) -> tuple[Any, dict[str, Tensor]]:
    """`small` with positions that do not lie right between two steps, where rounding is anyone's choice."""
    model, batch = small(name)
    with torch.no_grad():
        for parameter, p in model.named_parameters():
            if parameter.endswith("pos_emb.z"):
                p.add_(0.03 * torch.randn_like(p))
    return model, batch


def rounding(model: nn.Module, quantised: nn.Module) -> Any:
    """The float model of the rounded weights, whose layers round what they are given."""
    result = rounded(model, quantised)
    for layer in result.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_pre_hook(round_input)
    return result


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_LINEAR)
def test_quantize_dynamic_is_the_model_of_rounded_weights_and_inputs(name: str) -> None:
    model, batch = without_ties(name)
    quantised = dynamic(model)
    found, want = quantised(**batch).logits, rounding(model, quantised)(**batch).logits
    assert distance(found, want) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("name", GPT)
def test_quantize_dynamic_generates(name: str) -> None:
    model, batch = without_ties(name)
    ids, quantised = batch["input_ids"], dynamic(model)

    def in_parts(m: Any) -> Tensor:
        cache = m.new_cache(2)
        return torch.cat([m(input_ids=p, past_key_values=cache).logits for p in ids.split([7, 1, 1, 9, 2], dim=1)], 1)

    assert distance(in_parts(quantised), in_parts(rounding(model, quantised))) < CLOSE
    assert quantised.generate(input_ids=ids, **GREEDY).shape == (2, ids.shape[1] + 8)

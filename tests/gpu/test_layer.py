"""On a GPU: layers of M2-BERT and M2-GPT against float64 on the CPU, forward and every gradient; launches; graphs with
kept filters. `python -m pytest -m gpu`."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import m2gen
from m2gen.modules import MixerBlock, SequenceMixer
from m2gen.modules.dimension_mixer import DimensionMixer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
BOUND = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 5e-3}  # relative l2, gradients that cancel included
LENGTHS = (33, 512, 1000, 4096)


def block(length: int, width: int = 64, **options: Any) -> MixerBlock:
    torch.manual_seed(0)
    return MixerBlock(SequenceMixer(width, length, width=16, **options), DimensionMixer(width, 4, nblocks=4))


def gradients(layer: nn.Module, x: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = layer(x, mask)
    kept = torch.ones(y.shape[:2], dtype=torch.bool) if mask is None else mask.cpu()
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * kept[..., None]
    (y * dy.to(y)).sum().backward()
    assert x.grad is not None
    named = {name: p.grad for name, p in layer.named_parameters() if p.grad is not None}
    found = {"result": y.detach() * kept.to(y.device)[..., None], "input": x.grad, **named}
    return {name: grad.double().cpu() for name, grad in found.items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", list(BOUND))
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(
    "options", [{"norm": True}, {"bidirectional": False, "residual_long_conv": False}, {"short_kernel": 6}], ids=str
)
def test_a_layer_is_right(options: dict[str, Any], length: int, dtype: torch.dtype, masked: bool) -> None:
    layer = block(length, **options).to(dtype)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(3, length, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    mask = torch.rand(3, length, generator=torch.Generator().manual_seed(3)) < 0.8 if masked else None
    found = gradients(layer.cuda(), x.cuda(), None if mask is None else mask.cuda())
    wanted = gradients(exact, x.double(), mask)
    assert found.keys() == wanted.keys()
    for name, want in wanted.items():
        error = float((found[name] - want).norm() / want.norm().clamp_min(1e-9))
        assert error < BOUND[dtype], (name, error)


def test_nine_launches() -> None:
    """Forward, filters kept: as `m2gen plan --model 80M` counts them."""
    layer = block(4096, 768).to(torch.bfloat16).cuda().eval()
    x = torch.randn(2, 4096, 768, dtype=torch.bfloat16, device="cuda")
    m2gen.keep_filters(layer, 4096)
    with torch.inference_mode():
        for _ in range(3):
            layer(x)
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            layer(x)
            torch.cuda.synchronize()
    kernels = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) <= 9, kernels


def test_a_graph_replays_with_kept_filters() -> None:
    layer = block(1000).cuda().eval()
    m2gen.keep_filters(layer, 1000)
    x = torch.randn(2, 1000, 64, device="cuda")
    with torch.no_grad():
        for _ in range(2):
            layer(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer(x)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.testing.assert_close(y, layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled(mode: str) -> None:
    layer = block(512).cuda().eval()
    m2gen.keep_filters(layer, 512)
    compiled = torch.compile(layer, fullgraph=True, mode=mode)
    with torch.no_grad():
        for seed in range(4):
            x = torch.randn(2, 512, 64, generator=torch.Generator().manual_seed(seed)).cuda()
            torch.testing.assert_close(compiled(x).clone(), layer(x), rtol=1e-4, atol=1e-5)


def test_two_devices() -> None:
    """A kernel is launched where its tensors are, whatever device is current."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    layer, x = block(512).cuda(1), torch.randn(2, 512, 64, device="cuda:1")
    with torch.cuda.device(0):
        y = layer(x)
    with torch.cuda.device(1):
        assert torch.equal(y, layer(x))

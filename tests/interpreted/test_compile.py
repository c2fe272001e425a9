"""torch.compile over the generated kernels: one graph, also for other batch sizes, and what eager gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from m2gen.modules import SequenceMixer
from m2gen.runtime.bindings.fused import FusedKernel


def step(module: nn.Module, call: nn.Module, x: Tensor) -> list[Tensor]:
    """The output and every parameter's gradient."""
    module.zero_grad()
    y = call(x)
    y.square().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


@pytest.mark.parametrize(("bidirectional", "backend"), [(False, "aot_eager"), (True, "inductor")])
def test_a_mixer_is_one_graph_for_every_batch_size(
    bidirectional: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches: list[int] = []
    convolve = FusedKernel._convolve
    monkeypatch.setattr(FusedKernel, "_convolve", lambda *args: launches.append(1) or convolve(*args))
    mixer = SequenceMixer(4, 40, bidirectional=bidirectional, width=8)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(mixer, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        x = torch.randn(batch, 40, 4)
        torch._dynamo.mark_dynamic(x, 0)
        found, expected = step(mixer, compiled, x), step(mixer, mixer, x)
        for a, b in zip(found, expected, strict=True):
            assert (a - b).norm() <= 1e-4 * b.norm().clamp_min(1e-6)
    assert counter.frame_count == 1
    assert launches

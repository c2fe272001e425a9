"""torch.compile over the generated kernels: one graph, also for other batch sizes, and what eager gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from m2gen.modules import SequenceMixer
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.planner.search import rank
from m2gen.runtime import executor
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings import blockdiag_triton
from m2gen.runtime.bindings.fused import FusedKernel
from m2gen.runtime.build.limits import live


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
    monkeypatch.setattr(FusedKernel, "_convolve", lambda *a, **more: launches.append(1) or convolve(*a, **more))
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


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4, 6, 3)), nn.Parameter(torch.randn(24))

    def forward(self, x: Tensor) -> Tensor:
        return blockdiag_glu(x, self.weight, "gelu", self.bias, x)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_gated_product_and_its_gradients_are_an_operator_each(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph for every number of rows; the kernels are those of the plan, and no others."""
    ran: list[str] = []
    launch, bound = blockdiag_triton.launch, executor.bound

    def fused(problem: Any, *how: Any) -> Any:
        if problem.op != "blockdiag":
            return bound(problem, *how)
        return kernel_of(next(one for one in rank(problem, live(torch.device("cpu"))).plans if one.solver == "fused"))

    monkeypatch.setattr(blockdiag_triton, "launch", lambda spec, *rest: ran.append(spec.name) or launch(spec, *rest))
    monkeypatch.setattr(executor, "bound", fused)
    executor._of_product.cache_clear()
    module, counter = Gated(), CompileCounterWithBackend(backend)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for rows in (4, 7, 12):
        x = torch.randn(rows, 12)
        torch._dynamo.mark_dynamic(x, 0)
        ran.clear()
        found = step(module, compiled, x)
        assert [name.split("_")[1] for name in ran] == ["fwd", "dz", "dw"]  # x wants no gradient
        for a, b in zip(found, step(module, module, x), strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm().clamp_min(1e-6)
    assert counter.frame_count == 1
    executor._of_product.cache_clear()

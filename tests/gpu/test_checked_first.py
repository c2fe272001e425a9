"""On a GPU: kernels that no device had run when they were written are checked, used and right.

The check is in a process of its own; what follows it is in this one, under a graph's capture too.
`python -m pytest -m gpu`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.cache import verdicts
from m2gen.config import Config
from m2gen.device.limits import target
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.runtime import executor
from m2gen.runtime.build.limits import live
from m2gen.runtime.measure import first_use

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
HERE = live(torch.device("cuda")) if torch.cuda.is_available() else target("sm90")
PROBLEMS = (
    "blockdiag in=768 out=6144 blocks=4 rows=4096 bf16 gelu glu",
    "blockdiag in=3072 out=768 blocks=4 rows=4096 bf16 bias residual",
    "blockdiag in=768 out=6144 blocks=4 rows=999 fp16 bias silu glu residual",
    "blockdiag in=100 out=132 blocks=4 rows=513 fp32 bias relu",
    "shortconv n=2048 h=768 b=4 bf16 bias gated",
    "shortconv n=2048 h=768 b=4 bf16 bias gated blh",
    "shortconv n=2048 h=768 b=4 bf16 bias gated offset",
    "shortconv n=2048 h=768 b=4 bf16 bias gated offset masked",
    "shortconv n=1000 h=96 b=4 fp32 width=7 bias gated offset masked",
    "turn n=4096 h=768 b=4 bf16",
    "turn n=999 h=77 b=3 fp32",
    "shortconv n=1000 h=96 b=4 fp32 bias",
    "monarch in=4096 out=4096 rows=2048 bf16 factors=64x64x64,64x64x64",
    "monarch in=768 out=768 rows=999 fp32 factors=24x32x32,32x24x24",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Verdicts of the test's own."""
    monkeypatch.setattr(verdicts, "config", lambda: Config(cache_dir=str(tmp_path)))
    first_use._found.clear()
    yield
    first_use._found.clear()


def untried() -> Iterator[Any]:
    for text in PROBLEMS:
        plans = [plan for plan in rank(parse(text), HERE).plans if plan.body.untried]
        for plan in plans[:4]:
            yield pytest.param(plan, id=plan.choice + " of " + text)


@pytest.mark.parametrize("plan", list(untried()))
def test_every_plan_passes_its_check(plan: Plan) -> None:
    assert first_use.verdict(plan, HERE).why is None


def exact(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    z = torch.einsum("rbk,bnk->rbn", x.unflatten(-1, (weight.shape[0], -1)), weight).flatten(1) + bias
    gate, value = z.chunk(2, -1)
    return F.gelu(gate) * value + residual


def test_a_gated_product_and_its_gradients_in_this_process() -> None:
    shapes = ((1000, 768), (4, 1536, 192), (6144,), (1000, 3072))
    args = [torch.randn(shape, device="cuda").bfloat16().requires_grad_() for shape in shapes]
    wide = [t.detach().double().requires_grad_() for t in args]
    y, right = blockdiag_glu(args[0], args[1], "gelu", args[2], args[3]), exact(*wide)
    dy = torch.randn_like(y)
    found, wanted = (torch.autograd.grad(a, of, d) for a, of, d in ((y, args, dy), (right, wide, dy.double())))
    for name, one, want in zip(("y", "x", "weight", "bias", "residual"), (y, *found), (right, *wanted), strict=True):
        assert (one.double() - want).norm() <= 1e-2 * want.norm(), name


def test_a_check_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not disturb the capture, being another process. The kernel itself was loaded before, as for any graph."""
    x, weight = torch.randn(512, 768, device="cuda").bfloat16(), torch.randn(4, 384, 192, device="cuda").bfloat16()
    with torch.no_grad():
        with monkeypatch.context() as trusting:
            trusting.setattr(first_use, "config", lambda: Config(untried="trust"))
            blockdiag_glu(x, weight, "silu")
        for one in (executor.bound, executor._of_product):
            one.cache_clear()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = blockdiag_glu(x, weight, "silu")
        x.normal_()
        graph.replay()
        assert torch.equal(y, blockdiag_glu(x, weight, "silu"))

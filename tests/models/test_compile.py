"""torch.compile takes the modules and M2-GPT whole, and gives what eager gives, forward and backward; in float64.

Inductor's own compiling takes most of the time, so it is asked once for each kind of module, else "aot_eager".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from m2gen.models import M2GPT, M2GPTConfig
from m2gen.modules import DimensionMixer, SequenceMixer

pytestmark = pytest.mark.slow

Call = Callable[..., "Tensor | tuple[Tensor, Tensor]"]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def sequence_mixer() -> nn.Module:
    return SequenceMixer(8, 64, width=8, norm=True)


def plain() -> nn.Module:
    return DimensionMixer(16, kind="plain", order=2)


def gpt() -> nn.Module:
    return M2GPT(M2GPTConfig(vocab_size=32, d_model=8, n_layers=1, max_length=64, filter_options={"width": 8}))


def values(width: int, length: int) -> tuple[Tensor, ...]:
    return (torch.randn(2, length, width, dtype=torch.float64),)


def masked_values(width: int, length: int) -> tuple[Tensor, ...]:
    return *values(width, length), torch.arange(length).expand(2, length) < length - 3


def tokens(vocabulary: int, length: int) -> tuple[Tensor, ...]:
    ids = torch.randint(vocabulary, (2, length + 1))
    return ids[:, :-1], ids[:, 1:]


def results(module: nn.Module, call: Call, args: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, and the gradients of all parameters of its sum of squares, or of the loss where it is a pair."""
    module.zero_grad()
    y = call(*args)
    first, loss = y if isinstance(y, tuple) else (y, y.square().sum())
    loss.backward()
    return [first.detach(), *(p.grad.clone() for p in module.parameters() if p.grad is not None)]


def check(module: nn.Module, compiled: Call, args: tuple[Tensor, ...]) -> None:
    for found, want in zip(results(module, compiled, args), results(module, module, args), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("make", "inputs", "size", "backend"),
    [
        (sequence_mixer, values, 8, "inductor"),
        (lambda: DimensionMixer(16), values, 16, "inductor"),
        (plain, values, 16, "aot_eager"),
        (gpt, tokens, 32, "inductor"),
    ],
    ids=["sequence mixer", "glu", "plain", "m2gpt"],
)
def test_whole_graph_equals_eager(make: Callable[[], nn.Module], inputs: Call, size: int, backend: str) -> None:
    torch.manual_seed(0)
    module = make().double()
    check(module, torch.compile(module, fullgraph=True, backend=backend), inputs(size, 40))


@pytest.mark.parametrize(
    ("make", "inputs", "size"),
    [(sequence_mixer, masked_values, 8), (plain, values, 16), (gpt, tokens, 32)],
    ids=["sequence mixer", "plain", "m2gpt"],
)
def test_lengths_recompile_at_most_once(make: Callable[[], nn.Module], inputs: Call, size: int) -> None:
    """Graphs are counted, and their values compared; what inductor makes of them, in test_m2bert_graphs.py."""
    torch.manual_seed(0)
    module = make().double()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (40, 23, 57):
        check(module, compiled, inputs(size, length))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2

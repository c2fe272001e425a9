"""BlockDiagLinear and MonarchLinear against dense matrices."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules import BlockDiagLinear, MonarchLinear, linear
from m2gen.monarch import Monarch
from m2gen.reference import monarch as oracle
from m2gen.runtime import planning
from m2gen.testing.tolerances import check


@pytest.mark.parametrize("sizes", [(12, 8, 4), (8, 24, 4), (6, 6, 1), (5, 10, 5)])
def test_blockdiag_is_the_dense_block_diagonal(sizes: tuple[int, int, int]) -> None:
    n_in, n_out, nblocks = sizes
    layer = BlockDiagLinear(n_in, n_out, nblocks).double()
    x = torch.randn(2, 3, n_in, dtype=torch.float64)
    want = x @ oracle.block_diagonal(layer.weight).T + layer.bias
    torch.testing.assert_close(layer(x), want, rtol=1e-13, atol=1e-13)


def test_blockdiag_activation_and_names() -> None:
    layer = BlockDiagLinear(8, 8, 2, bias=False, activation="relu")
    assert [(n, tuple(p.shape)) for n, p in layer.named_parameters()] == [("weight", (2, 4, 4))]
    x = torch.randn(5, 8)
    torch.testing.assert_close(layer(x), (x @ oracle.block_diagonal(layer.weight).T).relu())


def test_blockdiag_is_initialised_as_published() -> None:
    # dense Kaiming-uniform with a = sqrt(5) is uniform within 1 / sqrt(fan_in); times sqrt(4) for four blocks
    torch.manual_seed(0)
    weight = BlockDiagLinear(768, 3072, 4).weight
    bound = 2 / 768**0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("n_in", "n_out", "nblocks", "order"),
    [(16, 16, 4, 2), (16, 32, 4, 2), (32, 16, 4, 2), (12, 12, (3, 4), 2), (64, 64, 16, 3), (12, 20, 4, 1)],
)
def test_monarch_is_the_dense_monarch(n_in: int, n_out: int, nblocks: int | tuple[int, int], order: int) -> None:
    layer = MonarchLinear(n_in, n_out, nblocks, order).double()
    x = torch.randn(3, n_in, dtype=torch.float64)
    want = x @ oracle.standard(list(layer.factors)).T + layer.bias
    torch.testing.assert_close(layer(x), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{"nblocks": 4}, {"nblocks": 16}, {"nblocks": 64, "order": 3}])
def test_output_variance_is_that_of_a_dense_layer(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 256 if "order" not in options else 512)
    variances = [MonarchLinear(x.shape[1], x.shape[1], bias=False, **options)(x).var().item() for _ in range(4)]
    dense = [nn.Linear(x.shape[1], x.shape[1], bias=False)(x).var().item() for _ in range(4)]
    assert sum(variances) / 4 == pytest.approx(sum(dense) / 4, rel=0.1)


def test_from_linear_recovers_a_monarch_exactly() -> None:
    torch.manual_seed(0)
    truth = MonarchLinear(24, 16, 4).double()
    dense = nn.Linear(24, 16).double()
    with torch.no_grad():
        dense.weight.copy_(oracle.standard(list(truth.factors)))
    layer = MonarchLinear.from_linear(dense, 4)
    x = torch.randn(5, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-10, atol=1e-10)


def test_from_linear_is_the_projection() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(16, 16, bias=False).double()
    layer = MonarchLinear.from_linear(dense, 4)
    _, distance = Monarch.from_dense(dense.weight, 4)
    found = (oracle.standard(list(layer.factors)) - dense.weight).square().sum().item()
    assert layer.bias is None
    assert found == pytest.approx(distance, rel=1e-9)
    assert found > 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BlockDiagLinear(10, 8, 4), "divide"),
        (lambda: MonarchLinear(10, 8, 4), "divide"),
        (lambda: MonarchLinear(16, 16, (4, 4), order=3), "one for every factor"),
        (lambda: MonarchLinear(64, 64, 4, order=3), "multiple"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make: type, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        make()


@pytest.mark.parametrize("layer", [BlockDiagLinear(8, 16, 4), MonarchLinear(16, 8, 4)])
def test_state_dict_round_trip_and_gradients(layer: nn.Module) -> None:
    n_in: int = layer.in_features  # type: ignore[assignment]
    x = torch.randn(2, n_in)
    other = type(layer)(n_in, layer.out_features, 4)  # type: ignore[call-arg]
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("library", [True, False])
def test_dense_products_in_16_bits(dtype: torch.dtype, library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As planned: by PyTorch's library, or widened."""
    asked: list[torch.Size] = []

    def by_library(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
        asked.append(weight.shape)
        return library

    monkeypatch.setattr(linear, "by_library", by_library)
    x, weight, bias = (torch.randn(size, dtype=dtype, requires_grad=True) for size in ((3, 5, 48), (40, 48), (40,)))
    y = linear.dense_linear(x, weight, bias)
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    want = F.linear(*wide)
    check(y, want, want.abs() + 48**0.5, 48)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, weight, bias), dy)
    for one, exact in zip(found, torch.autograd.grad(want, wide, dy.double()), strict=True):
        check(one, exact, exact.abs() + 48**0.5, 48)
    assert asked == [(1, 40, 48)] and ("blockdiag" in type(y.grad_fn).__name__) != library


def test_who_does_dense_products_in_16_bits_is_planned() -> None:
    for arch, solver in (("avx512", "library"), ("avx2", "native")):
        assert planning.plan("blockdiag in=768 out=768 blocks=1 rows=512 bf16 bias", arch).solver == solver


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MonarchLinear(512, 2048, nblocks="auto"), "nblocks is 'auto'. Give numbers, or order=\"auto\""),
        (lambda: MonarchLinear(512, 2048, order="best"), "order is 'best'. Give a whole number from 1 on"),
        (lambda: MonarchLinear(512, 2048, order=0), "order is 0. Give a whole number from 1 on"),
        (lambda: BlockDiagLinear(512, 2048, nblocks="best"), "nblocks is 'best'. Give a whole number"),
        (lambda: BlockDiagLinear(512, 2048, activation="tanh"), "it is not known. Use None or gelu, relu, silu"),
    ],
)
def test_choices_that_mean_nothing(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(ProblemError, match=re.escape(words)):
        make()


def test_a_layer_that_is_planned_dense_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(linear, "fallback", said.append)
    assert MonarchLinear(50, 201, order="auto").order == 1 and BlockDiagLinear(50, 201, nblocks="auto").nblocks == 1
    assert len(said) == 2 and "50 to 201" in said[0]
    MonarchLinear(512, 2048, order="auto")
    assert len(said) == 2

"""Block-diagonal products against float64: every epilogue, odd sizes, the permutations of Monarch stages, every
gradient, the same bits every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import comparison
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.device.limits import target
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.spec import Candidate
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.planner.blockdiag.tiles import BlockdiagSizes, candidates
from m2gen.planner.monarch.problem import inner_widths
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.reference import monarch as oracle
from m2gen.runtime import executor
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings import blockdiag_triton as kernels
from m2gen.runtime.bindings.blockdiag_triton import Epilogue
from m2gen.runtime.measure.trial import judged

pytestmark = pytest.mark.usefixtures("poison")
ACTIVATIONS: dict[str | None, Any] = {None: lambda z: z, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "live", lambda device: comparison.SMALL)


def exact(x: Tensor, weight: Tensor, after: Epilogue) -> Tensor:
    """(rows, blocks, N) by torch, for autograd."""
    z = torch.einsum("rbk,bnk->rbn", x.flatten(1, 2), weight)
    z = z if after.bias is None else z + after.bias.view(z.shape[1:])
    gate, value = z.chunk(2, dim=1) if after.glu else (z, None)
    y = ACTIVATIONS[after.activation](gate)
    y = y if value is None else y * value
    return y if after.residual is None else y + after.residual.flatten(1, 2)


def check(x: Tensor, weight: Tensor, after: Epilogue, y: Tensor) -> None:
    """y and every gradient; `y` says where the result lies."""
    found = kernels.product(x, weight, after, y)
    high = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, after.bias)]
    rest = None if after.residual is None else after.residual.double()
    expected = exact(high[0], high[1], after._replace(bias=high[2], residual=rest))
    comparison.close(found.flatten(1, 2), expected, "y")
    dy = comparison.draw(*expected.shape, dtype=x.dtype, seed=7)
    wanted = torch.autograd.grad(expected, [t for t in high if t is not None], dy.double())
    grads = kernels.gradients(dy.view(found.shape), x, weight, after)
    for name, grad, want in zip(("x", "weight", "bias"), grads, wanted, strict=False):
        comparison.close(grad, want, name)
    assert (grads.bias is None) == (after.bias is None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Epilogue, Tensor]:
    glu, dtype = draw(st.booleans()), draw(comparison.dtypes)
    outer, inner = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 2, 4]))
    outer *= 2 if glu and outer * inner % 2 else 1
    nblocks, width, depth, rows = outer * inner, draw(comparison.SIZES), draw(comparison.SIZES), draw(comparison.SIZES)
    x = comparison.draw(rows, nblocks * depth, dtype=dtype)
    x = comparison.strided(x, draw(comparison.STRIDES))
    x = kernels.before_stage(x, depth, inner) if draw(st.booleans()) else kernels.blocks_of(x, nblocks)
    weight = comparison.strided(comparison.draw(nblocks, width, depth, dtype=dtype, seed=1), draw(comparison.STRIDES))
    blocks = nblocks // 2 if glu else nblocks
    y = torch.empty_like(comparison.strided(torch.empty(rows, blocks * width, dtype=dtype), draw(comparison.STRIDES)))
    y = kernels.behind_stage(y, blocks) if draw(st.booleans()) else kernels.blocks_of(y, blocks)
    after = Epilogue(
        bias=comparison.draw(nblocks * width, dtype=dtype, seed=2) if draw(st.booleans()) else None,
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        glu=glu,
        residual=comparison.draw(*y.shape, dtype=dtype, seed=3) if draw(st.booleans()) else None,
    )
    return x, weight, after, y


@settings(max_examples=12)
@given(problems())
def test_products_and_every_gradient(problem: tuple[Tensor, Tensor, Epilogue, Tensor]) -> None:
    check(*problem)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Products are planned for a GPU, by this solver; the kernels that run."""
    ran: list[Any] = []
    run, other = kernels.launch, executor.bound

    def bound(problem: Any, *how: Any) -> Any:
        if problem.op != "blockdiag" or problem.dtype == "fp64":
            return other(problem, *how)
        return kernel_of(next(plan for plan in rank(problem, comparison.SMALL).plans if plan.solver == "fused"))

    def noting(spec: Any, *rest: Any) -> None:
        ran.append(spec)
        run(spec, *rest)

    monkeypatch.setattr(executor, "bound", bound)
    monkeypatch.setattr(kernels, "launch", noting)
    executor._of_product.cache_clear()
    yield ran
    executor._of_product.cache_clear()


FORMS = [
    (torch.float16, False, None, 17, 13, "turned", True, True),
    (torch.bfloat16, False, None, 33, 8, "offset", False, False),
    (torch.bfloat16, False, "gelu", 33, 16, "step", False, True),
    (torch.float32, False, "silu", 1, 7, "as is", True, True),
    (torch.float16, False, "relu", 40, 5, "turned", True, False),
    (torch.float16, True, "relu", 5, 33, "offset", False, True),
    (torch.bfloat16, True, "silu", 16, 1, "as is", True, True),
    (torch.bfloat16, True, "gelu", 35, 20, "step", False, False),
    (torch.float32, True, "gelu", 33, 17, "turned", True, True),
    (torch.float32, True, None, 70, 3, "offset", True, False),
]


@pytest.mark.parametrize(("dtype", "glu", "activation", "rows", "width", "how", "biased", "added"), FORMS)
def test_the_public_functions_from_plan_to_kernel(
    planned: list[Any], dtype: torch.dtype, glu: bool, activation: str | None, rows: int, width: int,
    how: str, biased: bool, added: bool,
) -> None:  # fmt: skip
    """Bias, activation, gate and residual in one kernel, of tensors of any strides; where gradients are wanted it is
    the same one, and those of all operands are three more, and what adds parts."""
    x, weight = comparison.draw(rows, 4 * 9, dtype=dtype), comparison.draw(4, width, 9, dtype=dtype, seed=1)
    bias = comparison.draw(4 * width, dtype=dtype, seed=2) if biased else None
    residual = comparison.draw(rows, (2 if glu else 4) * width, dtype=dtype, seed=3) if added else None
    args = [t if t is None or t.dim() == 1 else comparison.strided(t, how) for t in (x, weight, bias, residual)]

    def call(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if glu:
            return blockdiag_glu(x, weight, activation, bias, residual)
        return m2gen.blockdiag_linear(x, weight, bias, activation, residual)

    def wanted(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        beside = None if residual is None else residual.unflatten(1, (-1, 1, width))
        return exact(kernels.blocks_of(x, 4), weight, Epilogue(bias, activation, glu, beside)).flatten(1)

    high = [None if t is None else t.double().requires_grad_() for t in args]
    expected = wanted(*high)
    comparison.close(call(*args), expected, "y")
    (spec,) = planned
    assert (spec.bias, spec.activation, spec.glu, spec.residual) == (biased, activation, glu, added)
    leaves = [None if t is None else t.detach().requires_grad_() for t in args]
    dy = comparison.strided(comparison.draw(*expected.shape, dtype=dtype, seed=7), how)
    y = call(*leaves)
    assert planned == [spec, spec]
    comparison.close(y, expected, "y where gradients follow")
    found = torch.autograd.grad(y, [t for t in leaves if t is not None], dy)
    behind = ["dz"] * (glu or activation is not None)
    assert [one.part for one in planned[2:] if one.name.startswith("blockdiag")] == [*behind, "fwd", "dw"]
    assert not any(one.residual or one.glu for one in planned[2:] if one.name.startswith("blockdiag_fwd"))
    grads = torch.autograd.grad(expected, [t for t in high if t is not None], dy.double())
    for name, one, grad in zip(("x", "weight", "bias", "residual"), found, grads, strict=False):
        assert (one.double() - grad).abs().max() <= 4 * comparison.BOUND[dtype] * grad.abs().max(), name


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2), (3,)])
def test_what_no_gradient_asks_for_is_not_launched(planned: list[Any], needed: tuple[int, ...]) -> None:
    shapes = ((9, 12), (4, 5, 3), (20,), (9, 10))
    tensors = [comparison.draw(*shape, seed=i).requires_grad_(i in needed) for i, shape in enumerate(shapes)]
    y = blockdiag_glu(tensors[0], tensors[1], "gelu", tensors[2], tensors[3])
    torch.autograd.grad(y.sum(), [tensors[i] for i in needed])
    of_x, of_weight = ["fwd"] * (0 in needed), ["dw"] * (1 in needed or 2 in needed)
    before = ["dz"] * bool(of_x or of_weight)
    assert [one.part for one in planned if one.name.startswith("blockdiag")] == ["fwd", *before, *of_x, *of_weight]


def test_further_derivatives_and_double_precision_are_composed(planned: list[Any]) -> None:
    """A gradient's gradient, by products and PyTorch's operators; float64, which no kernel takes, throughout."""
    for dtype in (torch.float32, torch.float64):
        args = [comparison.draw(*shape, seed=i).to(dtype) for i, shape in enumerate(((6, 8), (4, 3, 2), (12,)))]

        def slope(function: Any, args: list[Tensor]) -> tuple[Tensor, ...]:
            leaves = [t.detach().requires_grad_() for t in args]
            first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
            return torch.autograd.grad(sum(one.square().sum() for one in first), leaves)

        def composed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return exact(kernels.blocks_of(x, 4), weight, Epilogue(bias, "silu", True)).flatten(1)

        found = slope(lambda x, w, b: blockdiag_glu(x, w, "silu", b), args)
        for one, want in zip(found, slope(composed, [t.double() for t in args]), strict=True):
            assert (one.double() - want).abs().max() <= 1e-4 * want.abs().max()
    assert {one.dtype for one in planned} == {"fp32"}


@pytest.mark.parametrize("dtype, glu", list(zip(comparison.BOUND, (True, False, True), strict=True)), ids=str)
def test_blocks_larger_than_a_tile(dtype: torch.dtype, glu: bool) -> None:
    """More than one tile of rows, outputs and inputs."""
    x = kernels.blocks_of(comparison.draw(130, 2 * 70, dtype=dtype), 2)
    weight, bias = comparison.draw(2, 133, 70, dtype=dtype, seed=1), comparison.draw(266, dtype=dtype, seed=2)
    y = kernels.blocks_of(torch.empty(130, 133 if glu else 266, dtype=dtype), 1 if glu else 2)
    check(x, weight / 70**0.5, Epilogue(bias, "gelu", glu, comparison.draw(*y.shape, dtype=dtype, seed=3)), y)


def test_every_candidate_gives_the_product() -> None:
    """All tiles that planning may choose, not the quickest alone, of both kinds of kernel."""
    limits = target("sm90")
    x, weight = comparison.draw(40, 4, 4, 40, dtype=torch.float16), comparison.draw(16, 24, 40, dtype=torch.float16)
    expected = exact(x.double(), weight.double(), Epilogue())
    sizes = BlockdiagSizes(40, 16, 40, 24, "fp16", apart_x=True)
    tried = {(one.spec.blocks, one.spec.block_r, one.spec.block_n): one.spec for one in candidates(sizes, limits)}
    assert {blocks for blocks, _, _ in tried} >= {1, 2, 16}
    for spec in list(tried.values())[::5]:
        comparison.close(kernels.product(x, weight, spec=spec).flatten(1, 2), expected, spec.name)


@pytest.mark.parametrize("blocks", [1, 2])
def test_rows_are_summed_in_parts_in_their_order(blocks: int) -> None:
    x = comparison.draw(150, 3, 1, 17, dtype=torch.float16)
    dz = comparison.draw(150, 3, 1, 20, dtype=torch.float16, seed=1)
    sizes = BlockdiagSizes(150, 3, 17, 20, "fp16", bias=True)
    spec = next(one.spec for one in candidates(sizes, comparison.SMALL, "dw") if one.spec.blocks == blocks)
    spec = replace(spec, block_r=16, block_n=32, block_k=32)
    wanted = torch.einsum("rbn,rbk->bnk", dz.flatten(1, 2).double(), x.flatten(1, 2).double())
    for parts in (1, 3):
        choice = Candidate(spec, 0.0, 0.0, parts)
        first, second = (kernels.weight_gradients(dz, x, True, choice) for _ in range(2))
        comparison.close(first[0], wanted, f"dw in {parts}")
        comparison.close(first[1], dz.double().sum(0).flatten(), f"dbias in {parts}")
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("shapes", [[(6, 5, 4), (5, 7, 6)], [(4, 4, 5), (8, 3, 2), (12, 3, 2)]])
def test_a_monarch_s_stages_are_strides(shapes: list[tuple[int, int, int]]) -> None:
    """Stage by stage on views, with no copy in between, against the matrix in float64."""
    factors = [comparison.draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    x = comparison.draw(9, shapes[0][0] * shapes[0][2])
    expected = x.double() @ oracle.standard([f.double() for f in factors]).T
    for factor, inner in zip(factors, inner_widths(shapes), strict=True):
        nblocks, width, depth = factor.shape
        y = torch.empty(len(x), nblocks * width)
        kernels.product(kernels.before_stage(x, depth, inner), factor, y=kernels.behind_stage(y, nblocks))
        x = y
    comparison.close(x, expected)


@pytest.mark.parametrize("apart", [0, 1, 3])
def test_offsets_pass_two_to_the_31(apart: int) -> None:
    """Rows, blocks or entries further apart than 32 bits count; the memory between them is never touched."""
    far = 2**31 + 24
    strides = [2, 4, 4, 1]
    strides[apart] = far
    weight = comparison.draw(2, 2, 2, dtype=torch.float16)
    near, dz = (comparison.draw(2, 2, 1, 2, dtype=torch.float16, seed=seed) for seed in (1, 2))
    x, y = (torch.empty(far + 64, dtype=torch.float16).as_strided(near.shape, strides) for _ in range(2))
    x.copy_(near)
    expected = kernels.product(near, weight)
    assert torch.equal(kernels.product(x, weight, y=y), expected)
    y.copy_(dz)
    found, wanted = (kernels.weight_gradients(*pair, bias=True) for pair in ((y, x), (dz, near)))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_nothing_is_computed_of_nothing() -> None:
    weight = comparison.draw(2, 3, 4)
    assert kernels.product(torch.empty(0, 2, 1, 4), weight).shape == (0, 2, 1, 3)
    grads = kernels.gradients(torch.empty(0, 2, 1, 3), torch.empty(0, 2, 1, 4), weight, Epilogue(bias=torch.ones(6)))
    assert (grads.weight == 0).all() and (grads.bias == 0).all()
    y = kernels.product(torch.empty(3, 2, 1, 0), torch.empty(2, 3, 0), Epilogue(bias=torch.arange(6.0)))
    assert torch.equal(y.flatten(1), torch.arange(6.0).expand(3, 6))


def test_what_is_not_a_number_stays_in_its_row() -> None:
    x, weight = comparison.draw(20, 2, 1, 5), comparison.draw(2, 6, 5)
    clean = kernels.product(x, weight, Epilogue(activation="relu"))
    x[3, 0, 0, 2] = float("nan")
    y = kernels.product(x, weight, Epilogue(activation="relu"))
    assert y[3, 0].isnan().all() and torch.equal(y[4:], clean[4:]) and torch.equal(y[:, 1], clean[:, 1])


@pytest.mark.parametrize(
    ("which", "words"),
    [("fwd", "bias"), ("fwd", "gelu glu"), ("dz", "gelu glu"), ("dz", "bias silu"), ("dz", "relu glu residual"),
     ("dx", "bias"), ("dx", "gelu glu"), ("dw", "gelu glu"), ("dw", "bias relu"), ("bias", "bias"),
     ("bias", "bias gelu glu")],
)  # fmt: skip
def test_a_trial_finds_what_is_wrong(which: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the kernels in turn gives a number too large; right ones pass (tests/runtime/test_trial.py)."""
    problem = parse(f"blockdiag in=20 out=24 blocks=2 rows=40 fp32 {words}")
    plan = next(plan for plan in rank(problem, comparison.SMALL).plans if plan.solver == "fused")
    run, sums = kernels._run, kernels.weight_gradients

    def wrong_run(spec: BlockdiagSpec, x: Tensor, weight: Tensor, after: Epilogue, beside: Tensor, y: Tensor) -> None:
        run(spec, x, weight, after, beside, y)
        turned = weight.stride(2) != 1
        if which == ("dx" if turned else spec.part):
            y[-1, 0, 0, -1] += 0.1 * y.abs().max()

    def wrong_sums(*args: Any) -> tuple[Tensor, Tensor | None]:
        dw, dbias = sums(*args)
        changed = dw if which == "dw" else dbias
        if which in ("dw", "bias") and changed is not None:
            changed.view(-1)[-1] += 0.01 * changed.abs().max()
        return dw, dbias

    monkeypatch.setattr(kernels, "_run", wrong_run)
    monkeypatch.setattr(kernels, "weight_gradients", wrong_sums)
    names = {"fwd": "result", "dz": "gradient of", "dx": "gradient of x", "dw": "gradient of weight"}
    name = names.get(which, "gradient of bias")
    assert f"it is wrong: {name}" in str(judged(plan, problem, torch.device("cpu")))

"""Generated Monarch kernels against float64: any blocks, orders and strides, every gradient, the same bits always."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.config import config
from m2gen.device.limits import target
from m2gen.planner.monarch.run import backward_run, spec_of
from m2gen.planner.monarch.solvers import Native, Staged
from m2gen.planner.monarch.steps import NativeMonarch
from m2gen.reference import monarch as oracle
from m2gen.runtime import executor, posed
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.monarch import NativeKernel, StagedKernel
from m2gen.runtime.build.cpp_kernel import available, compile_text
from m2gen.runtime.build.limits import live
from m2gen.testing.tolerances import check

pytestmark = [pytest.mark.skipif(available() is not None, reason="no C++ compiler"), pytest.mark.generated]
HELD = config().aten_cpu_capability
ARCHS = (live(torch.device("cpu")).arch,) if HELD else ("avx512", "avx2", "generic", "neon")
DTYPES = (torch.float32, torch.float64)
Shapes = tuple[tuple[int, int, int], ...]
NAMED: tuple[Shapes, ...] = (
    ((16, 16, 16), (16, 16, 16)),
    ((8, 8, 8), (8, 8, 8), (8, 8, 8)),
    ((4, 24, 40), (4, 40, 24)),  # few blocks, rectangular
    ((13, 7, 11), (7, 3, 13)),  # primes
    ((1, 17, 33),),
    ((3, 5, 20),),
    ((1, 1, 1), (1, 1, 1)),
    ((2, 6, 3), (12, 1, 1), (6, 2, 2), (4, 5, 3)),
)


@pytest.fixture(autouse=True)
def threads_stay() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@st.composite
def blocks(draw: st.DrawFn) -> Shapes:
    """Factors that fit together, of order 1 to 4: the widths of the inner ones first, then what flows from them."""
    order, size = draw(st.integers(1, 4)), st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9])
    outs, ins = ([draw(size) for _ in range(order)] for _ in range(2))
    if order == 1:
        return ((draw(size), outs[0], ins[0]),)
    counts = [draw(st.sampled_from([1, 2, 3])) * prod(ins[2:])]  # of the second factor
    for i in range(2, order):
        counts.append(counts[-1] * outs[i - 1] // ins[i])
    entering = counts[0] * ins[1]
    first = draw(st.sampled_from([d for d in range(1, entering + 1) if entering % d == 0]))
    return ((first, entering // first, ins[0]), *zip(counts, outs[1:], ins[1:], strict=True))


def drawn(shapes: Shapes, rows: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Tensor]:
    """x, factors, dy."""
    x = torch.randn(rows, shapes[0][0] * shapes[0][2], dtype=dtype)
    return (
        x,
        [torch.randn(s, dtype=dtype) for s in shapes],
        torch.randn(rows, shapes[-1][0] * shapes[-1][1], dtype=dtype),
    )


def kernel(x: Tensor, factors: list[Tensor]) -> NativeKernel:
    """The generated one, whether it is the fastest plan of this CPU or not."""
    shapes = tuple([tuple(f.shape) for f in factors])
    problem = posed.monarch_problem(shapes, x.numel() // (shapes[0][0] * shapes[0][2]), x.dtype)
    plan = next(Native().candidates(problem, executor.live(x.device)))
    assert isinstance(plan.body, NativeMonarch)
    return NativeKernel(problem, plan.body)


def run(x: Tensor, factors: list[Tensor]) -> Tensor:
    y = kernel(x, factors).product(x, factors)
    assert y.is_contiguous()
    return y


def back(dy: Tensor, x: Tensor, factors: list[Tensor], needs: list[bool] | None = None) -> list[Tensor | None]:
    grads = kernel(x, factors).gradients(dy, x, factors, needs or [True] * (1 + len(factors)))
    assert grads is not None
    return grads


def exact(x: Tensor, factors: list[Tensor], dy: Tensor, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """y, dx and every dw by the dense matrix in float64, of `change` of the operands."""
    leaves = [change(t.double()).clone().requires_grad_() for t in (x, *factors)]
    y = leaves[0] @ oracle.standard(leaves[1:]).T
    return [y.detach(), *torch.autograd.grad(y, leaves, change(dy.double()))]


def check_all(x: Tensor, factors: list[Tensor], dy: Tensor) -> None:
    found = [run(x, factors), *back(dy, x, factors)]
    terms = sum(f.shape[1] + f.shape[2] for f in factors) + len(x) + 1
    for one, want, size in zip(
        found, exact(x, factors, dy, lambda t: t), exact(x, factors, dy, torch.abs), strict=True
    ):
        assert one is not None
        check(one, want, size, terms)


@settings(deadline=None, max_examples=40)
@given(blocks(), st.sampled_from([1, 2, 3, 5, 8, 9, 16, 17, 31, 40]), st.sampled_from(DTYPES))
def test_any_blocks(shapes: Shapes, rows: int, dtype: torch.dtype) -> None:
    check_all(*drawn(shapes, rows, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", NAMED, ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_every_vector(arch: str, shapes: Shapes, dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    """On every width of vectors that runs here: one row, a group that is not full, several groups, two parts."""
    cpu(arch)
    for rows in (1, 13, 130, 300):
        check_all(*drawn(shapes, rows, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", NAMED[:4], ids=str)
def test_strides(shapes: Shapes, dtype: torch.dtype) -> None:
    """Rows far apart, numbers far apart, one row for all, factors transposed, and any leading shape: the same bits."""
    x, factors, dy = drawn(shapes, 30, dtype)
    y, grads = run(x, factors), back(dy, x, factors)

    def wide(t: Tensor) -> Tensor:
        return torch.cat([t, torch.full_like(t, torch.nan)], 1)[:, : t.shape[1]]

    def turned(t: Tensor) -> Tensor:
        return t.movedim(0, -1).contiguous().movedim(-1, 0)

    for layout in (wide, turned):
        for other in (factors, [turned(f) for f in factors], [f.mT.contiguous().mT for f in factors]):
            assert torch.equal(run(layout(x), other), y)
            assert all(map(torch.equal, back(layout(dy), layout(x), other), grads))  # type: ignore[arg-type]
    assert torch.equal(run(x.view(2, 3, 5, -1), factors), y.view(2, 3, 5, -1))
    assert torch.equal(run(x[0], factors), y[0])
    assert torch.equal(run(x[:1].expand(9, -1), factors), y[:1].expand(9, -1))


@pytest.mark.parametrize("shapes", NAMED[:4], ids=str)
def test_each_gradient_alone(shapes: Shapes) -> None:
    x, factors, dy = drawn(shapes, 150, torch.float32)
    grads = back(dy, x, factors)
    for needs in product((True, False), repeat=1 + len(factors)):
        for one, whole, need in zip(back(dy, x, factors, list(needs)), grads, needs, strict=True):
            assert (one is not None) == need
            assert one is None or torch.equal(one, whole)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", NAMED[:5], ids=str)
@pytest.mark.parametrize("arch", ARCHS)
def test_a_row_has_the_same_bits_in_any_company(
    arch: str, shapes: Shapes, dtype: torch.dtype, cpu: Callable[[str], None]
) -> None:
    cpu(arch)
    torch.set_num_threads(1)
    x, factors, dy = drawn(shapes, 200, dtype)
    y, dx = run(x, factors), back(dy, x, factors)[0]
    assert dx is not None
    for count in (*range(1, 34), 63, 64, 65, 127, 129, 199):
        begin = count * 7 % (200 - count)
        rows = slice(begin, begin + count)
        assert torch.equal(run(x[rows], factors), y[rows]), count
        part = back(dy[rows], x[rows], factors, [True, *[False] * len(factors)])[0]
        assert part is not None and torch.equal(part, dx[rows]), count


def test_the_same_bits_with_any_number_of_threads() -> None:
    """Of rows, and of sums over them: work enough for a second thread, and several parts."""
    shapes: Shapes = ((16, 16, 16), (16, 16, 16))
    x, factors, dy = drawn(shapes, 700, torch.float32)
    limits = live(torch.device("cpu"))
    planned = backward_run(700, shapes, spec_of("bwd", "fp32", limits.vector_bytes, limits.arch), True)
    assert planned.parts > 2 and planned.parallel
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found += [[run(x, factors), *back(dy, x, factors)] for _ in range(3)]
    for one in found[1:]:
        assert all(map(torch.equal, one, found[0]))  # type: ignore[arg-type]


def test_what_is_left_to_others() -> None:
    """Large blocks go stage by stage; without numbers there is nothing to compute."""
    x, factors, dy = drawn(NAMED[0], 5, torch.float32)
    large, few, _ = drawn(((1, 3, 513),), 2, torch.float32)
    assert isinstance(executor._of_monarch(large, few), StagedKernel)
    assert executor.monarch(x[:0], factors).shape == (0, 256)
    grads = executor.monarch_gradients(dy[:0], x[:0], factors, [True, False, True])
    assert grads[0] is not None and grads[0].shape == (0, 256) and grads[1] is None and not grads[2].any()
    for sizes in (((0, 2, 2),), ((2, 0, 3), (4, 2, 0))):
        a, b, c = drawn(sizes, 4, torch.float32)
        a.requires_grad_()
        y = m2gen.monarch_matmul(a, [f.requires_grad_() for f in b])
        grads = torch.autograd.grad(y, [a, *b], c)
        assert not y.any() and not any(g.any() for g in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_widened_and_rounded_once(dtype: torch.dtype) -> None:
    x, factors, dy = (t.to(dtype) if isinstance(t, Tensor) else t for t in drawn(NAMED[2], 70, torch.float32))
    x, factors = x / 8, [(f / 8).to(dtype) for f in factors]
    wide = x.float(), [f.float() for f in factors]
    assert torch.equal(run(x, factors), run(*wide).to(dtype)) and run(x, factors).dtype is dtype
    for one, other in zip(back(dy, x, factors), back(dy.float(), *wide), strict=True):
        assert one is not None and other is not None and torch.equal(one, other.to(dtype))


def test_numbers_whose_sign_is_only_noted() -> None:
    x, factors, dy = drawn(NAMED[0], 70, torch.float32)
    minus = [factors[0], torch._neg_view(factors[1])]
    assert torch.equal(run(torch._neg_view(x), factors), -run(x, factors))
    assert torch.equal(run(x, minus), -run(x, factors))
    for one, other in zip(back(torch._neg_view(dy), x, minus), back(dy, x, factors), strict=True):
        assert one is not None and other is not None
        assert torch.equal(one, other) or torch.equal(one, -other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_stages_one_after_the_other_agree(dtype: torch.dtype) -> None:
    for shapes in NAMED:
        x, factors, dy = drawn(shapes, 70, dtype)
        terms = sum(f.shape[1] + f.shape[2] for f in factors) + len(x)
        sizes = exact(x, factors, dy, torch.abs)
        problem = posed.monarch_problem(shapes, len(x), dtype)
        (plan,) = Staged().candidates(problem, executor.live(x.device))
        staged = kernel_of(plan)
        # whichever is planned, with however many rows, the bits are the same: each sum is one chain
        assert torch.equal(staged.product(x, factors), run(x, factors))
        others = staged.gradients(dy, x, factors, [True] * (1 + len(factors)))
        assert torch.equal(others[0], back(dy, x, factors)[0])
        for one, other, size in zip(back(dy, x, factors), others, sizes[1:], strict=True):
            assert one is not None and other.is_contiguous()
            check(one, other.double(), size, 4 * terms)


@pytest.mark.parametrize("arch", ["avx512", "avx2"])
@pytest.mark.parametrize("part", ["fwd", "bwd"])
def test_tiles_stay_in_registers(part: str, arch: str) -> None:
    """The inner loop of the widest tile keeps its sums and reads every vector once."""
    spec = spec_of(part, "fp32", target(arch).vector_bytes, arch)  # type: ignore[arg-type]
    lines = [line.strip() for line in compile_text(spec, arch).splitlines()]
    vectors, outputs = spec.tiles[0]
    steps = 4  # of the reduction, which is unrolled
    full = [loop for loop in _inner_loops(lines) if sum("vfmadd" in line for line in loop) == steps * vectors * outputs]
    assert full
    for loop in full:  # a sum that did not stay would be read, too
        reads = [line for line in loop if line.startswith("v") and "(" in line]
        assert len(reads) == steps * (vectors + outputs), spec.name


def _inner_loops(lines: list[str]) -> list[list[str]]:
    """Stretches from a label to the jump back to it, without another label between."""
    found, start = [], 0
    for i, line in enumerate(lines):
        if line.endswith(":"):
            start = i
        elif line.startswith("j") and lines[start].rstrip(":") == line.split()[-1]:
            found.append(lines[start : i + 1])
    return found

"""Generated products with block-diagonal weights against float64: every tile height, remainder, stride and part."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import m2gen
from m2gen.kernels.blockdiag_mm import TILE_ROWS, BlockdiagMmSpec
from m2gen.planner.blockdiag.steps import NativeProduct
from m2gen.runtime.build.cpp_kernel import available, compile_text
from m2gen.runtime.executor import product, product_outer
from m2gen.runtime.posed import product_problem
from m2gen.testing.tolerances import check

pytestmark = [pytest.mark.skipif(available() is not None, reason="no C++ compiler"), pytest.mark.generated]
ROWS = (1, 3, 24, 25, 63, 127, 128, 200)
SIZES = ((1, 16, 7), (1, 40, 33), (3, 17, 16), (4, 48, 20), (2, 100, 64), (2, 1, 5), (4, 192, 80))
DTYPES = (torch.float32, torch.float64)


def blocks(x: Tensor, weight: Tensor) -> Tensor:
    """The product, in the dtype of its arguments."""
    nblocks, _, k = weight.shape
    return torch.einsum("rck,cnk->rcn", x.view(-1, nblocks, k), weight).flatten(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_product(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    nblocks, n, k = sizes
    for rows in ROWS:
        x, w = torch.randn(rows, nblocks * k, dtype=dtype), torch.randn(nblocks, n, k, dtype=dtype)
        bias = torch.randn(nblocks * n, dtype=dtype)
        reference, size = blocks(x.double(), w.double()), blocks(x.double().abs(), w.double().abs())
        wide = torch.cat([x, torch.full_like(x, torch.nan)], 1)[:, : nblocks * k]  # rows farther apart
        for one, weight in ((x, w), (wide, w.mT.contiguous().mT), (x.t().contiguous().t(), w[:, :, :])):
            y = product(one, weight, bias)
            check(y, reference + bias, size + bias.abs(), k + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES)
def test_outer(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    nblocks, n, k = sizes
    for rows in (1, 24, 255, 257, 600):
        dy, x = torch.randn(rows, nblocks * n, dtype=dtype), torch.randn(rows, nblocks * k, dtype=dtype)
        found = product_outer(dy, x, nblocks)
        step = m2gen.plan(product_problem(sizes, rows, dtype)).body
        assert isinstance(step, NativeProduct)
        assert step.outer is not None or rows < 24 or n < 16, "else PyTorch's is as good"
        parts = dy.double().view(rows, nblocks, n), x.double().view(rows, nblocks, k)
        reference, size = (torch.einsum("rcn,rck->cnk", *(f(p) for p in parts)) for f in (lambda p: p, torch.abs))
        check(found, reference, size, rows)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "activation"), [("gelu", F.gelu), ("silu", F.silu), ("relu", F.relu), (None, lambda z: z)]
)
def test_gated_product(name: str | None, activation: object, dtype: torch.dtype) -> None:
    for sizes in ((4, 48, 20), (2, 100, 64)):
        nblocks, n, k = sizes
        x, w = torch.randn(70, nblocks * k, dtype=dtype), torch.randn(nblocks, n, k, dtype=dtype)
        gate, value = blocks(x.double(), w.double()).chunk(2, -1)
        big, wide = blocks(x.double().abs(), w.double().abs()).chunk(2, -1)
        y = product(x, w, None, True, name)
        check(y, activation(gate) * value, big * wide, 2 * k)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_rounded_once(dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    """On a CPU without units for them; in any company as alone."""
    cpu("avx2")
    x, w = torch.randn(300, 4 * 20).to(dtype), torch.randn(4, 48, 20).to(dtype)
    bias, dy = torch.randn(4 * 48).to(dtype), torch.randn(300, 4 * 48).to(dtype)
    y = product(x, w, bias)
    assert torch.equal(y, product(x.float(), w.float(), bias.float()).to(dtype)) and y.is_contiguous()
    assert torch.equal(product(x[7:20], w, bias), y[7:20])
    gated = product(x.float(), w.float(), None, True, "gelu").to(dtype)
    assert torch.equal(product(x, w, None, True, "gelu"), gated)
    assert torch.equal(product_outer(dy, x, 4), product_outer(dy.float(), x.float(), 4).to(dtype))


@pytest.mark.parametrize("name", ["gelu", "silu", "relu"])
def test_activations_over_the_whole_range(name: str) -> None:
    """gate z, value 1: the activation itself, also where it is tiny, infinite or not a number."""
    z = torch.cat(
        [torch.linspace(-14, 14, 3970), torch.tensor([-200.0, 200.0, torch.inf, torch.nan, 0.0, -0.0, 1e-30])]
    )
    w = torch.zeros(2, 1, 2)
    w[0, 0, 0] = w[1, 0, 1] = 1
    x = torch.stack([z, torch.zeros_like(z), torch.zeros_like(z), torch.ones_like(z)], 1)
    y = product(x.nan_to_num(0, 3e38), w, None, True, name)
    finite = x[:, 0].nan_to_num(0, 3e38)
    exact = getattr(F, name)(finite.double())
    if name == "gelu":  # torch's own loses the tail
        exact = finite.double() * torch.special.erfc(-finite.double() / 2**0.5) / 2
    error = (y[:, 0].double() - exact).abs()
    # exp(-z^2 / 2) turns a rounding of z into z^2 of them, 90 eps at z = 14; below 1e-35 nothing is told apart
    assert (error <= 2e-5 * exact.abs() + 1e-35).all()
    assert (error / exact.abs())[exact.abs() > 1e-3].max() < 2e-6
    nan = product(torch.full((24, 4), torch.nan), w, None, True, name)
    assert nan.isnan().all()


def test_the_same_bits_with_any_number_of_threads_and_rows() -> None:
    """Of rows and of a sum over them; more about rows is in test_company.py."""
    torch.manual_seed(0)
    x, w, dy = torch.randn(700, 96), torch.randn(2, 200, 48), torch.randn(700, 400)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, dw = product(x, w, None), product_outer(dy, x, 2)
            part = product(x[100:151], w, None)
            assert torch.equal(part, y[100:151])
            found.append((y, dw))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, found[0][0]) and torch.equal(dw, found[0][1]) for y, dw in found)


@pytest.mark.parametrize(("arch", "bytes_", "registers"), [("avx512", 64, 32), ("avx2", 32, 16)])
def test_tiles_stay_in_registers(arch: str, bytes_: int, registers: int) -> None:
    """The inner loop of the widest tile stores nothing: every product adds to a register."""
    for columns in TILE_ROWS[registers]:
        spec = BlockdiagMmSpec(
            part="outer", columns=columns, dtype="fp32", vector_bytes=bytes_, registers=registers, arch=arch
        )
        lines = [line.strip() for line in compile_text(spec, arch).splitlines()]
        loops = _inner_loops(lines)
        full = [loop for loop in loops if sum("vfmadd" in line for line in loop) == spec.rows * columns]
        assert full, spec.name
        for loop in full:
            assert not [line for line in loop if line.startswith("vmov") and line.endswith("(%rsp)")], spec.name


def _inner_loops(lines: list[str]) -> list[list[str]]:
    """Stretches from a label to the jump back to it, without another label between."""
    found, start = [], 0
    for i, line in enumerate(lines):
        if line.endswith(":"):
            start = i
        elif line.startswith("j") and lines[start].rstrip(":") == line.split()[-1]:
            found.append(lines[start : i + 1])
    return found


@pytest.mark.parametrize(("rows", "nblocks", "outputs", "inputs"), [(1000, 1, 3, 1), (257, 1, 1, 100), (5, 2, 7, 9)])
def test_few_outputs_and_rows_have_gradients_of_the_same_bits(
    rows: int, nblocks: int, outputs: int, inputs: int
) -> None:
    """A weight's gradient on any number of threads, as a regression's head has it."""
    x, dy = torch.randn(rows, nblocks * inputs), torch.randn(rows, nblocks * outputs)
    weight, threads, found = torch.randn(nblocks, outputs, inputs, requires_grad=True), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.autograd.grad(m2gen.blockdiag_linear(x, weight), weight, dy)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_nothing_is_read_between_rows() -> None:
    apart = torch.full((390, 17), float("nan"), dtype=torch.bfloat16)
    apart[1::3] = torch.randn(130, 17).bfloat16()
    assert m2gen.blockdiag_linear(apart[1::3], torch.randn(1, 7, 17).bfloat16()).isfinite().all()

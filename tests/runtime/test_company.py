"""A row of a result has the same bits in any company: alone, in a batch, in whatever place, with any number of threads.

On every width of vectors that this machine runs. A sum over rows, a weight's gradient, depends on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from m2gen.device.limits import target
from m2gen.modules.linear import dense_linear
from m2gen.ops.blockdiag_linear import blockdiag_linear
from m2gen.planner.problems import parse
from m2gen.runtime import executor
from m2gen.runtime.bindings.native import NativeKernel
from m2gen.runtime.bindings.spectral import Operands
from m2gen.runtime.build.cpp_kernel import available
from m2gen.runtime.executor import product
from m2gen.testing.operands import operands
from tests.runtime.test_native import TENSORS, as_bhl, kernel_with, native_plan, outputs

# most compile for the CPUs of other rows by themselves, and are not `generated`
pytestmark = pytest.mark.skipif(available() is not None, reason="no C++ compiler")
ARCHS = ("avx512", "avx2", "generic", "neon")
DTYPES = (torch.float32, torch.float64)
ROWS = 200  # enough for a weight that is packed beforehand, and for two parts
FEW = (*range(1, 34), 63, 64, 65, 127, 128, 129, 199)  # every remainder of a tile, both sides of every bound


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def check_rows(function: Callable[[Tensor], Tensor | None], x: Tensor) -> None:
    """`function` of all rows of x, and of some of them."""
    whole = function(x)
    assert whole is not None
    for count in FEW:
        begin = count * 7 % (len(x) - count)
        part = function(x[begin : begin + count])
        assert part is not None
        assert torch.equal(part, whole[begin : begin + count]), f"{count} rows from {begin} on"
    for threads in (2, 3):
        torch.set_num_threads(threads)
        for rows in (slice(0, 19), slice(0, len(x))):
            again = function(x[rows])
            assert again is not None and torch.equal(again, whole[rows]), f"{threads} threads"
        torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vectors", [1, 2, 3, 4])
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_of_a_product(arch: str, vectors: int, dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    """Tiles of one to four vectors of columns, whole ones and a last one; more columns of x than are packed at once."""
    cpu(arch)
    lanes = 8 * max(16, target(arch).vector_bytes) // torch.finfo(dtype).bits
    for nblocks, n, k in ((2, vectors * lanes, 300), (1, vectors * lanes - 1, 20)):
        x, w = torch.randn(ROWS, nblocks * k, dtype=dtype), torch.randn(nblocks, n, k, dtype=dtype)
        bias = torch.randn(nblocks * n, dtype=dtype)
        check_rows(lambda x, w=w, bias=bias: product(x, w, bias), x)
        # the gradient in x: the weight's transpose, as a view
        turned = w.mT.contiguous().mT
        whole = product(x, w, None)
        assert whole is not None
        check_rows(lambda x, turned=turned: product(x, turned, None), x)
        assert torch.equal(product(x, turned, None), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("activation", "dtype"), [*(("gelu", dtype) for dtype in DTYPES), ("silu", torch.float32), (None, torch.float64)]
)
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_of_a_gated_product(
    arch: str, activation: str | None, dtype: torch.dtype, cpu: Callable[[str], None]
) -> None:
    cpu(arch)
    x, w = torch.randn(ROWS, 4 * 260, dtype=dtype), torch.randn(4, 51, 260, dtype=dtype)
    check_rows(lambda x: product(x, w, None, True, activation), x)
    # in two steps, as where gradients are on
    z = product(x, w, None)
    whole = product(x, w, None, True, activation)
    assert z is not None and whole is not None
    assert torch.equal(executor.gated(z, activation), whole)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        *(("gelu", dtype) for dtype in (torch.float16, torch.bfloat16, *DTYPES)),
        *(("silu", dtype) for dtype in (torch.bfloat16, torch.float32)),
        *(("relu", dtype) for dtype in (torch.float16, torch.float64)),
    ],
)
@pytest.mark.parametrize("arch", ARCHS)
def test_rows_of_a_gate(arch: str, activation: str, dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    cpu(arch)
    z, dy = (3 * torch.randn(ROWS, 2 * 37)).to(dtype), torch.randn(ROWS, 37).to(dtype)
    check_rows(lambda z: executor.gated(z, activation), z)
    check_rows(lambda both: executor.gate_gradient(both[:, :37], both[:, 37:], activation), torch.cat([dy, z], 1))


@pytest.mark.parametrize("dtype", (torch.bfloat16, *DTYPES))
@pytest.mark.parametrize("layout", ["BHL", "BLH"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_short_convolution(arch: str, layout: str, dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    """A sequence of a channel in any batch, among any number of channels, and its taps' gradients among any others."""
    cpu(arch)
    batch, channels, length, width = 3, 75, 150, 4
    x, dy = (torch.randn(batch, length, channels).mT.to(dtype) for _ in range(2))
    if layout == "BHL":
        x, dy = x.contiguous(), dy.contiguous()
    w, bias = torch.randn(channels, width).to(dtype), torch.randn(channels).to(dtype)

    def run(b: slice, h: slice) -> tuple[Tensor, Tensor]:
        part, of_part = x[b, h], dy[b, h]
        y = torch.empty_like(part)
        executor.shortconv(part, w[h], bias[h], width - 1, y)
        dw = torch.empty(part.shape[1], width + 1, dtype=torch.promote_types(dtype, torch.float32))
        executor.shortconv_weight_gradients(part, of_part, width - 1, dw)
        return y, dw

    every = slice(None)
    y, dw = run(every, every)
    for b in range(batch):
        one, _ = run(slice(b, b + 1), every)
        assert torch.equal(one[0], y[b])
    for begin, end in ((0, 16), (3, 75), (16, 49), (40, 72)):
        some, dsome = run(every, slice(begin, end))
        assert torch.equal(some, y[:, begin:end]) and torch.equal(dsome, dw[begin:end]), (begin, end)


@pytest.mark.parametrize("words", ["fp32 causal gated skip", "bf16 circular gated"])
@pytest.mark.parametrize("layout", ["bhl", "blh"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_long_convolution(arch: str, layout: str, words: str, cpu: Callable[[str], None]) -> None:
    """A channel of a batch entry has the bits that the same plan gives it alone and among others, backwards, too."""
    cpu(arch)
    problem = parse(f"fftconv n=150 h=41 b=3 {words} {layout}")
    plan = native_plan(problem, arch)
    args, dy = as_bhl(operands(problem)), operands(problem, seed=1)["u"]
    dy = dy.mT if layout == "blh" else dy

    def run(b: slice, h: slice) -> tuple[Tensor, dict[str, Tensor | None]]:
        def part(name: str) -> Tensor | None:
            tensor = args.get(name)
            return None if tensor is None else tensor[b, h] if tensor.dim() == 3 else tensor[h]

        x = Operands(*(part(name) for name in TENSORS))  # type: ignore[arg-type]
        kernel: NativeKernel = kernel_with(
            replace(plan, problem=replace(problem, b=x.u.shape[0], h=x.u.shape[1])), arch=arch
        )
        out = outputs(x)
        kernel.backward(dy[b, h], x, out)
        return kernel.forward(x), {name: getattr(out, name) for name in TENSORS}

    every = slice(None)
    y, grads = run(every, every)
    for b in range(3):
        one, back = run(slice(b, b + 1), every)
        assert torch.equal(one[0], y[b])
        for name in ("u", "pre_gate", "post_gate"):
            assert (was := grads[name]) is None or torch.equal(back[name][0], was[b]), name  # type: ignore[index]
    for begin, end in ((0, 1), (0, 40), (16, 41), (5, 37)):
        some, back = run(every, slice(begin, end))
        assert torch.equal(some, y[:, begin:end]), (begin, end)
        for name, was in grads.items():
            if was is not None:
                here = was[:, begin:end] if was.dim() == 3 else was[begin:end]
                assert torch.equal(back[name], here), (name, begin, end)  # type: ignore[arg-type]


@pytest.mark.generated
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_text_of_few_tokens(dtype: torch.dtype) -> None:
    """Through the public calls: eight tokens alone and in a batch of four texts, a pooled row alone and in a batch."""
    w, blocks, bias = (
        torch.randn(90, 64, dtype=dtype),
        torch.randn(4, 24, 16, dtype=dtype),
        torch.randn(90, dtype=dtype),
    )
    texts = torch.randn(4, 8, 64, dtype=dtype)
    dense, blocked = dense_linear(texts, w, bias), blockdiag_linear(texts, blocks, None)
    pooled = dense_linear(texts[:, 0], w)
    for i in range(4):
        assert torch.equal(dense_linear(texts[i : i + 1], w, bias)[0], dense[i])
        assert torch.equal(blockdiag_linear(texts[i : i + 1], blocks, None)[0], blocked[i])
        assert torch.equal(dense_linear(texts[i : i + 1, 0], w)[0], pooled[i])


@pytest.mark.parametrize("shapes", [((64, 64, 64),) * 2, ((2, 512, 500), (32, 20, 32)), ((3, 511, 65), (511, 5, 3))])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *DTYPES])
def test_a_monarch_product(dtype: torch.dtype, shapes: tuple[tuple[int, int, int], ...]) -> None:
    """As planned for each number of rows: 16 bits are rounded at the same places, whoever multiplies."""
    x = torch.randn(140, shapes[0][0] * shapes[0][2]).to(dtype)
    factors = [(torch.randn(shape) / shape[2] ** 0.5).to(dtype) for shape in shapes]
    ways = {type(executor._of_monarch(x[:rows], factors)) for rows in (1, 5, 64, 140)}
    if dtype.itemsize == 2 and len(ways) == 1 and "Staged" in str(ways):
        pytest.skip("a processor with units for 16 bits: PyTorch's library, which promises nothing")
    whole = executor.monarch(x, factors)
    for rows in (slice(0, 1), slice(3, 8), slice(70, 140), slice(9, 140)):
        assert torch.equal(executor.monarch(x[rows], factors), whole[rows])

"""What follows a block-diagonal product in its kernel, bias, activation, gate and residual, against float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import m2gen
from m2gen.device.limits import LIMITS
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.runtime.build.cpp_kernel import available
from m2gen.runtime.executor import product
from m2gen.testing.tolerances import check

pytestmark = [pytest.mark.skipif(available() is not None, reason="no C++ compiler"), pytest.mark.generated]
ACTIVATIONS: dict[str | None, Any] = {None: lambda z: z, "gelu": F.gelu, "relu": F.relu, "silu": F.silu}
# (activation, glu, outputs of a block): tiles of one vector and of several, full and not
FORMS = [(None, False, 1), (None, False, 33), (None, True, 17), ("gelu", False, 48), ("gelu", True, 16),
         ("relu", False, 7), ("silu", True, 5), ("silu", False, 16)]  # fmt: skip
BESIDE = st.sampled_from(["as is", "rows apart", "turned", "step", "one row", "one number", "backwards"])


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def laid(x: Tensor, how: str) -> Tensor:
    """x (rows, n) in another memory; what lies between its numbers is none."""
    gap = torch.full_like(x, torch.nan)
    changes: dict[str, Callable[[], Tensor]] = {
        "as is": lambda: x.clone(),
        "rows apart": lambda: torch.cat([x, gap], 1)[:, : x.shape[1]],
        "turned": lambda: x.t().contiguous().t(),
        "step": lambda: torch.stack([x, gap], -1).flatten(-2)[:, ::2],
        "one row": lambda: x[:1].expand_as(x),
        "one number": lambda: x[:1, :1].expand_as(x),
        "backwards": lambda: torch._neg_view(-x),
    }
    return changes[how]()


def exact(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, glu: bool, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The result in float64, and the size of the terms of its sums."""
    x, weight = x.double().view(len(x), len(weight), -1), weight.double()
    y, scale = (torch.einsum("rck,cnk->rcn", f(x), f(weight)).flatten(1) for f in (lambda t: t, torch.abs))
    if bias is not None:
        y, scale = y + bias.double(), scale + bias.double().abs()
    act = ACTIVATIONS[activation]
    if glu:
        (gate, value), (first, second) = y.chunk(2, -1), scale.chunk(2, -1)
        y, scale = act(gate) * value, first * (1 + value.abs()) + (1 + gate.abs()) * second
    else:
        y = act(y)
    return (y, scale) if residual is None else (y + residual.double(), scale + residual.double().abs())


def call(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, glu: bool, residual: Tensor | None
) -> Tensor:
    """The public function."""
    if glu:
        return blockdiag_glu(x, weight, activation, bias, residual)
    return m2gen.blockdiag_linear(x, weight, bias, activation, residual)


def operands(
    form: tuple[str | None, bool, int], rows: int, pairs: int, k: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and residual, normal numbers."""
    _, glu, n = form
    nblocks = 2 * pairs if glu else pairs
    shapes = ((rows, nblocks * k), (nblocks, n, k), (nblocks * n,), (rows, pairs * n))
    x, weight, bias, residual = (torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes)
    return x, weight, bias, residual


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(FORMS),
    st.sampled_from([1, 2, 7, 24, 67, 128, 131]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2, 13, 64, 257, 300]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    st.booleans(),
    st.one_of(st.none(), BESIDE),
    st.integers(0, 2**31),
)
def test_everything_behind_a_product(
    form: tuple[str | None, bool, int],
    rows: int,
    pairs: int,
    k: int,
    dtype: torch.dtype,
    biased: bool,
    beside: str | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x, weight, bias, residual = operands(form, rows, pairs, k, dtype)
    weight = weight / k**0.5
    residual = None if beside is None else laid(residual, beside)
    before = None if residual is None else residual.clone()
    args = (x, weight, bias if biased else None, *form[:2], residual)
    y = call(*args)
    assert y.is_contiguous() and y.dtype == dtype
    check(y, *exact(*args), 2 * k + 2)
    assert residual is None or torch.equal(residual, before), "it is read, not written to"


@pytest.mark.parametrize("arch", [arch for arch, row in LIMITS.items() if row.kind == "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_width_of_vectors(arch: str, dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    cpu(arch)
    for form in (("gelu", False, 19), ("silu", True, 40)):
        for rows in (3, 140):
            x, weight, bias, residual = operands(form, rows, 2, 20, dtype)
            args = (x, weight, bias, *form[:2], laid(residual, "rows apart"))
            check(call(*args), *exact(*args), 42)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_are_rounded_once(dtype: torch.dtype, cpu: Callable[[str], None]) -> None:
    """After the residual is added, on a CPU without units for them."""
    cpu("avx2")
    for form in FORMS[2:5]:
        x, weight, bias, residual = operands(form, 140, 2, 20, dtype)
        y, wide = (call(f(x), f(weight), f(bias), *form[:2], f(residual)) for f in (lambda t: t, lambda t: t.float()))
        assert torch.equal(y, wide.to(dtype))


def test_a_row_has_the_same_bits_in_any_company() -> None:
    """Alone, among few, among so many that the weight is packed before; with any number of threads."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    for form in (FORMS[1], FORMS[3], FORMS[4]):
        x, weight, bias, residual = operands(form, 700, 2, 300, torch.float32)
        y = call(x, weight, bias, *form[:2], residual)
        for begin, end in ((0, 1), (5, 28), (100, 400), (699, 700)):
            some = call(x[begin:end], weight, bias, *form[:2], residual[begin:end])
            assert torch.equal(some, y[begin:end])
        try:
            for count in (1, 3):
                torch.set_num_threads(count)
                assert torch.equal(call(x, weight, bias, *form[:2], residual), y)
        finally:
            torch.set_num_threads(threads)


def test_what_is_no_number_stays_in_its_place() -> None:
    x, weight, bias, residual = operands((None, False, 33), 40, 2, 20, torch.float32)
    clean = call(x, weight, bias, "gelu", False, residual)
    residual[7, 40] = torch.nan
    found = call(x, weight, bias, "gelu", False, residual)
    bad = torch.zeros_like(found, dtype=torch.bool)
    bad[7, 40] = True
    assert found[7, 40].isnan() and torch.equal(found[~bad], clean[~bad])


def test_nothing_to_multiply() -> None:
    """No inputs: what is left is activation(bias) + residual, a tensor of its own."""
    bias, residual = torch.randn(6), torch.randn(4, 6)
    for activation in ACTIVATIONS:
        y = m2gen.blockdiag_linear(torch.empty(4, 0), torch.empty(2, 3, 0), bias, activation, residual)
        torch.testing.assert_close(y, ACTIVATIONS[activation](bias) + residual)
    y = m2gen.blockdiag_linear(torch.empty(4, 0), torch.empty(2, 3, 0), None, None, residual)
    assert torch.equal(y, residual) and y.data_ptr() != residual.data_ptr()
    assert product(torch.empty(0, 6), torch.empty(2, 3, 3), bias, residual=torch.empty(0, 6)).shape == (0, 6)

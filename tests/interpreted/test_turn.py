"""The transposing copy: the same bits, for odd sizes, any strides and every tile."""

from __future__ import annotations

import comparison
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m2gen.kernels.turn import TurnSpec
from m2gen.runtime.bindings import turn_triton as kernels
from m2gen.runtime.bindings.turn_triton import turned
from m2gen.runtime.build.triton_kernel import DTYPES

SIZES = st.sampled_from([1, 2, 7, 31, 64, 65, 127])


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "live", lambda device: comparison.SMALL)


@settings(max_examples=25)
@given(st.integers(0, 3), SIZES, SIZES, comparison.dtypes, comparison.STRIDES, st.booleans())
def test_a_turned_copy_has_the_same_bits(
    batch: int, rows: int, columns: int, dtype: torch.dtype, how: str, into: bool
) -> None:
    x = comparison.strided(comparison.draw(batch, rows, columns, dtype=dtype), how)
    out = comparison.strided(torch.full((batch, columns, rows), float("nan"), dtype=dtype), how) if into else None
    y = turned(x, out)
    assert torch.equal(y, x.transpose(1, 2)) and (y is out if into else y.is_contiguous())


@settings(max_examples=25)
@given(SIZES, SIZES, comparison.dtypes, comparison.STRIDES, st.sampled_from(["pre", "post", "add", "post add"]))
def test_gates_and_sums_on_the_way(rows: int, columns: int, dtype: torch.dtype, how: str, words: str) -> None:
    """In float32, rounded once: x in another dtype than y's, tensors of any strides."""
    given = {word: (2, rows, columns) if word == "pre" else (2, columns, rows) for word in words.split()}
    more = {w: comparison.strided(comparison.draw(*s, dtype=dtype, seed=len(w)), how) for w, s in given.items()}
    x = comparison.draw(2, rows, columns, dtype=dtype if words == "pre" else torch.float32)
    y = torch.full((2, columns, rows), float("nan"), dtype=dtype)
    spec = TurnSpec(dtype=DTYPES[dtype], inner="fp32", block_r=32, **dict.fromkeys(more, True))
    wide = {word: tensor.float() for word, tensor in more.items()}
    exact = (x.float() * wide.get("pre", 1)).transpose(1, 2) * wide.get("post", 1) + wide.get("add", 0)
    assert torch.equal(turned(x, y, spec, **more), exact.to(dtype))


@pytest.mark.parametrize("block_r, block_c", [(16, 16), (16, 64), (128, 32)])
def test_every_tile(block_r: int, block_c: int) -> None:
    x = comparison.draw(2, 70, 45, dtype=torch.bfloat16)
    spec = TurnSpec(dtype="bf16", block_r=block_r, block_c=block_c)
    assert torch.equal(turned(x, spec=spec), x.transpose(1, 2))


def test_its_gradient_is_the_copy_back() -> None:
    """<T x, dy> = <x, T' dy>, exactly: nothing is added."""
    x, dy = comparison.draw(2, 33, 20), comparison.draw(2, 20, 33, seed=1)
    assert torch.equal(turned(turned(x)), x)
    left, right = (turned(x).double() * dy).sum(), (x.double() * turned(dy)).sum()
    assert torch.allclose(left, right, rtol=1e-12)


def test_offsets_pass_two_to_the_31() -> None:
    """Rows further apart than 32 bits count; the memory between them is never touched."""
    far = 2**31 + 24
    store = torch.empty(far + 64, dtype=torch.float16)
    x, near = store.as_strided((1, 2, 64), (far, far, 1)), torch.randn(1, 2, 64).half()
    x.copy_(near)
    assert torch.equal(turned(x), near.transpose(1, 2))


def test_signs_that_are_only_noted_are_not_lost() -> None:
    x = torch.view_as_complex(comparison.draw(2, 8, 5, 2)).conj().imag
    assert x.is_neg() and torch.equal(turned(x), x.transpose(1, 2))

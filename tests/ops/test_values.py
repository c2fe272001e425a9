"""What Python sees of a tensor's values never becomes part of a graph: ops, Monarchs, permutations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import m2gen
from m2gen.errors import ProblemError
from m2gen.monarch import Monarch
from m2gen.monarch.permutation import Permutation, from_index
from m2gen.monarch.project import from_dense
from m2gen.ops import _check as check
from m2gen.ops.values import all_true, ensured, look

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
YES, NO = torch.ones(3, dtype=torch.bool), torch.tensor([True, False, True])


def test_plain_tensors_are_looked_at() -> None:
    assert all_true(YES) is True and all_true(NO) is False
    assert all_true(YES.to("meta"), wait=True) is None and look(YES.to("meta")) is None
    with torch.inference_mode():
        assert all_true(YES) is True
    with FlopCounterMode(display=False):  # any mode may be one that writes down what is done
        assert all_true(YES) is None


def test_transforms_stand_around_all_values() -> None:
    seen = []

    def note(x: Tensor, other: Tensor) -> Tensor:
        seen.append(all_true(other))
        return x.sum()

    x = torch.ones(3)
    torch.vmap(note, in_dims=(None, 0))(x, torch.stack([YES, NO]))
    torch.vmap(note, in_dims=(None, 0))(x, torch.stack([YES, YES]))
    torch.vmap(torch.vmap(note, in_dims=(None, 0)), in_dims=(None, 0))(x, torch.stack([YES, NO])[None])
    torch.func.grad(note)(x, NO)
    torch.func.jvp(lambda x: note(x, YES), (x,), (x,))
    torch.func.grad(lambda x: note(x, x > 0))(x)
    assert seen == [False, True, False, False, True, True]


def test_nothing_is_seen_while_a_graph_is_made() -> None:
    seen = []

    def note(x: Tensor) -> Tensor:
        seen.append(all_true(x))
        return x.logical_not()

    torch.jit.trace(note, (YES,), check_trace=False)
    for mode in ("real", "fake", "symbolic"):
        make_fx(note, tracing_mode=mode)(YES)
    assert seen and set(seen) == {None}


def checked(x: Tensor, right: Tensor) -> Tensor:
    return 2 * ensured(x, right, "a question", "what was found", "do something")


@pytest.mark.parametrize("way", ["jit", "frozen", "make_fx", "export", "compile", "eager", "vmap"])
def test_a_check_stays_in_a_graph(way: str) -> None:
    class Checked(torch.nn.Module):
        def forward(self, x: Tensor, right: Tensor) -> Tensor:
            return checked(x, right)

    x = torch.randn(3)
    call = {
        "jit": lambda: torch.jit.trace(checked, (x, YES)),
        "frozen": lambda: torch.jit.freeze(torch.jit.trace(Checked().eval(), (x, YES))),
        "make_fx": lambda: make_fx(checked)(x, YES),
        "export": lambda: torch.export.export(Checked(), (x, YES)).module(),
        "compile": lambda: torch.compile(checked, fullgraph=True, backend="eager"),
        "eager": lambda: checked,
        "vmap": lambda: lambda x, right: torch.vmap(checked)(x[None], right[None])[0],
    }[way]()
    assert torch.equal(call(x, YES), 2 * x)
    with pytest.raises((RuntimeError, ProblemError), match="a question: what was found"):
        call(x, NO)


def test_finite_values_in_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """M2GEN_CHECK_FINITE=1 is heeded by compiled, exported and vmapped calls, and says where it is not."""
    monkeypatch.setattr(check, "_CHECK_FINITE", True)
    said: list[str] = []
    monkeypatch.setattr(check, "fallback", said.append)
    u, k = torch.randn(2, 3, 8), torch.randn(3, 8)
    bad = u.clone()
    bad[1, 2, 4] = torch.nan
    torch.compiler.reset()
    compiled = torch.compile(lambda u: m2gen.fftconv(u, k), fullgraph=True, backend="eager")
    for call in (compiled, make_fx(lambda u: m2gen.fftconv(u, k))(u)):
        torch.testing.assert_close(call(u), m2gen.fftconv(u, k))
        with pytest.raises(RuntimeError, match="fftconv: u is finite"):
            call(bad)
    with pytest.raises(ProblemError, match=r"u is finite.*found 1 NaN or infinite values of 96"):
        torch.vmap(lambda u: m2gen.fftconv(u, k))(torch.stack([u, bad]))
    with pytest.raises(ProblemError, match="u is finite"):
        torch.func.grad(lambda u: m2gen.fftconv(u, k).sum())(bad)
    assert not said
    torch.jit.trace(lambda u: m2gen.fftconv(u, k), (u,))
    assert any("fftconv: u" in line and "not checked" in line for line in said)


def test_a_traced_permutation_is_no_constant() -> None:
    """Traced with the identity, which does nothing, and run with another."""
    x, index = torch.randn(5, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
    traced = torch.jit.trace(lambda i, x: from_index(i)(x), (torch.arange(5), x))
    assert torch.equal(traced(index, x), x[index])
    with pytest.raises(RuntimeError, match="a permutation of 5 entries"):
        traced(torch.tensor([0, 0, 1, 2, 3]), x)
    padded = torch.jit.trace(lambda i, x: Permutation(i, 5)(x), (torch.arange(5), x))
    assert torch.equal(padded(torch.tensor([3, -1, 0, 1, 2]), x), torch.cat([x[3:4], x.new_zeros(1), x[:3]]))


def test_traced_products_and_inverses() -> None:
    """Blocks that stay together in the example need not in the next call; a singular block is an error there, too."""
    factors = torch.randn(2, 2, 2, dtype=torch.float64) + 3 * torch.eye(2)
    x, together = torch.randn(4, dtype=torch.float64), torch.tensor([2, 3, 0, 1])

    def product(f: Tensor, index: Tensor, x: Tensor) -> Tensor:
        first = Monarch([f], [Permutation(torch.arange(4), 4), from_index(index)])
        return (Monarch([f]) @ first) @ x

    traced = torch.jit.trace(product, (factors, together, x), check_trace=False)
    for index in (together, torch.tensor([1, 2, 3, 0]), torch.arange(4)):
        torch.testing.assert_close(traced(factors, index, x), product(factors, index, x), rtol=1e-12, atol=1e-12)

    def inverse(f: Tensor, x: Tensor) -> Tensor:
        return Monarch([f]).inverse() @ x

    singular = factors.clone()
    singular[1] = 1
    traced = torch.jit.trace(inverse, (factors, x), check_trace=False)
    other = factors.flip(0)
    torch.testing.assert_close(traced(other, x), inverse(other, x), rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="singular to working precision"):
        traced(singular, x)
    with pytest.raises(ProblemError, match="block 1 of factor 0 is singular"):
        inverse(singular, x)
    with pytest.raises(ProblemError, match="of factor 0 is singular"):
        torch.vmap(lambda f: inverse(f, x))(torch.stack([factors, singular]))
    both = torch.stack([factors, other])
    want = torch.stack([inverse(factors, x), inverse(other, x)])
    torch.testing.assert_close(torch.vmap(lambda f: inverse(f, x))(both), want, rtol=1e-12, atol=1e-12)


def test_a_projection_is_not_traced() -> None:
    """Its error is a number, which would be the example's."""
    with pytest.raises(ProblemError, match="it is being traced"):
        torch.jit.trace(lambda m: from_dense(m, None, 1, True, None)[0].factors[0], (torch.randn(4, 4),))

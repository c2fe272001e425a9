"""What cannot be done says asked / found / do; what is empty gives the empty result; NaN stays in its row."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import m2gen
from m2gen import ProblemError
from m2gen.modules import LongConv
from m2gen.ops import _check as check
from m2gen.ops.blockdiag_linear import blockdiag_glu

U, K, GATE = torch.randn(2, 3, 8), torch.randn(3, 5), torch.randn(2, 3, 8)
X6, W6 = torch.randn(2, 6), torch.randn(2, 4, 3)


def conv(u: Any = U, k: Any = K, **rest: Any) -> Tensor:
    return m2gen.fftconv(u, k, **rest)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "u rank": (lambda: conv(U[0]), r"u: its shape is \(3, 8\)\. Give it the shape \(B, H, L\)"),
    "u rank BLH": (lambda: conv(U[0], layout="BLH"), r"Give it the shape \(B, L, H\)"),
    "k rank": (lambda: conv(k=K[None]), r"k: its shape is \(1, 3, 5\)\. Give it the shape \(3, K\)"),
    "k channels": (lambda: conv(k=K[:2]), r"k: its shape is \(2, 5\)"),
    "layout mix-up": (lambda: conv(layout="BLH"), r"k: its shape is \(3, 5\)\. Give it the shape \(8, K\)"),
    "not a tensor": (lambda: conv(k=[1.0]), r"k: found a list"),
    "integer u": (lambda: conv(U.int()), r"u: its dtype is torch.int32"),
    "complex u": (lambda: conv(U.cfloat()), r"complex sequences go as two real ones"),
    "device": (lambda: conv(k=K.to("meta")), r"k: it is on meta and the input on cpu\. Move it to cpu"),
    "unknown mode": (lambda: conv(mode="cyclic"), r"mode='cyclic'.*causal, bidirectional, same, circular"),
    "unknown layout": (lambda: conv(layout="HBL"), r"Use one of BHL, BLH"),
    "unknown precision": (lambda: conv(precision="fp8"), r"Use one of auto, wide"),
    "K > L circular": (lambda: conv(k=torch.randn(3, 9), mode="circular"), r"K = 9 and L = 8.*at most L taps"),
    "even K in same": (lambda: conv(k=torch.randn(3, 4), mode="same"), r"no middle tap"),
    "no taps": (lambda: conv(k=torch.randn(3, 0)), r"no taps"),
    "missing k_rev": (lambda: conv(mode="bidirectional"), r"k_rev is missing"),
    "useless k_rev": (lambda: conv(k_rev=K), r"mode causal has no use for it"),
    "k_rev shape": (lambda: conv(mode="bidirectional", k_rev=K[:, 1:]), r"k_rev: its shape is \(3, 4\)"),
    "pre_gate shape": (lambda: conv(pre_gate=GATE[:1]), r"pre_gate: its shape is \(1, 3, 8\)"),
    "post_gate dtype": (lambda: conv(post_gate=GATE.double()), r"post_gate: its dtype is torch.float64"),
    "post_gate device": (lambda: conv(post_gate=GATE.to("meta")), r"post_gate: it is on meta"),
    "add shape": (lambda: conv(add=GATE[:1]), r"add: its shape is \(1, 3, 8\)\. Give it the shape \(2, 3, 8\)"),
    "add BLH": (
        lambda: conv(U.mT, layout="BLH", add=GATE),
        r"add: its shape is \(2, 3, 8\)\. Give it the shape \(2, 8, 3\)",
    ),
    "add dtype": (lambda: conv(add=GATE.double()), r"add: its dtype is torch.float64 and that of u is torch.float32"),
    "add device": (lambda: conv(add=GATE.to("meta")), r"add: it is on meta and the input on cpu"),
    "add a number": (lambda: conv(add=1.0), r"add: found a float"),
    "add operator": (
        lambda: torch.ops.m2gen.fftconv(U, K, None, None, None, None, "causal", "auto", GATE[..., :7]),
        r"add: its shape is \(2, 3, 7\)",
    ),
    "skip shape": (lambda: conv(skip=torch.randn(8)), r"skip: its shape is \(8,\)\. Give it the shape \(3\)"),
    "blockdiag x": (
        lambda: m2gen.blockdiag_linear(torch.randn(2, 5), torch.randn(2, 4, 3)),
        r"x: its last axis has 5 entries\. Give it nblocks \* block_in = 2 \* 3 = 6",
    ),
    "blockdiag weight": (lambda: m2gen.blockdiag_linear(U, K), r"weight: its shape is \(3, 5\)"),
    "blockdiag bias": (
        lambda: m2gen.blockdiag_linear(torch.randn(2, 6), torch.randn(2, 4, 3), torch.randn(4)),
        r"bias: its shape is \(4,\)\. Give it the shape \(8\)",
    ),
    "blockdiag dtype": (
        lambda: m2gen.blockdiag_linear(torch.randn(2, 6).double(), torch.randn(2, 4, 3)),
        r"weight: its dtype is torch.float32",
    ),
    "blockdiag_glu blocks": (
        lambda: blockdiag_glu(torch.randn(2, 3), torch.randn(1, 4, 3)),
        r"blockdiag_glu: weight: its 1 blocks are not halves",
    ),
    "blockdiag residual": (
        lambda: m2gen.blockdiag_linear(torch.randn(2, 6), torch.randn(2, 4, 3), residual=torch.randn(8)),
        r"blockdiag_linear: residual: its shape is \(8,\)\. Give it the shape \(2, 8\)",
    ),
    "blockdiag residual dtype": (
        lambda: m2gen.blockdiag_linear(X6, W6, None, "gelu", torch.randn(2, 8).double()),
        r"blockdiag_linear: residual: its dtype is torch.float64 and that of x is torch.float32",
    ),
    "blockdiag residual device": (
        lambda: m2gen.blockdiag_linear(X6, W6, None, None, torch.randn(2, 8, device="meta")),
        r"blockdiag_linear: residual: it is on meta and the input on cpu",
    ),
    "blockdiag residual a number": (
        lambda: m2gen.blockdiag_linear(X6, W6, residual=1.0),
        r"blockdiag_linear: residual: found a float",
    ),
    "blockdiag_glu residual": (
        lambda: blockdiag_glu(X6, W6, residual=torch.randn(2, 8)),
        r"blockdiag_glu: residual: its shape is \(2, 8\)\. Give it the shape \(2, 4\)",
    ),
    "blockdiag operator residual": (
        lambda: torch.ops.m2gen.blockdiag_linear(X6, W6, None, torch.randn(2, 7)),
        r"blockdiag_linear: residual: its shape is \(2, 7\)\. Give it the shape \(2, 8\)",
    ),
    "blockdiag epilogue operator": (
        lambda: torch.ops.m2gen.blockdiag_epilogue(X6, W6, None, None, "tanh", False),
        r"blockdiag_linear\(activation='tanh'\)",
    ),
    "blockdiag activation": (
        lambda: m2gen.blockdiag_linear(torch.randn(2, 6), torch.randn(2, 4, 3), activation="tanh"),
        r"activation='tanh'.*gelu, relu, silu",
    ),
    "monarch none": (lambda: m2gen.monarch_matmul(U, None), r"factors: found a NoneType. Give a list of tensors"),
    "monarch text": (lambda: m2gen.monarch_matmul(U, "ab"), r"factors: found a str"),
    "monarch one tensor": (lambda: m2gen.monarch_matmul(U, torch.tensor(1.0)), r"factors: found a Tensor"),
    "monarch numbers": (lambda: m2gen.monarch_matmul(U, [torch.randn(2, 4, 3), 3]), r"factors: found a int"),
    "monarch matrix none": (lambda: m2gen.monarch.Monarch(None), r"a Monarch: factors: found a NoneType"),
    "monarch matrix text": (lambda: m2gen.monarch.Monarch(["a"]), r"a Monarch: factors: found a str"),
    "monarch empty": (lambda: m2gen.monarch_matmul(U, []), r"there are no factors"),
    "monarch chain": (
        lambda: m2gen.monarch_matmul(torch.randn(2, 6), [torch.randn(2, 4, 3), torch.randn(3, 2, 3)]),
        r"the first gives 8 values and the second takes 9",
    ),
    "monarch inner": (
        lambda: m2gen.monarch_matmul(
            torch.randn(2, 8), [torch.randn(4, 2, 2), torch.randn(2, 4, 4), torch.randn(2, 4, 4)]
        ),
        r"2 blocks do not split into groups of 4",
    ),
    "monarch x": (
        lambda: m2gen.monarch_matmul(torch.randn(2, 7), [torch.randn(2, 4, 3)]),
        r"last axis has 7 entries.*= 6",
    ),
    "depthwise padding": (lambda: m2gen.depthwise_conv1d(U, K, padding="full"), r"padding='full'"),
    "depthwise negative": (lambda: m2gen.depthwise_conv1d(U, K, padding=-1), r"padding=-1"),
    "depthwise too short": (lambda: m2gen.depthwise_conv1d(U[..., :2], K, padding=1), r"longer than the padded"),
    "depthwise weight": (lambda: m2gen.depthwise_conv1d(U, K[:2]), r"weight: its shape is \(2, 5\)"),
    "depthwise bias": (lambda: m2gen.depthwise_conv1d(U, K, torch.randn(2)), r"bias: its shape is \(2,\)"),
    "depthwise layout": (lambda: m2gen.depthwise_conv1d(U, K, layout="LBH"), r"Use one of BHL, BLH"),
}


@pytest.mark.parametrize("name", BAD)
def test_error_says_asked_found_do(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(ProblemError, match=message) as caught:
        call()
    assert caught.value.asked and caught.value.found and caught.value.do
    assert isinstance(caught.value, ValueError)


LONG = LongConv(16, 300)
COMPILED = BAD | {"module": (lambda: LONG(torch.randn(2, 16, 400)), r"this one was made for at most 300")}


@pytest.mark.parametrize("name", COMPILED)
def test_the_error_is_told_from_inside_a_compiled_graph(name: str) -> None:
    """With fullgraph in Dynamo's own error, which quotes it; without, itself, but where an operator's fake raises."""
    call = COMPILED[name][0]
    with pytest.raises(ProblemError) as caught:
        call()
    right: ProblemError = caught.value
    for whole in (True, False):
        torch._dynamo.reset()
        with pytest.raises((ProblemError, RuntimeError)) as raised:
            torch.compile(call, fullgraph=whole, backend="eager")()
        if isinstance(raised.value, ProblemError):
            assert raised.value.args == right.args and str(raised.value) == str(right)
        else:
            assert all(part in str(raised.value) or repr(part) in str(raised.value) for part in right.args)


def test_errors_are_copied_and_pickled() -> None:
    error = ProblemError(asked="u", found="its shape is (3, 8)", do="give it the shape (B, H, L)")
    for other in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is ProblemError and other.args == error.args and str(other) == str(error)
    assert str(error) == "u: its shape is (3, 8). Give it the shape (B, H, L)."


NEGATIVE = torch._C.DispatchKeySet(torch._C.DispatchKey.Negative)


def test_a_lazily_negative_view_where_the_dispatcher_does_not_resolve_it() -> None:
    """As inside a compiled graph, which masks the key: what lies in memory is not what is meant."""
    x, w = torch.randn(2, 3, 8), torch.randn(3, 4)
    with torch._C._ExcludeDispatchKeyGuard(NEGATIVE):
        found = m2gen.depthwise_conv1d(torch._neg_view(x), w)
    assert torch.equal(found, m2gen.depthwise_conv1d(-x, w))


@pytest.mark.parametrize("autocast", [False, True])
def test_memory_that_is_gone_is_an_error(autocast: bool) -> None:
    calls: list[tuple[Any, Tensor]] = [
        (lambda k: conv(U, k), torch.randn(3, 5)),
        (lambda a: conv(add=a), torch.randn(2, 3, 8)),
        (lambda k: m2gen.depthwise_conv1d(U, k), torch.randn(3, 5)),
        (lambda r: m2gen.blockdiag_linear(X6, W6, residual=r), torch.randn(2, 8)),
        (lambda r: m2gen.blockdiag_linear(X6, W6, None, "gelu", r), torch.randn(2, 8)),
    ]
    for call, gone in calls:
        gone.untyped_storage().resize_(0)
        with torch.autocast("cpu", enabled=autocast), pytest.raises(ProblemError, match=r"storage holds 0 bytes"):
            call(gone)


def test_a_sample_is_checked_under_vmap() -> None:
    with pytest.raises(ProblemError, match=r"k: its shape is \(2, 5\)\. Give it the shape \(3, K\)"):
        torch.vmap(conv)(U[None].repeat(4, 1, 1, 1), torch.randn(4, 2, 5))
    with pytest.raises(ProblemError, match=r"mode='cyclic'"):
        torch.vmap(lambda u: torch.ops.m2gen.fftconv(u, K, None, None, None, None, "cyclic", "auto"))(U[None])


def test_padding_alone() -> None:
    """A sequence of no samples: the result is the bias, its gradient counts results."""
    bias = torch.randn(3, requires_grad=True)
    y = m2gen.depthwise_conv1d(torch.randn(2, 3, 0), torch.randn(3, 4), bias, padding=4)
    assert torch.equal(y, bias.view(1, 3, 1).expand(2, 3, 5))
    assert torch.equal(torch.autograd.grad(y.sum(), bias)[0], torch.full((3,), 10.0))


def test_no_blocks() -> None:
    x, w = torch.randn(4, 0, requires_grad=True), torch.randn(0, 2, 3, requires_grad=True)
    y = m2gen.blockdiag_linear(x, w)
    assert y.shape == (4, 0)
    assert [g.shape for g in torch.autograd.grad(y.sum(), (x, w))] == [x.shape, w.shape]


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0)])
@pytest.mark.parametrize("mode", ["causal", "bidirectional", "same"])
def test_empty_is_empty(shape: tuple[int, ...], mode: str) -> None:
    u = torch.randn(shape, requires_grad=True)
    k = torch.randn(shape[1], 5, requires_grad=True)
    k_rev = torch.randn(shape[1], 5, requires_grad=True) if mode == "bidirectional" else None
    skip = torch.randn(shape[1], requires_grad=True)
    add = torch.randn(shape, requires_grad=True)
    y = m2gen.fftconv(u, k, mode=mode, k_rev=k_rev, skip=skip, add=add)
    assert y.shape == shape
    y.sum().backward()
    assert u.grad.shape == add.grad.shape == shape
    assert all(x.grad.abs().sum() == 0 for x in (k, k_rev, skip) if x is not None)


def test_empty_batch_of_the_other_ops() -> None:
    x = torch.randn(0, 6, requires_grad=True)
    w = torch.randn(2, 3, 3, requires_grad=True)
    for y in (m2gen.blockdiag_linear(x, w), m2gen.monarch_matmul(x, [w, w])):
        assert y.shape == (0, 6)
        assert torch.autograd.grad(y.sum(), w)[0].abs().sum() == 0
    for shape in ((0, 3, 8), (2, 3, 0)):
        y = m2gen.depthwise_conv1d(torch.randn(shape), K)
        assert y.shape == shape


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_stays_in_its_row(bad: float) -> None:
    u = U.clone()
    u[1, 2, 4] = bad
    y, clean = conv(u), conv()
    assert not torch.isfinite(y[1, 2, 4:]).any()
    spoiled = torch.zeros(2, 3, dtype=torch.bool)
    spoiled[1, 2] = True
    assert torch.equal(y[~spoiled], clean[~spoiled])


def test_nan_raises_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "_CHECK_FINITE", True)
    u = U.clone()
    u[1, 2, 4] = float("nan")
    with pytest.raises(ProblemError, match=r"fftconv: u is finite.*found 1 NaN or infinite values of 48"):
        conv(u)
    with pytest.raises(ProblemError, match=r"fftconv: add is finite.*found 1 NaN or infinite values of 48"):
        conv(add=u)
    with pytest.raises(ProblemError, match=r"monarch_matmul: factors\[0\]"):
        m2gen.monarch_matmul(torch.randn(2, 6), [torch.full((2, 3, 3), float("inf"))])
    assert conv().shape == U.shape

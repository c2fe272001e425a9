"""DimensionMixer and MixerBlock against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.modules import DimensionMixer, MixerBlock, SequenceMixer
from m2gen.reference.monarch import block_diagonal, standard

D = 16
X = torch.randn(2, 5, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def glu(m: DimensionMixer, x: Tensor) -> Tensor:
    h = x @ block_diagonal(m.gated_layers.weight).T
    gate, value = h[..., : h.shape[-1] // 2], h[..., h.shape[-1] // 2 :]
    gelu = 0.5 * gate * (1 + torch.erf(gate / 2**0.5))
    return (gelu * value) @ block_diagonal(m.wo.weight).T + m.wo.bias


def norm(m: DimensionMixer, x: Tensor) -> Tensor:
    assert m.layernorm is not None
    return F.layer_norm(x, (D,), m.layernorm.weight, m.layernorm.bias, 1e-12)


def test_glu_formula() -> None:
    torch.manual_seed(0)
    post, pre, bare = (DimensionMixer(D, 2, norm=kind).double() for kind in ("post", "pre", None))
    torch.testing.assert_close(bare(X), glu(bare, X))
    torch.testing.assert_close(post(X), norm(post, glu(post, X) + X))
    torch.testing.assert_close(pre(X), X + glu(pre, norm(pre, X)))


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = DimensionMixer(768).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "gated_layers.weight": (4, 1536, 192),
        "wo.weight": (4, 192, 768),
        "wo.bias": (768,),
        "layernorm.weight": (768,),
        "layernorm.bias": (768,),
    }


@pytest.mark.parametrize(("order", "expand"), [(1, 1), (1, 4), (2, 1), (2, 4)])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", None])
def test_plain_formula(order: int, expand: int, activation: str | None) -> None:
    torch.manual_seed(0)
    m = DimensionMixer(D, expand, kind="plain", order=order, activation=activation, norm=None).double()
    with torch.no_grad():
        m.kernel.uniform_(-2, 2)
    m3, m4 = (block_diagonal(layer.weight) if order == 1 else standard(list(layer.factors)) for layer in (m.m3, m.m4))
    sigma = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, None: lambda x: x}[activation]
    torch.testing.assert_close(m(X), sigma(m.kernel * (X @ m3.T)) @ m4.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["glu", "plain"])
@pytest.mark.parametrize("norm", ["post", "pre", None])
@pytest.mark.parametrize("rows", [3, 4, 9, 10])
def test_blocks_of_rows_change_nothing(kind: str, norm: str | None, rows: int) -> None:
    """Ten rows in blocks of 3, 4, 9 and at once, from memory in another order, and under autocast."""
    torch.manual_seed(0)
    m = DimensionMixer(D, kind=kind, norm=norm).double()
    want = m(X).detach()
    m.block_rows = rows
    with torch.no_grad():
        torch.testing.assert_close(m(X), want, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(m(X.mT.contiguous().mT), want, rtol=1e-12, atol=1e-12)
        m.float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = m(X.float())
    assert found.dtype == (torch.float32 if norm else torch.bfloat16)
    torch.testing.assert_close(found.double(), want, rtol=0.05, atol=0.05)


def test_order_two_glu_trains() -> None:
    m = DimensionMixer(D, order=2)
    m(X.float()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


def test_autocast_and_dropout() -> None:
    torch.manual_seed(0)
    m = DimensionMixer(D, dropout=0.5)
    assert not torch.equal(m(X.float()), m(X.float()))
    m.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(m(X.float()).float(), m(X.float()).float())
        found = m(X.float()).float()
    torch.testing.assert_close(found, m(X.float()), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("wrong", [{"kind": "mlp"}, {"order": 3}, {"activation": "tanh"}, {"norm": "both"}])
def test_unknown_choices_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ProblemError, match="no such choice"):
        DimensionMixer(D, **wrong)  # type: ignore[arg-type]


def test_block_is_one_after_the_other() -> None:
    torch.manual_seed(0)
    attention, mlp = SequenceMixer(D, 8, width=8).double(), DimensionMixer(D).double()
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    assert torch.equal(MixerBlock(attention, mlp)(X, mask), mlp(attention(X, mask)))
    assert torch.equal(MixerBlock(attention)(X), attention(X))
    block = MixerBlock(attention, mlp, prenorm=True).double()
    assert block.norm is not None
    assert torch.equal(block(X), mlp(X + attention(block.norm(X))))


def test_block_names() -> None:
    block = MixerBlock(SequenceMixer(D, 8), DimensionMixer(D))
    assert {name.split(".")[0] for name in block.state_dict()} == {"attention", "mlp"}


def test_state_dict_round_trip() -> None:
    first, second = (MixerBlock(SequenceMixer(D, 8), DimensionMixer(D)) for _ in range(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(X.float()), second(X.float()))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["glu", "plain"])
def test_a_layer_with_a_hook_is_called_once_for_all_rows(kind: str) -> None:
    mixer = DimensionMixer(8, kind=kind, nblocks=2).eval()
    mixer.block_rows = 5
    x = torch.randn(2, 7, 8)
    want = mixer(x)
    for layer in (mixer.gated_layers, mixer.wo) if kind == "glu" else (mixer.m3, mixer.m4):
        shapes: list[torch.Size] = []
        handle = layer.register_forward_hook(lambda m, args, out, shapes=shapes: shapes.append(out.shape[:-1]))
        torch.testing.assert_close(mixer(x), want)
        handle.remove()
        assert shapes == [(2, 7)]


def test_a_trace_holds_for_any_number_of_rows() -> None:
    mixer = DimensionMixer(64, 4).eval()
    mixer.block_rows = 64
    with torch.no_grad():
        traced = torch.jit.trace(mixer, torch.randn(2, 70, 64), check_trace=False)
        for rows in (1, 64, 200):
            x = torch.randn(1, rows, 64)
            torch.testing.assert_close(traced(x), mixer(x))

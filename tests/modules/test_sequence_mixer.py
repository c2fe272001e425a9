"""SequenceMixer against its formula, its published names, and padding that must say nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.modules import DimensionMixer, MixerBlock, SequenceMixer
from m2gen.reference import fftconv as oracle

D, L = 8, 24


def mixer(dtype: torch.dtype = torch.float64, **options: object) -> SequenceMixer:
    torch.manual_seed(0)
    return SequenceMixer(D, L, width=16, **options).to(dtype)  # type: ignore[arg-type]


def written_out(m: SequenceMixer, u: Tensor) -> Tensor:
    """The layer one operation at a time, with convolutions as sums."""
    if m.layernorm is not None:
        u = F.layer_norm(u, (D,), m.layernorm.weight, m.layernorm.bias)
    length = u.shape[1]
    h = F.linear(u, m.in_linear.weight, m.in_linear.bias).mT
    width = m.short_filter.weight.shape[-1]
    h = F.conv1d(h, m.short_filter.weight, m.short_filter.bias, padding=width - 1, groups=3 * D)[..., :length]
    x1, x2, v = h.split(D, dim=1)

    def long_conv(f: object, z: Tensor) -> Tensor:
        k, k_rev = f(length)
        return oracle.fftconv(z, k, mode=m.mode, k_rev=k_rev, skip=f.bias)

    y = long_conv(m.filter_fn, v * x1) * x2
    if m.filter_fn2 is not None:
        y = y + long_conv(m.filter_fn2, u.mT)
    return F.linear(y.mT, m.out_linear.weight, m.out_linear.bias)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("norm", "short_kernel"), [(False, 3), (True, 3), (False, 5)])
def test_formula(bidirectional: bool, residual: bool, norm: bool, short_kernel: int) -> None:
    m = mixer(bidirectional=bidirectional, residual_long_conv=residual, norm=norm, short_kernel=short_kernel)
    for length in (1, 2, 17, L):
        u = torch.randn(2, length, D, dtype=torch.float64)
        torch.testing.assert_close(m(u), written_out(m, u), rtol=1e-9, atol=1e-9)


def test_published_names_and_shapes() -> None:
    with torch.device("meta"):
        state = SequenceMixer(768, 128, norm=True).state_dict()
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    own = {name: shape for name, shape in found.items() if not name.startswith("filter_fn")}
    assert own == {
        "layernorm.weight": (768,),
        "layernorm.bias": (768,),
        "in_linear.weight": (2304, 768),
        "in_linear.bias": (2304,),
        "short_filter.weight": (2304, 1, 3),
        "short_filter.bias": (2304,),
        "out_linear.weight": (768, 768),
        "out_linear.bias": (768,),
    }
    filters = {name.removeprefix("filter_fn.") for name in found if name.startswith("filter_fn.")}
    assert filters == {name.removeprefix("filter_fn2.") for name in found if name.startswith("filter_fn2.")}
    assert "implicit_filter_rev.6.weight" in filters


def test_parameter_count_of_the_published_model() -> None:
    # 80,262,714 in all, less embeddings (words, positions, types, norm) and the masked-LM head
    embeddings = 768 * (30522 + 128 + 2 + 2)
    head = 768 * 768 + 768 + 2 * 768 + 30522
    with torch.device("meta"):
        block = MixerBlock(SequenceMixer(768, 128), DimensionMixer(768))
    assert 12 * sum(p.numel() for p in block.parameters()) == 80_262_714 - embeddings - head


# -- padding -----------------------------------------------------------------------------------------------------------

# ten real tokens each: padded on the right, on the left, on both sides
SIDES = {"right": (0, 14), "left": (14, 0), "both": (5, 9)}
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-5}


def padded(real: Tensor, left: int, right: int, junk: float) -> tuple[Tensor, Tensor]:
    noise = junk * torch.randn(left + right, D, dtype=real.dtype)
    mask = torch.zeros(left + len(real) + right, dtype=torch.bool)
    mask[left : left + len(real)] = True
    return torch.cat([noise[:left], real, noise[left:]]), mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("options", [{}, {"norm": True}, {"bidirectional": False}, {"residual_long_conv": False}])
def test_padding_on_a_side_changes_nothing(dtype: torch.dtype, side: str, options: dict[str, bool]) -> None:
    m = mixer(dtype, **options)
    real = torch.randn(10, D, dtype=dtype)
    alone = m(real[None])[0]
    for junk in (0.0, 1.0, 100.0, float("nan")):
        u, mask = padded(real, *SIDES[side], junk)
        found = m(u[None], mask[None])[0, mask]
        torch.testing.assert_close(found, alone, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_a_mixed_batch_are_as_if_alone(dtype: torch.dtype) -> None:
    m = mixer(dtype)
    real = [torch.randn(n, D, dtype=dtype) for n in (10, 24, 3, 1)]
    rows = [padded(r, left, L - len(r) - left, 10.0) for r, left in zip(real, (4, 0, 21, 7), strict=True)]
    u, mask = (torch.stack(parts) for parts in zip(*rows, strict=True))
    found = m(u, mask.long())
    for row, r in enumerate(real):
        want = m(r[None])[0]
        torch.testing.assert_close(found[row, mask[row]], want, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])


def test_what_stands_in_padding_inside_changes_nothing() -> None:
    m = mixer()
    u = torch.randn(3, L, D, dtype=torch.float64)
    mask = torch.rand(3, L) < 0.6
    other = torch.where(mask[..., None], u, 50 * torch.randn_like(u))
    assert (m(u, mask) - m(other, mask))[mask].abs().max() < 1e-12
    # and it is as if the padding's value, short convolution's output and residual were zero: the written-out layer
    no_padding = torch.ones(3, L, dtype=torch.bool)
    torch.testing.assert_close(m(u, no_padding), m(u), rtol=1e-12, atol=1e-12)


def test_gradients_do_not_see_padding() -> None:
    m = mixer()
    u = torch.randn(1, L, D, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(L)[None] % 3 > 0
    m(u, mask)[mask].square().sum().backward()
    assert u.grad is not None
    assert not u.grad[~mask].any()
    assert u.grad[mask].all()


@pytest.mark.parametrize("norm", [False, True])
def test_gradients_of_weights_do_not_see_padding(norm: bool) -> None:
    """NaN in it, least of all."""
    m, u = mixer(norm=norm), torch.randn(2, L, D, dtype=torch.float64)
    mask = torch.arange(L) < torch.tensor([[L], [L - 6]])
    found = []
    for padding in (0.0, float("nan")):
        u[~mask] = padding
        found.append(torch.autograd.grad(m(u, mask)[mask].square().sum(), list(m.parameters())))
    for clean, spoilt in zip(*found, strict=True):
        assert torch.equal(clean, spoilt)


@pytest.mark.parametrize("side", SIDES)
def test_without_the_mask_padding_does_change_the_result(side: str) -> None:
    m = mixer()
    real = torch.randn(10, D, dtype=torch.float64)
    u, mask = padded(real, *SIDES[side], 1.0)
    assert (m(u[None])[0, mask] - m(real[None])[0]).abs().max() > 1e-3


def test_a_zeroed_input_alone_is_not_enough() -> None:
    # in_linear's and short_filter's biases speak for the padding unless the mask is applied again behind them
    m = mixer()
    real = torch.randn(10, D, dtype=torch.float64)
    u, mask = padded(real, 5, 9, 0.0)
    assert (m(u[None])[0, mask] - m(real[None])[0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 5), torch.ones(2, 4, dtype=torch.bool), torch.ones(5, dtype=torch.bool)]
)
def test_masks_of_another_kind_are_refused(mask: Tensor) -> None:
    with pytest.raises(ProblemError, match="true at real tokens"):
        mixer()(torch.randn(2, 5, D, dtype=torch.float64), mask)


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_causal_mixer_does_not_look_ahead() -> None:
    m = mixer(bidirectional=False)
    u = torch.randn(1, L, D, dtype=torch.float64, requires_grad=True)
    m(u)[0, 9].sum().backward()
    assert u.grad is not None
    assert u.grad[0, :10].all()
    assert u.grad[0, 10:].abs().max() < 1e-12


def test_too_long_an_input_is_refused() -> None:
    with pytest.raises(ProblemError, match=f"at most {L}"):
        mixer()(torch.randn(1, L + 1, D, dtype=torch.float64))


def test_autocast_follows_float32() -> None:
    m = mixer(torch.float32)
    u = torch.randn(2, L, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = m(u)
        assert m.filter_fn(L)[0].dtype == torch.float32
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), m(u), rtol=0.05, atol=0.05)
    found.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in m.parameters())


def test_dropout_only_while_training() -> None:
    m = mixer(dropout=0.5)
    u = torch.randn(1, L, D, dtype=torch.float64)
    assert not torch.equal(m(u), m(u))
    m.eval()
    torch.testing.assert_close(m(u), written_out(m, u), rtol=1e-9, atol=1e-9)


def test_state_dict_round_trip() -> None:
    first, second = mixer(), SequenceMixer(D, L, width=16).double()
    second.load_state_dict(first.state_dict())
    u = torch.randn(1, L, D, dtype=torch.float64)
    assert torch.equal(first(u), second(u))


@pytest.mark.parametrize("change", ["dense", "dilated"])
def test_another_short_convolution_is_called(change: str) -> None:
    """It is read as depthwise only where it is."""
    mixer, h = SequenceMixer(8, 32).eval(), torch.randn(2, 16, 24)
    if change == "dense":
        mixer.short_filter = torch.nn.Conv1d(24, 24, 3)
    else:
        mixer.short_filter.dilation = (2,)
        mixer.short_kernel = 5
    padded = torch.nn.functional.pad(h.transpose(1, 2), (mixer.short_kernel - 1, 0))
    with torch.no_grad():
        x1, x2, v = mixer.short_filter(padded).transpose(1, 2).chunk(3, dim=2)
        z, g = mixer._gated(h)
        torch.testing.assert_close(z, x1 * v)
        torch.testing.assert_close(g, x2)

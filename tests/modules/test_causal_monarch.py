"""CausalMonarch against its M-form, and the conditions under which the M-form is causal at all."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.modules.causal_monarch import CausalMonarch, TriangularTransform
from m2gen.monarch import Monarch
from m2gen.reference import causal_monarch as reference

EPS = torch.finfo(torch.float64).eps
# digit bases of n, lowest first
BASES = [(8,), (4, 4), (8, 4), (4, 8), (2, 16), (3, 5), (4, 4, 2), (2, 3, 5), (2, 2, 2, 2), (1, 7), (7, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def module(bases: tuple[int, ...], deviation: float = 0.5, seed: int = 0, **options: object) -> CausalMonarch:
    torch.manual_seed(seed)
    return CausalMonarch(math.prod(bases), bases=bases, deviation=deviation, **options).double()  # type: ignore[arg-type]


def convolve(u: Tensor, k: Tensor) -> Tensor:
    """Causal convolution by a zero-padded FFT: u (B, H, L), k (H, L)."""
    size = 2 * u.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * torch.fft.rfft(k, n=size), n=size)[..., : u.shape[-1]]


def assert_close(found: Tensor, expected: Tensor, condition: float, length: int) -> None:
    """Within 8 eps sqrt(length) of the largest entry, times the condition of what was solved."""
    assert found.shape == expected.shape
    found, expected = found.detach(), expected.detach()
    bound = 8 * EPS * length**0.5 * condition * float(expected.abs().max())
    assert float((found - expected).abs().max()) <= bound


def dense(m: CausalMonarch, part: str = "on_input") -> Tensor:
    return reference.coefficient_matrix([b.detach() for b in getattr(m, part).blocks()])


# ---- the triangular transform ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bases", BASES)
def test_the_transform_and_its_inverse(bases: tuple[int, ...]) -> None:
    m = module(bases)
    t, x = dense(m), draw(2, 3, m.n)
    assert torch.equal(t, t.tril())
    assert float(t.diagonal().min()) > 0
    condition = float(torch.linalg.cond(t))
    assert_close(m.on_input(x), x @ t.T, 1, m.n)
    assert_close(m.on_input.solve(x), torch.linalg.solve(t, x.mT.reshape(2, m.n, 3)).mT, condition, m.n)


def test_parameters_are_as_many_as_the_factors_hold() -> None:
    m = module((8, 8, 8))
    assert [tuple(w.shape) for w in m.on_input.weights] == [(1, 8, 8), (8, 8, 8), (64, 8, 8)]


# ---- the module -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("tied", [True, False])
def test_no_output_reads_a_later_input(bases: tuple[int, ...], tied: bool) -> None:
    m, k = module(bases, tied=tied), draw(1, math.prod(bases), seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda u: m(u[None, None], k)[0, 0], draw(m.n))
    scale = float(jacobian.abs().max()) * float(torch.linalg.cond(dense(m, "on_output")))
    assert float(jacobian.triu(1).abs().max()) <= 8 * EPS * m.n**0.5 * scale


def test_it_is_more_than_a_convolution() -> None:
    m, k = module((4, 4)), draw(1, 16, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda u: m(u[None, None], k)[0, 0], draw(16))
    assert float((jacobian[1:, 1:] - jacobian[:-1, :-1]).abs().max()) > 0.1 * float(jacobian.abs().max())


@pytest.mark.parametrize("bases", BASES)
def test_identity_coefficients_give_the_padded_fft_convolution(bases: tuple[int, ...]) -> None:
    m = module(bases, deviation=0)
    u, k = draw(2, 3, m.n), draw(3, m.n, seed=1)
    assert_close(m(u, k), convolve(u, k), 1, 2 * m.n)


@pytest.mark.parametrize("bases", BASES)
def test_the_triangular_form(bases: tuple[int, ...]) -> None:
    m = module(bases)
    u, k, t = draw(2, 3, m.n), draw(3, m.n, seed=1), dense(m)
    y = m(u, k).detach()
    for b in range(2):
        for h in range(3):
            expected = reference.triangular_form(t, k[h], u[b, h])
            assert_close(y[b, h], expected, float(torch.linalg.cond(t)), 2 * m.n)


def doubled(m: CausalMonarch) -> list[Tensor]:
    """The coefficients of the whole basis of N = 2 n: the top digit's base doubles, its new half is the identity."""
    blocks = [b.detach() for b in m.on_input.blocks()]
    top = blocks[-1]
    half = torch.eye(top.shape[-1], dtype=top.dtype)
    return [*blocks[:-1], torch.stack([torch.block_diag(b, half) for b in top])]


@pytest.mark.parametrize("bases", [(8, 4), (4, 8), (2, 16), (4, 4, 2), (2, 3, 5), (2, 2, 2, 2)])
def test_the_monarch_form_agrees_and_is_real(bases: tuple[int, ...]) -> None:
    m = module(bases)
    u, k = draw(1, 1, m.n), draw(1, m.n, seed=1)
    matrix = reference.evaluation_matrix(doubled(m))
    expected = reference.bilinear_form(matrix, matrix, matrix, k[0], u[0, 0])
    condition = float(torch.linalg.cond(matrix))
    y = m(u, k)[0, 0].detach()
    assert not y.is_complex()
    assert_close(y, expected.real, condition, 2 * m.n)
    assert float(expected.imag.abs().max()) <= 8 * EPS * m.n * condition * float(y.abs().max())


@pytest.mark.parametrize("length", [1, 2, 5, 15, 16])
@pytest.mark.parametrize("taps", [1, 7, 16, 20])
def test_shorter_inputs_are_exact(length: int, taps: int) -> None:
    m = module((4, 4))
    u, k = draw(2, 3, 16), draw(3, taps, seed=1)
    condition = float(torch.linalg.cond(dense(m)))
    assert_close(m(u[..., :length], k), m(u, k)[..., :length], condition, 32)


@pytest.mark.parametrize("bases", [(3, 2), (2, 2, 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_gradients(bases: tuple[int, ...], tied: bool) -> None:
    m = module(bases, tied=tied)
    u, k = draw(2, 2, m.n).requires_grad_(), draw(2, m.n, seed=1).requires_grad_()
    parameters = dict(m.named_parameters())

    def run(u: Tensor, k: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(m, dict(zip(parameters, values, strict=True)), (u, k))

    assert torch.autograd.gradcheck(run, (u, k, *parameters.values()))


def test_it_owns_its_filter_when_given_channels() -> None:
    m = module((4, 4), channels=3)
    u = draw(2, 3, 10)
    assert m.k is not None
    m(u).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in m.parameters())
    with pytest.raises(ProblemError, match="owns a filter"):
        m(u, draw(3, 16))


def test_it_compiles_into_one_graph() -> None:
    m = module((4, 4), channels=3)
    u = draw(2, 3, 16)
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(u), m(u))
    compiled(u).sum().backward()


def test_half_precision_input_is_solved_in_single() -> None:
    torch.manual_seed(0)
    m = CausalMonarch(64)
    u, k = torch.randn(2, 3, 64), torch.randn(3, 64)
    exact = m(u, k).detach()
    for found in (m(u.bfloat16(), k.bfloat16()), m.bfloat16()(u.bfloat16(), k.bfloat16())):
        assert found.dtype == torch.bfloat16
        assert float((found.detach() - exact).abs().max()) < 8 * 2.0**-7 * float(exact.abs().max())


@pytest.mark.parametrize(
    ("n", "order", "expected"), [(64, 2, (8, 8)), (64, 3, (4, 4, 4)), (60, 3, (3, 4, 5)), (7, 1, (7,)), (48, 2, (6, 8))]
)
def test_default_bases(n: int, order: int, expected: tuple[int, ...]) -> None:
    assert CausalMonarch(n, order).bases == expected


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"n": 0}, "not a size"),
        ({"n": 16, "order": 0}, "not an order"),
        ({"n": 7}, "no 2 factors"),
        ({"n": 16, "bases": (4, 5)}, "product 20"),
        ({"n": 16, "bases": (-4, -4)}, "positive bases"),
        ({"n": 16, "deviation": -1.0}, "deviation=-1"),
    ],
)
def test_construction_errors(options: dict, found: str) -> None:
    with pytest.raises(ProblemError, match=found):
        CausalMonarch(**options)


@pytest.mark.parametrize(
    ("u", "k", "found"),
    [
        ((2, 3, 17), (3, 16), "1 <= L <= n"),
        ((2, 3, 0), (3, 16), "1 <= L <= n"),
        ((3, 16), (3, 16), "B, H, L"),
        ((2, 3, 16), (2, 16), "filter has shape"),
        ((2, 3, 16), (16,), "filter has shape"),
        ((2, 3, 16), None, "no filter"),
    ],
)
def test_call_errors(u: tuple, k: tuple | None, found: str) -> None:
    with pytest.raises(ProblemError, match=found):
        CausalMonarch(16)(torch.ones(u), None if k is None else torch.ones(k))


# ---- the M-form by itself: which of its three matrices needs what ---------------------------------------------------


def basis(b: int, seed: int, minimum_degree: bool = True, cap: bool = True) -> list[Tensor]:
    """Random coefficients for N = b^2, diagonals in [1, 2].

    A condition that is waived leaves noise in the triangle or the corner that it would have emptied.
    """
    g = generator(seed)
    low = torch.randn(1, b, b, dtype=torch.float64, generator=g)
    high = torch.randn(b, b, b, dtype=torch.float64, generator=g)
    for c in (low, high):
        c.diagonal(dim1=-2, dim2=-1).copy_(1 + torch.rand(c.shape[:2], dtype=torch.float64, generator=g))
    if minimum_degree:
        low, high = low.tril(), high.tril()
    if cap:  # the polynomials of the lower half of the top digit stay below half the degree
        high[:, b // 2 :, : b // 2] = 0
    return [low, high]


# name: (options of M0, of M1, of M2, causal)
CONDITIONS: dict[str, tuple[dict[str, bool], dict[str, bool], dict[str, bool], bool]] = {
    "all hold": ({}, {}, {}, True),
    "the filter's matrix without minimum degree": ({}, {"minimum_degree": False}, {}, True),
    "the output's matrix without degree cap": ({"cap": False}, {}, {}, True),
    "the input's matrix without minimum degree": ({}, {}, {"minimum_degree": False}, False),
    "the output's matrix without minimum degree": ({"minimum_degree": False}, {}, {}, False),
    "the filter's matrix without degree cap": ({}, {"cap": False}, {}, False),
    "the input's matrix without degree cap": ({}, {}, {"cap": False}, False),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_which_condition_causality_needs(name: str) -> None:
    *options, causal = CONDITIONS[name]
    m0, m1, m2 = (reference.evaluation_matrix(basis(8, seed, **o)) for seed, o in enumerate(options))
    k = draw(32, seed=3)
    above = float(reference.jacobian(m0, m1, m2, k).triu(1).abs().max())
    assert above < 1e-9 if causal else above > 1


@pytest.mark.parametrize("seed", range(3))
def test_one_matrix_in_all_three_places(seed: int) -> None:
    m = reference.evaluation_matrix(basis(8, seed))
    assert float(reference.jacobian(m, m, m, draw(32, seed=seed)).triu(1).abs().max()) < 1e-9


def test_the_matrix_is_the_dft_of_its_coefficients() -> None:
    c = basis(8, 0)
    expected = Monarch.dft(64, dtype=torch.complex128) @ reference.coefficient_matrix(c).to(torch.complex128)
    assert_close(reference.evaluation_matrix(c), expected, 1, 64)


def test_the_matrix_is_an_order_two_monarch() -> None:
    """L_i0[i1, j0] = l_j0(w_N^i) and R_j0[i0, j1] = r_j(w_b^i0), w_b = w_N^b."""
    b, (low, high) = 8, basis(8, 0)
    points = torch.polar(torch.ones(64, dtype=torch.float64), torch.arange(64).double() * (-2 * math.pi / 64))
    powers = points[:, None] ** torch.arange(b)
    values = powers @ low[0].to(torch.complex128)  # l_j0(w_N^i) at [i, j0]
    left = values.reshape(b, b, b).transpose(0, 1)  # [i0, i1, j0]
    right = powers[::b] @ high.to(torch.complex128)  # r at [j0, i0, j1]
    m = Monarch([right, left])
    assert_close(m.to_dense(), reference.evaluation_matrix([low, high]), 1, 64)


def test_order_three() -> None:
    """N = 4^3: three digits, the top one's polynomials capped."""
    g, b = generator(0), 4
    coefficients = [torch.randn(s, b, b, dtype=torch.float64, generator=g).tril() for s in (1, b, b * b)]
    for c in coefficients:
        c.diagonal(dim1=-2, dim2=-1).copy_(1 + torch.rand(c.shape[:2], dtype=torch.float64, generator=g))
    coefficients[-1][:, b // 2 :, : b // 2] = 0
    m = reference.evaluation_matrix(coefficients)
    jacobian = reference.jacobian(m, m, m, draw(32))
    assert float(jacobian.triu(1).abs().max()) < 1e-9
    assert float(jacobian.abs().max()) > 1


@pytest.mark.parametrize("tied", [True, False])
def test_functional_call_and_vmap_leave_the_module_as_it_was(tied: bool) -> None:
    torch.manual_seed(0)
    modules = [CausalMonarch(12, channels=2, deviation=0.3, tied=tied).double() for _ in range(3)]
    u = torch.randn(2, 2, 12, dtype=torch.float64)
    want = [m(u) for m in modules]
    names = list(dict(modules[0].named_parameters()))
    assert len(names) == 1 + (2 if tied else 6)
    for other, y in zip(modules[1:], want[1:], strict=True):
        torch.testing.assert_close(torch.func.functional_call(modules[0], dict(other.named_parameters()), (u,)), y)
    assert list(dict(modules[0].named_parameters())) == names
    assert torch.equal(modules[0](u), want[0])
    params, buffers = torch.func.stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    got = torch.vmap(lambda p, b: torch.func.functional_call(base, (p, b), (u,)))(params, buffers)
    torch.testing.assert_close(got, torch.stack(want))


def test_state_names_and_the_first_draw_are_those_of_one_transform() -> None:
    torch.manual_seed(0)
    first = TriangularTransform((3, 4), 0.1)
    after = torch.rand(())
    torch.manual_seed(0)
    module = CausalMonarch(12)
    assert torch.equal(torch.rand(()), after)
    assert set(module.state_dict()) == {f"on_{w}.weights.{i}" for w in ("input", "filter", "output") for i in (0, 1)}
    for a, b in zip(module.on_output.weights, first.weights, strict=True):
        assert torch.equal(a, b)

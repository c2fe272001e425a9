"""torch.func's transforms, two and three deep, of every operator: the derivative is that of its formula, never zero."""

from __future__ import annotations

import pytest
import torch
from nestings import ARGUMENTS, CASES, CHAINS, OWN, TRANSFORMS, compare, functions
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp

from m2gen.runtime import executor

PAIRS = [chain for chain in CHAINS if len(chain) == 2]
TRIPLES = [chain for chain in CHAINS if len(chain) == 3 and chain.count("hessian") < 2]  # two: minutes
SHARES = 28  # of the triples, each of an operator's cases takes one: an operator's arguments share them out
NAMES = list(CASES)
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
X = torch.tensor([0.3, -0.2], dtype=torch.float64)


@pytest.fixture(autouse=True)
def own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if params.get("name", "").endswith(OWN):
        monkeypatch.setattr(executor, "own_gradients", lambda *_: True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_two_deep(name: str) -> None:
    """All of an operator's arguments at once: every pair of them is differentiated in."""
    for chain in PAIRS:
        compare(name, "all", chain)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_two_deep_in_each_argument_alone(name: str, argument: str) -> None:
    for chain in [*PAIRS[ARGUMENTS.index((name, argument)) % 12 :: 12], ("grad", "grad"), ("jvp", "jvp")]:
        compare(name, argument, chain)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_three_deep(name: str) -> None:
    for chain in TRIPLES[NAMES.index(name) % SHARES :: SHARES]:
        compare(name, "all", chain)


@pytest.mark.parametrize("name", NAMES)
def test_a_transform_does_not_obey_no_grad_outside_it(name: str) -> None:
    with torch.no_grad():
        for chain in (("grad", "grad"), ("jvp", "jvp"), ("grad", "jvp"), ("jvp", "grad"), ("hessian", "vmap")):
            compare(name, "all", chain)


@pytest.mark.parametrize("name", NAMES)
def test_a_transform_obeys_no_grad_inside_it(name: str) -> None:
    """As PyTorch's operators do: what is computed under no_grad is a constant to reverse mode, at every level."""
    found, expected = functions(name, "all")

    def half(f: object, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fixed = f(x)  # type: ignore[operator]
        return (fixed * f(x)).sum()  # type: ignore[operator]

    def both(f: object) -> list[torch.Tensor]:
        slope = grad(lambda x: half(f, x))
        return [slope(X), grad(lambda x: slope(x).square().sum())(X), jvp(slope, (X,), (X,))[1]]

    torch.testing.assert_close(both(found), both(expected))


@pytest.mark.parametrize("name", NAMES)
def test_autograd_has_the_same_derivatives(name: str) -> None:
    """torch.autograd's own: its Hessian by each strategy, and forward over reverse where the gradient has no graph."""
    found, expected = (lambda x, f=f: f(x).square().sum() for f in functions(name, "all"))
    wanted = torch.func.hessian(expected)(X)
    assert wanted.abs().max() > 0
    vectorized = {"vectorize": True}, {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    for how in (
        {},
        *(vectorized if not name.startswith("monarch") else ()),
    ):  # that vmap of PyTorch's knows no lists: an error
        torch.testing.assert_close(torch.autograd.functional.hessian(found, X, **how), wanted)
    with forward_ad.dual_level():
        x = forward_ad.make_dual(X.clone().requires_grad_(), torch.ones_like(X))
        (slope,) = torch.autograd.grad(found(x), x)
        tangent = forward_ad.unpack_dual(slope).tangent
    torch.testing.assert_close(tangent, wanted.sum(1))


@pytest.mark.parametrize("name", NAMES)
def test_a_pullback_may_be_called_without_gradients(name: str) -> None:
    found, expected = functions(name, "all")
    pulled = []
    for f in (found, expected):
        y, back = vjp(f, X)
        with torch.no_grad():
            pulled.append(back(torch.ones_like(y))[0])
    torch.testing.assert_close(*pulled)


def test_every_transform_is_there() -> None:
    assert len(CHAINS) == len(TRANSFORMS) ** 2 + len(TRANSFORMS) ** 3 == 392

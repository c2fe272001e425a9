"""One parameter in several modules stays one, whatever PyTorch does with parameters."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from m2gen.errors import ProblemError
from m2gen.modules import LongConv
from m2gen.modules.hyena_filter import HyenaFilter
from m2gen.modules.tied import KeepsTies, shared, tie, tied_names


class Pair(KeepsTies):
    """x -> second(first(x)), whose weights are one, and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        return y


class Above(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()


def assigned(model: nn.Module) -> nn.Module:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


def emptied(model: nn.Module) -> nn.Module:
    return model.to("meta").to_empty(device="cpu")


def overwritten(model: nn.Module) -> nn.Module:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        return model.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def pickled(model: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(model))
    return loaded


def saved(model: nn.Module) -> nn.Module:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("above", [False, True])
@pytest.mark.parametrize(
    "change", [assigned, emptied, overwritten, pickled, saved, copy.deepcopy, nn.Module.double, nn.Module.half]
)
def test_a_tie_outlives(change: Callable[[nn.Module], nn.Module], above: bool) -> None:
    model = change(Above() if above else Pair())
    pair = model.pair if isinstance(model, Above) else model
    assert isinstance(pair, Pair) and pair.first.weight is pair.second.weight
    assert pair.first.bias is not pair.second.bias
    with torch.no_grad():
        pair.first.weight.fill_(2.0)
    assert pair.second.weight.eq(2.0).all()


def test_a_tie_that_was_ended_is_not_made_again() -> None:
    pair = Pair()
    pair.second.weight = nn.Parameter(pair.first.weight.detach().clone())
    for change in (assigned, emptied):
        change(pair)
        assert pair.first.weight is not pair.second.weight


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("lacking", ["first.weight", "second.weight"])
def test_one_of_the_names_is_enough_in_a_state_dict(lacking: str, assign: bool) -> None:
    source, target = Pair(), Pair()
    state = {name: value.clone() for name, value in source.state_dict().items() if name != lacking}
    assert target.load_state_dict(state, assign=assign) == ([], [])
    assert target.first.weight is target.second.weight and torch.equal(target.first.weight, source.first.weight)
    above = Above()  # below a module that knows nothing of it: as any tied parameter
    found = above.load_state_dict({f"pair.{n}": v for n, v in state.items()}, strict=False, assign=assign)
    assert found == ([f"pair.{lacking}"], [])
    assert torch.equal(above.pair.first.weight, source.first.weight)


MAKERS = {
    "below": lambda: Above(),
    "itself": Pair,
    "long": lambda: LongConv(4, 16),
    "filter": lambda: HyenaFilter(4, 16),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_safetensors_saves_and_loads(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """It writes one name of each, and wants to hear that the others are missing."""
    source, target = make(), make()
    save_model(source, str(tmp_path / "model.safetensors"))
    assert load_model(target, str(tmp_path / "model.safetensors")) == (set(), [])
    for one, other in zip(source.state_dict().values(), target.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_state_dict_without_the_parameter_lacks_it() -> None:
    state = {name: value for name, value in Pair().state_dict().items() if "weight" not in name}
    assert sorted(Pair().load_state_dict(state, strict=False).missing_keys) == ["first.weight", "second.weight"]


def test_different_values_for_one_parameter_are_refused() -> None:
    state = {name: value.clone() for name, value in Pair().state_dict().items()}
    state["second.weight"] += 1
    with pytest.raises(ProblemError, match=r"first\.weight and second\.weight differ"):
        Pair().load_state_dict(state)
    state["second.weight"] = state["first.weight"].half() * 2
    with pytest.raises(ProblemError, match=r"first\.weight and second\.weight differ"):
        Pair().load_state_dict(state)


@pytest.mark.parametrize("assign", [False, True])
def test_values_that_are_not_numbers_load(assign: bool) -> None:
    """What training that diverged has saved, under both names."""
    state = {name: value.clone() for name, value in Pair().state_dict().items()}
    for name in ("first.weight", "second.weight"):
        state[name][0] = torch.tensor([float("nan"), float("inf"), -float("inf")])
    pair = Pair()
    pair.load_state_dict(state, assign=assign)
    assert pair.second.weight is pair.first.weight
    torch.testing.assert_close(pair.first.weight.detach(), state["first.weight"], rtol=0, atol=0, equal_nan=True)
    state["second.weight"] = state["first.weight"].bfloat16()
    Pair().load_state_dict(state)


def test_functional_call_leaves_parameters_and_reaches_both_places() -> None:
    pair, x = Pair().double(), torch.randn(2, 3, dtype=torch.float64)
    new = {name: torch.randn_like(p) for name, p in pair.named_parameters()}
    assert set(new) == {"first.weight", "first.bias", "second.bias"}
    want = (x @ new["first.weight"].T + new["first.bias"]) @ new["first.weight"].T + new["second.bias"]
    got = torch.func.functional_call(pair, new, (x,))
    torch.testing.assert_close(got, want)
    assert isinstance(pair.first.weight, nn.Parameter) and pair.first.weight is pair.second.weight


def test_stacked_models_under_vmap() -> None:
    models, x = [Pair().double() for _ in range(3)], torch.randn(2, 3, dtype=torch.float64)
    params, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def one(p: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(base, (p, b), (x,))
        return y

    got = torch.vmap(one)(params, buffers)
    torch.testing.assert_close(got, torch.stack([model(x) for model in models]))


def test_tie_makes_all_parameters_below_those_of_the_other() -> None:
    def stack() -> nn.Sequential:
        return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2, bias=False)))

    whole = KeepsTies()
    whole.a, whole.b = stack(), stack().to("meta")
    tie(whole.b, to=whole.a)
    assert tied_names(whole) == {f"b.{name}": f"a.{name}" for name, _ in whole.a.named_parameters()}
    assert len(list(shared(whole))) == len(list(whole.parameters())) == 3
    with pytest.raises(ProblemError, match="a tie of Linear to Sequential"):
        tie(nn.Linear(2, 2), to=whole.a)

"""One parameter in several modules, and what keeps it one: of itself a tie ends where PyTorch replaces parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from m2gen.errors import ProblemError

if TYPE_CHECKING:
    from typing_extensions import Self

_strict: ContextVar[bool] = ContextVar("strict", default=False)  # of a `LoadsTies` that is loading
_Places = list[tuple[str, nn.Module, str]]  # (full name, the module that holds it, its name there)


def tie(module: nn.Module, to: nn.Module) -> None:
    """From here on all parameters of `module`, and of what is below it, are those of the same names of `to`.

    The module above both should be a `KeepsTies`. `module` may be on the meta device, where nothing is drawn.
    Raises ProblemError where the two do not have parameters of the same names and shapes.
    """
    mine, others = dict(module.named_parameters()), dict(to.named_parameters())
    if {name: p.shape for name, p in mine.items()} != {name: p.shape for name, p in others.items()}:
        found = f"parameters {sorted(mine)} and {sorted(others)}"
        raise ProblemError(f"a tie of {type(module).__name__} to {type(to).__name__}", found, "tie equal modules")
    for name, parameter in others.items():
        path, _, last = name.rpartition(".")
        module.get_submodule(path).register_parameter(last, parameter)


def shared(model: nn.Module) -> Iterator[_Places]:
    """The parameters that stand in several places, each with its places, in the order of the modules."""
    places: dict[int, _Places] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, p in module._parameters.items():
            if p is not None:
                places.setdefault(id(p), []).append((f"{path}.{name}" if path else name, module, name))
    return (group for group in places.values() if len(group) > 1)


class LoadsTies:
    """Of a module: its strict `load_state_dict` asks for one name of each tied parameter."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module."""
        before = _strict.set(strict)
        try:
            return super().load_state_dict(state_dict, strict, assign)  # type: ignore[misc]
        finally:
            _strict.reset(before)


class KeepsTies(LoadsTies, nn.Module):
    """What is one parameter in several places here and below stays one.

    PyTorch makes a new parameter for every place where a module goes to or from the meta device (`to`, `to_empty`),
    where `torch.__future__.set_overwrite_module_params_on_conversion` is on, and in
    `load_state_dict(..., assign=True)`. A state dict may lack all but one of the names of such a parameter: the others
    are loaded too. They count as missing, as those of any tied parameter do (safetensors looks for them there), but
    in a strict `load_state_dict` of this very module, or of another `LoadsTies` above it.

    Loading raises ProblemError for a state dict with different values under names that are one parameter here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tied: list[_Places] = []  # while a state dict is loaded
        self.register_load_state_dict_post_hook(_join_loaded)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        groups = list(shared(self)) if recurse else []
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        _join(groups)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *lists: list[str],
    ) -> None:
        groups = list(shared(self))
        for group in groups:
            added = _complete(state_dict, [prefix + name for name, _, _ in group])
            missing_keys += [] if _strict.get() else added
        self._tied = groups
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *lists)


def _join(groups: list[_Places]) -> None:
    for (_, first, name), *rest in groups:
        for _, module, other in rest:
            if module._parameters[other] is not first._parameters[name]:
                module._parameters[other] = first._parameters[name]


def _join_loaded(module: KeepsTies, _: object) -> None:
    groups, module._tied = module._tied, []
    _join(groups)


def _complete(state: dict[str, Any], names: list[str]) -> list[str]:
    """What `state` has under some of these names is there under all of them; the names that it was put under."""
    found = [name for name in names if name in state]
    if not found:
        return []
    for name in found[1:]:
        if not same_values(state[found[0]], state[name]):
            raise ProblemError(
                "loading weights",
                f"{found[0]} and {name} differ, which are one parameter of this model",
                "load them into a model that keeps them apart, or leave one of them out",
            )
    added = [name for name in names if name not in state]
    state.update(dict.fromkeys(added, state[found[0]]))
    return added


def same_values(a: object, b: object) -> bool:
    """Whether two entries of a state dict have the same values, NaN as NaN, as far as that can be seen here.

    Of different dtypes, the values of the one rounded to the other's.
    """
    if a is b or not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return True
    ordinary = all(type(t) in (Tensor, nn.Parameter) and t.device.type != "meta" for t in (a, b))
    if not ordinary or a.shape != b.shape:  # of a shape that is not the parameter's, loading speaks itself
        return True
    if (a.device, a.dtype, a.data_ptr(), a.stride()) == (b.device, b.dtype, b.data_ptr(), b.stride()):
        return True
    with torch.no_grad():
        a, b = a.to(b.device), b.to(b.device)
        if a.dtype != b.dtype:
            a, b = (a.to(b.dtype), b) if a.element_size() >= b.element_size() else (a, b.to(a.dtype))
        return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def tied_names(model: nn.Module) -> Mapping[str, str]:
    """Of every parameter that stands in several places: its other names, each with the first."""
    return {name: group[0][0] for group in shared(model) for name, _, _ in group[1:]}

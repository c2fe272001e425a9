"""The only caller of torch.library. One `Definition` becomes one operator with every dispatch rule it needs.

An operator registered here is one opaque node to torch.compile and export. Its derivative is an autograd Function
placed at the Autograd dispatch key, below functorch's own dispatch, so that grad, jvp, vmap and their compositions
reach it; `torch.library.register_autograd` would give a silently zero jvp. The Function must be the single-level one:
functorch has already peeled off the other levels when the Autograd key is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction

Args = list[Any]

NAMESPACE = "m2gen"
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_AUTOCAST_KEYS = {"AutocastCPU": "cpu", "AutocastCUDA": "cuda"}


@dataclass(frozen=True)
class Definition:
    """One operator.

    schema       torch schema without the namespace, one Tensor result (several where `vjp` is None)
    impl         the computation, on any device
    fake         shape, dtype and strides of the result
    vjp          (args, grad, needs) -> one gradient (or None, or a list for a Tensor[]) per argument, from
                 differentiable operators, so that every order of derivative exists
    jvp          (args, tangents) -> tangent of the result, from differentiable operators
    vmap         as torch.library.register_vmap asks
    autocast     positions of the arguments that autocast casts to its dtype; the others keep theirs
    """

    schema: str
    impl: Callable[..., Any]
    fake: Callable[..., Any]
    vjp: Callable[[Args, Tensor, Args], Args] | None
    jvp: Callable[[Args, Args], Tensor] | None
    vmap: Callable[..., tuple[Any, Any]]
    autocast: tuple[int, ...] = ()


def register(definition: Definition) -> Any:
    """Register the operator and return its OpOverload."""
    name = definition.schema.split("(")[0]
    _library.define(definition.schema)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    _library.impl(name, definition.impl, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", definition.fake, lib=_library)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", definition.vmap, lib=_library)
    if definition.vjp is not None:
        _library.impl(name, _autograd_kernel(op, definition), "Autograd")
    for key, device in _AUTOCAST_KEYS.items():
        if definition.autocast:
            _library.impl(name, _autocast_kernel(op, definition.autocast, device), key)
    return op


def multilinear_jvp(op: Any, groups: Sequence[tuple[int, ...]]) -> Callable[[Args, Args], Tensor]:
    """The tangent of an operator that is linear in each group of arguments with the other groups held fixed."""

    def jvp(args: Args, tangents: Args) -> Tensor:
        active = [group for group in groups if any(tangents[i] is not None for i in group)]
        terms = [op(*[_replace(a, tangents[i]) if i in group else a for i, a in enumerate(args)]) for group in active]
        return torch.stack(terms).sum(0) if len(terms) > 1 else terms[0]

    return jvp


def fold_vmap(tensor: Tensor | None, dim: int | None, size: int, into: int) -> Tensor | None:
    """Merge a vmapped dimension (or an expanded one) into dimension `into` of the unbatched tensor."""
    if tensor is None:
        return None
    tensor = tensor.unsqueeze(0).expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
    return tensor.movedim(0, into).flatten(into, into + 1)


def unfold_vmap(tensor: Tensor, size: int, dim: int) -> Tensor:
    """Undo `fold_vmap`: the vmapped dimension comes back in front."""
    return tensor.reshape(*tensor.shape[:dim], size, -1, *tensor.shape[dim + 1 :]).movedim(dim, 0)


def _replace(arg: Any, tangent: Any) -> Any:
    if isinstance(arg, list | tuple):
        return [_replace(a, t) for a, t in zip(arg, tangent, strict=True)]
    return torch.zeros_like(arg) if tangent is None and isinstance(arg, Tensor) else tangent


def _flatten(args: Iterable[Any]) -> tuple[Args, tuple[int | None, ...]]:
    flat: Args = []
    spec: list[int | None] = []
    for arg in args:
        is_list = isinstance(arg, list | tuple) and all(isinstance(a, Tensor) or a is None for a in arg)
        spec.append(len(arg) if is_list else None)
        flat.extend(arg if is_list else [arg])
    return flat, tuple(spec)


def _unflatten(flat: Iterable[Any], spec: tuple[int | None, ...]) -> Args:
    items = iter(flat)
    return [next(items) if count is None else [next(items) for _ in range(count)] for count in spec]


def _autograd_kernel(op: Any, definition: Definition) -> Callable[..., Any]:
    function = _function_class(op, definition)

    def kernel(*args: Any) -> Any:
        flat, spec = _flatten(args)
        if not _differentiates(flat):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        with enable_single_level_autograd_function():
            return function.apply(spec, *flat)

    return kernel


def _differentiates(flat: Args) -> bool:
    backward = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in flat)
    return backward or torch.autograd.forward_ad._current_level >= 0


def _function_class(op: Any, definition: Definition) -> Any:
    """An autograd Function over the operator's flattened arguments; `spec` says how to fold them back."""
    vjp, jvp_rule = definition.vjp, definition.jvp

    def forward(spec: tuple[int | None, ...], *flat: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*_unflatten(flat, spec))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        spec, *flat = inputs
        tensors = [a for a in flat if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.spec, ctx.rest = spec, [None if isinstance(a, Tensor) else (a,) for a in flat]

    def saved_args(ctx: Any) -> Args:
        tensors = iter(ctx.saved_tensors)
        return _unflatten((next(tensors) if rest is None else rest[0] for rest in ctx.rest), ctx.spec)

    def backward(ctx: Any, grad: Tensor) -> Any:
        needs = _unflatten(ctx.needs_input_grad[1:], ctx.spec)
        grads = vjp(saved_args(ctx), grad, needs)  # type: ignore[misc]
        return None, *_flatten(grads)[0]

    def jvp(ctx: Any, _: Any, *tangents: Any) -> Tensor:
        return jvp_rule(saved_args(ctx), _unflatten(tangents, ctx.spec))  # type: ignore[misc]

    members: dict[str, Any] = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    return type(f"{op._opname}_function", (_SingleLevelFunction,), {k: staticmethod(v) for k, v in members.items()})


def _autocast_kernel(op: Any, positions: tuple[int, ...], device: str) -> Callable[..., Any]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)

    def cast(arg: Any, dtype: torch.dtype) -> Any:
        if isinstance(arg, list | tuple):
            return [cast(a, dtype) for a in arg]
        eligible = isinstance(arg, Tensor) and arg.is_floating_point() and arg.dtype != torch.float64
        return arg.to(dtype) if eligible else arg

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return op(*[cast(a, dtype) if i in positions else a for i, a in enumerate(args)])

    return kernel

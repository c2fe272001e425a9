"""The only caller of torch.library. One `Definition` becomes one operator with every dispatch rule it needs.

An operator registered here is one opaque node to torch.compile and export. Its derivative is an autograd Function
placed at the Autograd dispatch key, below functorch's own dispatch, so that grad, jvp, vmap and their compositions
reach it; `torch.library.register_autograd` would give a silently zero jvp. The Function must be the single-level one:
functorch has already peeled off the other levels when the Autograd key is reached. The levels below it are met inside
the Function, where PyTorch has turned gradients off: they are turned on again there as they were at the call, or every
derivative of a derivative would be zero. An operator without a derivative of its own is replaced by differentiable
ones where a derivative is wanted.

No argument reaches a computation, its fake or its batching rule before the operator's check has seen it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from m2gen.ops._operands import in_memory
from m2gen.runtime.build.cpp_kernel import gradients_follow

Args = list[Any]

NAMESPACE = "m2gen"
_library: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]
_LISTS = (list, tuple)
_PLAIN = (Tensor, torch.nn.Parameter)
_AUTOCAST_KEYS = {"AutocastCPU": "cpu", "AutocastCUDA": "cuda"}
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
_AUTOCAST = _AUTOCAST | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)


@dataclass(frozen=True)
class Definition:
    """One operator.

    schema       torch schema without the namespace, one Tensor result or several. PyTorch leaves last arguments that
                 are their defaults out of a call: check, impl and fake have the same defaults, the other rules are
                 given every argument
    check        raises ProblemError for arguments that the computation must not meet
    impl         the computation, on any device
    fake         shape, dtype and strides of the result
    vmap         as torch.library.register_vmap asks
    vjp          (args, grad, needs) -> one gradient (or None, or a list for a Tensor[]) per argument, from
                 differentiable operators, so that every order of derivative exists; `grad` is a tuple where there are
                 several results
    jvp          (args, tangents) -> tangent of the result, or of each, from differentiable operators
    composed     instead of vjp and jvp: the same results from differentiable operators
    own          beside all three: whether vjp and jvp are taken of these arguments, which have been checked; where not,
                 the call is composed
    unsaved      positions, before any list, of tensors that vjp and jvp do not look at: they see None, and the tensors
                 need not stay until the gradients are asked for
    autocast     positions of the arguments that autocast casts to its dtype; the others keep theirs
    """

    schema: str
    check: Callable[..., None]
    impl: Callable[..., Any]
    fake: Callable[..., Any]
    vmap: Callable[..., tuple[Any, Any]]
    vjp: Callable[[Args, Any, Args], Args] | None = None
    jvp: Callable[[Args, Args], Any] | None = None
    composed: Callable[..., Any] | None = None
    own: Callable[..., bool] | None = None
    unsaved: tuple[int, ...] = ()
    autocast: tuple[int, ...] = ()


def register(definition: Definition) -> Any:
    """Register the operator and return its OpOverload."""
    name = definition.schema.split("(")[0]
    _library.define(definition.schema)
    op = getattr(getattr(torch.ops, NAMESPACE), name).default
    asked = tuple(argument.default_value for argument in op._schema.arguments)
    _library.impl(name, _implementation(name, definition), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", _checked(definition.check, definition.fake), lib=_library)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _batching_rule(op, definition, asked), lib=_library)
    _library.impl(name, _autograd_kernel(op, definition, asked), "Autograd")
    for key, device in _AUTOCAST_KEYS.items():
        _library.impl(name, _autocast_kernel(op, definition.autocast, device), key)
    return op


def _checked(check: Callable[..., None], function: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        check(*args)
        return function(*args)

    return kernel


def _implementation(name: str, definition: Definition) -> Callable[..., Any]:
    """The computation, of tensors whose numbers lie in memory as their strides say."""
    check, impl = definition.check, definition.impl

    def kernel(*args: Any) -> Any:
        check(*args)
        return impl(*in_memory(name, args))

    return kernel


def _batching_rule(op: Any, definition: Definition, asked: tuple[Any, ...]) -> Callable[..., tuple[Any, Any]]:
    """The rule for vmap, the check made of one sample's arguments. `asked`: the defaults of all arguments."""
    check, vmap = definition.check, definition.vmap

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        in_dims, args = (*in_dims, *[None] * (len(asked) - len(args))), (*args, *asked[len(args) :])
        samples = [_sample(arg, dim) for arg, dim in zip(args, in_dims, strict=True)]
        device = next((a.device.type for a in _flatten(args)[0] if isinstance(a, Tensor)), "cpu")
        if device in _AUTOCAST_KEYS.values() and torch.is_autocast_enabled(device):  # it will cast before the operator
            dtype = torch.get_autocast_dtype(device)
            samples = [_cast(op, a, dtype) if i in definition.autocast else a for i, a in enumerate(samples)]
        check(*samples)
        if info.batch_size == 0:
            return _none_of(op(*samples))
        return vmap(info, in_dims, *args)

    return rule


def _sample(arg: Any, dim: Any) -> Any:
    if isinstance(arg, list | tuple):
        dims = dim if isinstance(dim, list | tuple) else [dim] * len(arg)
        return [_sample(a, d) for a, d in zip(arg, dims, strict=True)]
    if dim is None:
        return arg
    if arg.shape[dim] == 0:
        return arg.new_zeros((*arg.shape[:dim], *arg.shape[dim + 1 :]))
    return arg.select(dim, 0)


def _none_of(result: Any) -> tuple[Any, Any]:
    """No result at all of this shape, and where its samples would lie."""
    if isinstance(result, Tensor):
        return result.new_empty((0, *result.shape)), 0
    return [one.new_empty((0, *one.shape)) for one in result], [0] * len(result)


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
    shape = (*tensor.shape[:dim], size, tensor.shape[dim] // size, *tensor.shape[dim + 1 :])
    return tensor.reshape(shape).movedim(dim, 0)


def _replace(arg: Any, tangent: Any) -> Any:
    if isinstance(arg, list | tuple):
        return [_replace(a, t) for a, t in zip(arg, tangent, strict=True)]
    return torch.zeros_like(arg) if tangent is None and isinstance(arg, Tensor) else tangent


def _flatten(args: Sequence[Any]) -> tuple[Args, tuple[int | None, ...] | None]:
    """The arguments with the tensors of lists among them, and how to undo that; None where there are no lists."""
    for arg in args:
        if arg.__class__ in _LISTS:
            break
    else:  # the usual case, quickly
        return list(args), None
    flat: Args = []
    spec: list[int | None] = []
    for arg in args:
        if arg.__class__ in _LISTS and all(isinstance(a, Tensor) or a is None for a in arg):
            spec.append(len(arg))
            flat.extend(arg)
        else:
            spec.append(None)
            flat.append(arg)
    return flat, tuple(spec)


def _unflatten(flat: Sequence[Any], spec: tuple[int | None, ...] | None) -> Args:
    if spec is None:
        return list(flat)
    items = iter(flat)
    return [next(items) if count is None else [next(items) for _ in range(count)] for count in spec]


def _autograd_kernel(op: Any, definition: Definition, asked: tuple[Any, ...]) -> Callable[..., Any]:
    function: Any = None if definition.vjp is None else _function_class(op, definition)
    check, composed, own = definition.check, definition.composed, definition.own

    def kernel(*args: Any) -> Any:
        reverse, forward = torch.is_grad_enabled(), forward_mode()
        args = (*args, *asked[len(args) :])
        flat, spec = _flatten(args) if reverse or forward else ([], None)
        if not _differentiates(flat, reverse, forward):
            with torch._C._AutoDispatchBelowAutograd():
                return op(*args)
        if composed is not None:
            check(*args)
            if own is None or not own(*args):
                _memory_is_there(op, flat)
                with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                    return composed(*args)
        nested = _functorch.peek_interpreter_stack() is not None
        modes = (reverse, torch._C._is_fwd_grad_enabled()) if nested else None
        allowed = _functorch.get_single_level_autograd_function_allowed()
        _functorch.set_single_level_autograd_function_allowed(True)
        try:
            return function.apply((spec, modes), *flat)
        finally:
            _functorch.set_single_level_autograd_function_allowed(allowed)

    return kernel


def forward_mode() -> bool:
    """Whether there may be tangents. Compiled graphs enter levels without telling `forward_ad`: functorch's while they
    run, a `dual_level` while they are traced. Not seen: a `dual_level` in what `backend="eager"` compiles."""
    if forward_ad._current_level >= 0 or _functorch.peek_interpreter_stack() is not None:
        return True
    return torch._C._len_torch_dispatch_stack() > 0


def _differentiates(flat: Args, reverse: bool, forward: bool) -> bool:
    """Whether a derivative is wanted at this level of functorch, or without it."""
    tensors = [a for a in flat if isinstance(a, Tensor)]
    if reverse and any(a.requires_grad for a in tensors):
        return True
    return forward and any(has_tangent(a) for a in tensors)


def has_tangent(tensor: Tensor) -> bool:
    """Whether a forward-mode derivative follows the tensor."""
    return _dual(tensor).tangent is not None


def _dual(tensor: Tensor) -> Any:
    return torch._VF._unpack_dual(tensor, level=0)  # there is no other level


@contextmanager
def _gradients(reverse: bool, forward: bool) -> Iterator[None]:
    """The modes that the levels of functorch below this one find."""
    before = torch._C._is_fwd_grad_enabled()
    with torch.set_grad_enabled(reverse):
        torch._C._set_fwd_grad_enabled(forward)
        try:
            yield
        finally:
            torch._C._set_fwd_grad_enabled(before)


def _function_class(op: Any, definition: Definition) -> Any:
    """An autograd Function over the operator's flattened arguments, given how to fold them back and the modes of the
    call. The rules run without autocast, as the computation does."""
    vjp, jvp_rule, unsaved = definition.vjp, definition.jvp, definition.unsaved

    def forward(how: tuple[Any, tuple[bool, bool] | None], *flat: Any) -> Any:
        spec, modes = how
        with torch._C._AutoDispatchBelowAutograd():
            if modes is None:
                before = gradients_follow.set(True)
                try:
                    return op(*_unflatten(flat, spec))
                finally:
                    gradients_follow.reset(before)
            with _gradients(*modes):
                return op(*_unflatten(flat, spec))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        (spec, _), *flat = inputs
        for i in unsaved:
            flat[i] = None
        tensors = [a for a in flat if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors)
        if forward_mode():
            ctx.save_for_forward(*tensors)
        ctx.spec, ctx.rest = spec, [None if isinstance(a, Tensor) else (a,) for a in flat]

    def saved_args(ctx: Any) -> Args:
        tensors = iter(ctx.saved_tensors)
        return [next(tensors) if rest is None else rest[0] for rest in ctx.rest]

    def backward(ctx: Any, *grads: Tensor) -> Any:
        needs = _unflatten(ctx.needs_input_grad[1:], ctx.spec)
        args = _unflatten(saved_args(ctx), ctx.spec)
        plain = not torch.is_grad_enabled() and not forward_mode()  # Autograd kernels would find nothing to do
        below = torch._C._AutoDispatchBelowAutograd() if plain else nullcontext()
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST), below:
            found = vjp(args, grads if len(grads) > 1 else grads[0], needs)  # type: ignore[misc]
        return None, *_flatten(found)[0]

    def jvp(ctx: Any, _: Any, *tangents: Any) -> Any:
        # forward gradients are off here, lest this level differentiate its own tangents; but those below must see them
        with _gradients(torch.is_grad_enabled(), forward=True), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            args = [_dual(a).primal if isinstance(a, Tensor) else a for a in saved_args(ctx)]
            return jvp_rule(_unflatten(args, ctx.spec), _unflatten(tangents, ctx.spec))  # type: ignore[misc]

    members: dict[str, Any] = {"forward": forward, "setup_context": setup_context, "backward": backward, "jvp": jvp}
    return type(f"{op._opname}_function", (_SingleLevelFunction,), {k: staticmethod(v) for k, v in members.items()})


def _memory_is_there(op: Any, flat: Args) -> None:
    """PyTorch's own operators read freed memory without a look. Wrapped tensors are let by: they have none to ask."""
    if _functorch.peek_interpreter_stack() is None:
        in_memory(op._opname, [a for a in flat if a.__class__ in _PLAIN])


def _cast(op: Any, arg: Any, dtype: torch.dtype) -> Any:
    """What autocast makes of an argument."""
    if isinstance(arg, list | tuple):
        return [_cast(op, a, dtype) for a in arg]
    if not (isinstance(arg, Tensor) and arg.is_floating_point()) or arg.dtype in (torch.float64, dtype):
        return arg
    if arg.layout is not torch.strided or arg.is_nested:
        return arg  # an error, soon
    _memory_is_there(op, [arg])
    return arg.to(dtype)


def _autocast_kernel(op: Any, positions: tuple[int, ...], device: str) -> Callable[..., Any]:
    """Cast, and whatever the operator then calls is called without autocast."""

    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return op(*[_cast(op, a, dtype) if i in positions else a for i, a in enumerate(args)])

    return kernel

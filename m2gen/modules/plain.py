"""Whether a child module is just what its parent built, so that its weights may be read past it.

A parent that reads `child.weight` and computes with it itself skips whatever stands around the child's call: forward
hooks, parametrizations, adapters, offloading, quantised weights. So it may only where there is none of them; everywhere
else the child is called.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn.modules import module as _everywhere

K = TypeVar("K", bound=type[nn.Module])

_ORDINARY = (Tensor, nn.Parameter, FakeTensor, FunctionalTensor)  # the last two: while a graph is made

# of each kind that may be read past: the `forward` that it was defined with, lest somebody put another there
_KINDS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Embedding, nn.Sequential, nn.Dropout, nn.LayerNorm)
_DEFINED = {kind: kind.forward for kind in _KINDS}


def readable(kind: K) -> K:
    """A class decorator: plain modules of this kind may be read past."""
    _DEFINED[kind] = kind.forward
    return kind


def plain(module: nn.Module | None, kind: type[nn.Module]) -> bool:
    """`module` is exactly a `kind`, a `readable` one, whose call does nothing but that class's `forward` on ordinary
    tensors of its own.

    False for subclasses (adapters, parametrized and quantised modules are some), with hooks of any sort, its own or
    those for all modules, with a `forward` put on the instance (offloading does) or on the class, and with tensors that
    are of a subclass or away (sharded, quantised, pruned, on the meta device).
    """
    if type(module) is not kind or kind.__call__ is not nn.Module.__call__ or "forward" in module.__dict__:
        return False
    if kind.forward is not _DEFINED.get(kind):
        return False
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if (
        _everywhere._global_forward_hooks
        or _everywhere._global_forward_pre_hooks
        or _everywhere._global_backward_hooks
        or _everywhere._global_backward_pre_hooks
    ):
        return False
    for p in module._parameters.values():
        if p is None or (type(p) is nn.Parameter and not p.is_meta):
            continue  # the usual case, quickly: a token of generation asks this often
        if type(p) not in _ORDINARY or p.device.type == "meta":
            return False
    return True


def all_plain(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """`module` and everything below it is plain, each of one of these kinds."""
    return all(type(part) in kinds and plain(part, type(part)) for part in module.modules())


def apply_dropout(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x); x itself where the layer is a plain `nn.Dropout` in evaluation."""
    if not layer.training and plain(layer, nn.Dropout):
        return x
    out: Tensor = layer(x)
    return out

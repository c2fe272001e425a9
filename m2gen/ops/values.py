"""Looks at a tensor's values from Python, in one place: what such a look finds must not become part of a graph.

While a graph is made (torch.jit.trace, make_fx, export, compile) the values at hand are an example's, so a branch taken
on them would hold for all later ones; under vmap there is a value for each row of the batch at once. Where a look is
not possible callers take the path that is right for all values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from m2gen.errors import ProblemError
from m2gen.runtime.build.limits import stands_for_gpu


def traced() -> bool:
    """Whether torch.jit.trace is writing down what is done: it takes every look for a constant."""
    return torch._C._get_tracing_state() is not None


def being_traced() -> bool:
    """Whether what is done is being written down, for other sizes too: by torch.jit.trace, a compiler or an export."""
    return torch.compiler.is_compiling() or traced()


def on_gpu(x: Tensor) -> bool:
    """Whether x is computed with as on a GPU."""
    return x.device.type == "cuda" or (x.device.type == "cpu" and _cpu_is_gpu())


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _cpu_is_gpu() -> bool:
    return stands_for_gpu()


def look(value: Tensor, *, wait: bool = False) -> Tensor | None:
    """The plain tensor that holds `value`'s values, or None where there are none to look at: while a graph is made, on
    the meta device, in subclasses, and on devices that would have to be waited for, unless `wait` says so.

    Under transforms of torch.func it is what they stand around: vmap's batches are axes of it.
    """
    if torch.compiler.is_compiling() or traced() or torch._C._len_torch_dispatch_stack() > 0:
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(value):
        value = torch._C._functorch.get_unwrapped(value)
    if type(value) not in (Tensor, torch.nn.Parameter) or torch._is_functional_tensor(value):
        return None
    here = value.device.type == "cpu" or (wait and value.device.type != "meta")
    return value.detach() if here else None


def all_true(condition: Tensor, *, wait: bool = False) -> bool | None:
    """Whether every entry is true, in all of vmap's batches; None where a look is not possible, as `look` says."""
    found = look(condition, wait=wait)
    if found is None:
        return None
    with torch._C._DisableFuncTorch():
        return bool(found.all())


def ensured(x: Tensor, condition: Tensor, asked: str, found: str, do: str) -> Tensor:
    """`x`, where every entry of `condition` is true; a graph that is being made has the check in it.

    Raises ProblemError (asked, found, do), or RuntimeError from inside a graph. On the meta device all is well.
    """
    known = all_true(condition, wait=True)
    if known is False:
        raise ProblemError(asked, found, do)
    if known is None and condition.device.type != "meta":
        message = f"{asked}: {found}"
        if traced():  # it would drop a check that nothing is computed from
            token: Tensor = torch.ops.aten._functional_assert_async.msg(condition.all(), message, x.new_zeros(()))
            return x + token
        torch._assert_async(condition.all(), message)
    return x

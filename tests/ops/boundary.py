"""Random arguments for every operator: the right answer, or an error that says what is wrong. A program.

`boundary.py FIRST COUNT [OPERATOR ...]` makes one call for each seed, directly or through the public function, with and
without autocast, forward and backward. Most arguments are spoilt, or laid out in memory in an unusual way.
Each call is announced before it is made, so that one which ends the process is known.
"""

from __future__ import annotations

import random
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from boundary_arguments import BUILDERS, CAST, Draw
from boundary_references import REFERENCES
from boundary_spoilers import HARMLESS, SPOILERS
from torch import Tensor

import m2gen
import m2gen.ops.depthwise_conv1d
import m2gen.ops.fftconv
import m2gen.ops.monarch_matmul
import m2gen.ops.turn
from m2gen.errors import M2GenError
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.ops.gate import gated
from m2gen.ops.gated_depthwise_conv1d import gated_depthwise_conv1d
from m2gen.testing import tolerances

SCHEMA = re.compile(  # PyTorch's own errors: of schema, dispatcher, views of what is gone, inference mode
    r"m2gen::\w+\(\) (Expected|expected|is missing|takes|Overflow)|Tried to cast|Could not run 'm2gen::"
    r"|out of bounds for storage|Inference tensors cannot be saved",
    re.S,
)
Function = Callable[..., Any]


def public(name: str, draw: Draw) -> Function | None:
    """The public function behind the operator's arguments, or None."""

    def fftconv(u: Any, k: Any, k_rev: Any, pre: Any, post: Any, skip: Any, mode: Any, precision: Any, add: Any) -> Any:
        likes = (u, pre, post, add)
        last = draw.chance(0.5) and all(x is None or (isinstance(x, Tensor) and x.dim() == 3) for x in likes)
        u, pre, post, add = (x.transpose(1, 2) if last and x is not None else x for x in likes)
        y = m2gen.fftconv(
            u, k, mode=mode, k_rev=k_rev, pre_gate=pre, post_gate=post, skip=skip, add=add, precision=precision,
            layout="BLH" if last else "BHL",
        )  # fmt: skip
        return y.transpose(1, 2) if last else y

    def depthwise_conv1d(x: Any, weight: Any, bias: Any, left: Any, right: Any) -> Any:
        good = all(isinstance(t, Tensor) and not t.is_nested and t.dim() for t in (x, weight))
        if not good or not (isinstance(left, int) and isinstance(right, int)):
            return torch.ops.m2gen.depthwise_conv1d(x, weight, bias, left, right)
        width = weight.shape[-1]
        named = {(width - 1, 0): "causal", ((width - 1) // 2, width - 1 - (width - 1) // 2): "same"}
        padding = named.get((left, right), left if left == right >= 0 and x.shape[-1] >= width else None)
        if padding is None:
            return torch.ops.m2gen.depthwise_conv1d(x, weight, bias, left, right)
        return m2gen.depthwise_conv1d(x, weight, bias, padding)

    def streams(x: Any, weight: Any, bias: Any, last: Any, offset: Any, mask: Any) -> Any:
        if not isinstance(last, bool):
            return torch.ops.m2gen.gated_depthwise_conv1d(x, weight, bias, last, offset, mask)
        z, g = gated_depthwise_conv1d(x, weight, bias, to="BLH" if last else "BHL", offset=offset, mask=mask)
        return (z.transpose(1, 2), g.transpose(1, 2)) if last else (z, g)

    def product(x: Any, weight: Any, bias: Any, residual: Any) -> Any:
        return m2gen.blockdiag_linear(x, weight, bias, residual=residual)

    def epilogue(x: Any, weight: Any, bias: Any, residual: Any, activation: Any, glu: Any) -> Any:
        if not isinstance(glu, bool):
            return torch.ops.m2gen.blockdiag_epilogue(x, weight, bias, residual, activation, glu)
        if glu:
            return blockdiag_glu(x, weight, activation, bias, residual)
        return m2gen.blockdiag_linear(x, weight, bias, activation, residual)

    found: dict[str, Function] = {
        "fftconv": fftconv,
        "depthwise_conv1d": depthwise_conv1d,
        "blockdiag_linear": product,
        "monarch_matmul": m2gen.monarch_matmul,
        "blockdiag_epilogue": epilogue,
        "gated": gated,
        "gated_depthwise_conv1d": streams,
    }
    return found.get(name)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for one in value for x in tensors(one)] if isinstance(value, list | tuple) else []


def floating(value: Any) -> list[Tensor]:
    return [x for x in tensors(value) if x.is_floating_point()]


def mapped(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, list | tuple):
        return [mapped(one, function) for one in value]
    return function(value) if isinstance(value, Tensor) else value


def after_autocast(name: str, args: list[Any], dtype: torch.dtype | None) -> list[Any]:
    """The arguments that the computation sees."""

    def cast(x: Tensor) -> Tensor:
        return x if dtype is None or x.dtype == torch.float64 or not x.is_floating_point() else x.to(dtype)

    return [mapped(arg, cast) if i in CAST.get(name, ()) else arg for i, arg in enumerate(args)]


def exact(name: str, args: list[Any], change: Callable[[Tensor], Tensor] = lambda x: x) -> tuple[list[Any], list[Any]]:
    """Leaves in float64 and the reference's results of them."""
    leaves = mapped(args, lambda x: _leaf_of(x, change))
    found = REFERENCES[name](*leaves, magnitudes=change is torch.abs)
    return leaves, list(found) if isinstance(found, tuple) else [found]


def _leaf_of(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    return change(x.detach().double()).clone().requires_grad_() if x.is_floating_point() else x


def close(found: Tensor, wanted: Tensor, scale: Tensor, terms: int, dtype: torch.dtype) -> None:
    size = scale.detach().abs().max() if scale.numel() else scale.detach()
    tolerances.check(found.detach(), wanted.detach(), size, 4 * terms, dtype)


def coarsest(args: list[Any], *more: Tensor) -> torch.dtype:
    floats = [x.dtype for x in floating([*args, *more])]
    return max(floats, key=lambda dtype: torch.finfo(dtype).eps)


def compare(name: str, args: list[Any], seen: list[Any], y: list[Tensor], backward: bool) -> None:
    """Results, and the gradients of a random functional of them, against float64."""
    leaves, wanted = exact(name, seen)
    sizes, scales = exact(name, seen, torch.abs)
    terms = max([8, *(n for x in tensors(seen) for n in (x.numel(),))])
    dtype = coarsest(seen)
    assert len(y) == len(wanted)
    for a, b, size in zip(y, wanted, scales, strict=True):
        close(a, b, size, terms, dtype)
    inputs = [x for x in tensors(args) if x.requires_grad]
    y = [one for one in y if one.requires_grad]
    if not backward or not inputs or not y:
        return
    kept = [i for i, one in enumerate(wanted) if one.requires_grad and one.numel()]
    dy = [torch.randn(one.shape, dtype=torch.float64).to(one.dtype) for one in y]
    grads = torch.autograd.grad(y, inputs, dy, allow_unused=True)
    dys = [one.double() for one in dy if one.numel()] if len(kept) != len(y) else [one.double() for one in dy]
    at = [wanted[i] for i in kept], [scales[i] for i in kept]
    wants = torch.autograd.grad(at[0], floating(leaves), dys, allow_unused=True, materialize_grads=True)
    sizes = torch.autograd.grad(
        at[1], floating(sizes), [one.abs() for one in dys], allow_unused=True, materialize_grads=True
    )
    wants, sizes = (
        [one for one, x in zip(some, floating(args), strict=True) if x.requires_grad] for some in (wants, sizes)
    )
    for x, found, want, size in zip(inputs, grads, wants, sizes, strict=True):
        if found is None:
            assert not want.any()
        else:
            assert found.dtype == x.dtype
            close(found, want, size, terms, coarsest(seen, x))


def leaf(x: Tensor) -> Tensor:
    return x.requires_grad_() if x.is_floating_point() and x.is_leaf and not x.is_inference() else x


def attempt(seed: int, names: Sequence[str] = ()) -> str:
    """One call; "right", or what refused it."""
    torch.manual_seed(seed)
    draw = Draw(random.Random(seed))
    name = draw.one(names or sorted(BUILDERS))
    args = BUILDERS[name](draw)
    spoilt = []
    for _ in range(draw.one([0, 0, 1, 1, 1, 2])):
        i = draw.one(range(len(args)))
        if any(word.endswith(f" {i}") for word in spoilt):
            continue
        kinds = [*HARMLESS, *SPOILERS] if tensors(args[i]) else [*SPOILERS]
        how = draw.one(kinds)
        args[i] = {**HARMLESS, **SPOILERS}[how](draw, args[i])
        spoilt.append(f"{how} {i}")
    dtype = draw.one([None, None, torch.bfloat16, torch.float16])
    call = (public(name, draw) if draw.chance(0.5) else None) or getattr(torch.ops.m2gen, name)
    trained = draw.chance(0.5)
    if trained:
        args = mapped(
            args, lambda x: x.requires_grad_() if x.is_floating_point() and x.is_leaf and not x.is_inference() else x
        )
    print(seed, name, spoilt, dtype, "grad" if trained else "", flush=True)
    try:
        with torch.autocast("cpu", dtype) if dtype else nullcontext():
            found = call(*args)
        y = tensors(found)
        if any(x.device.type != "cpu" for x in [*y, *tensors(args)]):
            assert all(x.device.type == "meta" for x in [*y, *tensors(args)])
            return "right"
        seen = after_autocast(name, args, dtype)
        compare(name, args, seen, y, trained)
    except M2GenError as error:
        assert error.asked and error.found and error.do
        assert any(word.split()[0] in SPOILERS for word in spoilt), f"a good call is refused: {error}"
        return "refused"
    except (TypeError, RuntimeError) as error:
        if not SCHEMA.search(str(error)):
            raise
        return "refused by the schema"
    return "right"


def main(first: int, count: int, names: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes = Counter(attempt(seed, names) for seed in range(first, first + count))
    print(*(f"{how}: {many}" for how, many in sorted(outcomes.items())), sep="; ")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])

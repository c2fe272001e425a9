"""Operators beside dense formulas in float64, and torch.func's transforms as maps from functions to functions.

Every function is of two numbers: its operator's arguments move along two random directions, one argument alone or all
together, and the sine of the result keeps derivatives of every order away from zero.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import m2gen
from m2gen.ops.blockdiag_linear import blockdiag_epilogue_bwd_op, blockdiag_glu, blockdiag_outer_op
from m2gen.ops.depthwise_conv1d import depthwise_conv1d_dw_op
from m2gen.ops.fftconv import fftconv_bwd_op, fftconv_dk_op
from m2gen.ops.gate import gated, gated_bwd_op
from m2gen.ops.gated_depthwise_conv1d import gated_depthwise_conv1d, gated_depthwise_conv1d_bwd_op
from m2gen.ops.monarch_matmul import monarch_backward_op
from m2gen.ops.turn import turn
from m2gen.planner.fftconv.problem import MODES
from m2gen.reference.fftconv import lag_weights

Function = Callable[[Tensor], Tensor]
Arguments = dict[str, Tensor]
Case = tuple[Callable[..., Any], Callable[..., Any], Arguments]


def weights(y: Tensor) -> Tensor:
    return torch.cos(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)


def weighed(y: Tensor) -> Tensor:
    return (y * weights(y)).sum()


def pulled(y: Tensor, back: Callable[[Tensor], tuple[Tensor]]) -> Tensor:
    return back(weights(y))[0]


def direction(x: Tensor) -> Tensor:
    return torch.stack([x[1] + 0.7, 0.4 - x[0]])


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "grad": lambda f: grad(lambda x: weighed(f(x))),
    "vjp": lambda f: lambda x: pulled(*vjp(f, x)),
    "jvp": lambda f: lambda x: jvp(f, (x,), (direction(x),))[1],
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "vmap": lambda f: lambda x: vmap(f, in_dims=1)(torch.stack([x, 0.5 - x], 1)),
}
CHAINS = [*product(TRANSFORMS, repeat=2), *product(TRANSFORMS, repeat=3)]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def taps(mode: str, length: int, count: int) -> tuple[Tensor, Tensor]:
    """(K, L, L) twice: what each tap of k and of k_rev multiplies, sample j for result i."""
    unit, index = torch.eye(count, dtype=torch.float64), torch.arange(length)
    at = index[:, None] - index[None, :] + length - 1
    behind = lag_weights(unit, length, mode)[:, at]
    ahead = lag_weights(torch.zeros_like(unit), length, "bidirectional", unit)[:, at]
    return behind, ahead


def convolution(
    mode: str, u: Tensor, k: Tensor, k_rev: Any = None, pre: Any = 1, post: Any = 1, skip: Any = 0
) -> Tensor:
    behind, ahead = taps(mode, u.shape[-1], k.shape[-1])
    z = u * pre
    y = torch.einsum("ht,tij,bhj->bhi", k, behind, z)
    y = y if k_rev is None else y + torch.einsum("ht,tij,bhj->bhi", k_rev, ahead, z)
    return post * (y + (skip.unsqueeze(-1) * z if isinstance(skip, Tensor) else 0))


def fftconv_case(mode: str) -> Case:
    args = {"u": normal(2, 2, 4), "k": normal(2, 3), "pre_gate": normal(2, 2, 4), "post_gate": normal(2, 2, 4)}
    args |= {"skip": normal(2), "add": normal(2, 2, 4)}
    args |= {"k_rev": normal(2, 3)} if mode == "bidirectional" else {}

    def reference(u: Tensor, k: Tensor, add: Tensor, k_rev: Any = None, **gates: Tensor) -> Tensor:
        return convolution(mode, u, k, k_rev, gates["pre_gate"], gates["post_gate"], gates["skip"]) + add

    return lambda **a: m2gen.fftconv(**a, mode=mode), reference, args


def fftconv_bwd_case() -> Case:
    args = {"dy": normal(1, 2, 3), "u": normal(1, 2, 3), "k": normal(2, 2), "pre": normal(1, 2, 3)}
    args |= {"post": normal(1, 2, 3), "skip": normal(2)}

    def found(dy: Tensor, u: Tensor, k: Tensor, pre: Tensor, post: Tensor, skip: Tensor) -> Tensor:
        grads = fftconv_bwd_op(dy, u, k, None, pre, post, skip, "causal", "auto", [True, True, False, True, True, True])
        return torch.cat([one.flatten() for one in grads])

    def reference(dy: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        u, k, pre, post, skip = (named[name] for name in ("u", "k", "pre", "post", "skip"))
        _, back = vjp(lambda *a: convolution("causal", a[0], a[1], None, *a[2:]), u, k, pre, post, skip)
        return torch.cat([one.flatten() for one in back(dy)])

    return found, reference, args


def fftconv_dk_case() -> Case:
    def reference(z: Tensor, dc: Tensor) -> Tensor:
        both = taps("bidirectional", 4, 3)
        return torch.stack([torch.einsum("bhi,tij,bhj->ht", dc, one, z) for one in both])

    args = {"z": normal(2, 2, 4), "dc": normal(2, 2, 4)}
    return lambda z, dc: fftconv_dk_op(z, dc, 3, "bidirectional", "auto"), reference, args


def blockdiag(x: Tensor, weight: Tensor, bias: Any = 0) -> Tensor:
    return torch.einsum("...bi,boi->...bo", x.unflatten(-1, (weight.shape[0], -1)), weight).flatten(-2) + bias


def glu(z: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    gate, value = z.chunk(2, -1)
    return activation(gate) * value


def silu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


def blockdiag_bwd_case() -> Case:
    args = {"dy": normal(2, 3), "x": normal(2, 4), "weight": normal(2, 3, 2), "bias": normal(6)}

    def found(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        grads = blockdiag_epilogue_bwd_op(dy, x, weight, bias, "silu", True, [True, True, True])
        return torch.cat([one.flatten() for one in grads])

    def reference(dy: Tensor, **inputs: Tensor) -> Tensor:
        x, weight, bias = (inputs[name] for name in ("x", "weight", "bias"))
        _, back = vjp(lambda *of: glu(blockdiag(*of), silu), x, weight, bias)
        return torch.cat([one.flatten() for one in back(dy)])

    return found, reference, args


def gated_bwd(dy: Tensor, z: Tensor) -> Tensor:
    return vjp(lambda z: glu(z, silu), z)[1](dy)[0]


def short(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1))
    return sum(weight[:, w, None] * padded[..., w : w + x.shape[2]] for w in range(3)) + bias.unsqueeze(-1)


def short_dw(x: Tensor, dy: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1))
    sums = [(padded[..., w : w + dy.shape[2]] * dy).sum((0, 2)) for w in range(3)]
    return torch.stack([*sums, dy.sum((0, 2))], 1)


def streams(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    padded = F.pad(x, (2, 0))
    y = sum(weight[:, w, None] * padded[..., w : w + x.shape[2]] for w in range(3)) + bias.unsqueeze(-1)
    return y.chunk(3, 1)


MASK = torch.tensor([[True, False, True]])


def mixed(x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
    x1, x2, v = streams((x + offset[:, None]) * MASK, weight, bias)
    return torch.stack([x1 * v * MASK, x2])


def mixed_bwd(dz: Tensor, dg: Tensor, x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
    _, back = vjp(mixed, x, weight, bias, offset)
    return torch.cat([one.flatten() for one in back(torch.stack([dz, dg]))])


def mixed_bwd_found(dz: Tensor, dg: Tensor, x: Tensor, weight: Tensor, bias: Tensor, offset: Tensor) -> Tensor:
    found = gated_depthwise_conv1d_bwd_op(dz, dg, x, weight, bias, offset, MASK, [True] * 4)
    return torch.cat([one.flatten() for one in found])


def monarch(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Order 2, (2, 3, 2) and (3, 1, 2): y[(o, c)] = sum second[c, o, b] first[b, c, a] x[(a, b)]."""
    y = torch.einsum("cob,bca,nab->noc", second, first, x.unflatten(-1, (2, 2)))
    return y.flatten(-2)


def monarch_backward_case() -> Case:
    args = {"dy": normal(2, 3), "x": normal(2, 4), "first": normal(2, 3, 2), "second": normal(3, 1, 2)}

    def found(dy: Tensor, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        grads = monarch_backward_op(dy, x, [first, second], [True, True, True])
        return torch.cat([one.flatten() for one in grads])

    def reference(dy: Tensor, *inputs: Tensor, **named: Tensor) -> Tensor:
        _, back = vjp(monarch, named["x"], named["first"], named["second"])
        return torch.cat([one.flatten() for one in back(dy)])

    return found, reference, args


CASES: dict[str, Callable[[], Case]] = {
    **{f"fftconv {mode}": lambda mode=mode: fftconv_case(mode) for mode in MODES},
    "fftconv_bwd": fftconv_bwd_case,
    "fftconv_dk": fftconv_dk_case,
    "depthwise_conv1d": lambda: (
        lambda x, weight, bias: m2gen.depthwise_conv1d(x, weight, bias, "same"), short,
        {"x": normal(2, 2, 4), "weight": normal(2, 3), "bias": normal(2)},
    ),
    "depthwise_conv1d_dw": lambda: (
        lambda x, dy: depthwise_conv1d_dw_op(x, dy, 3, 1, 1), short_dw, {"x": normal(2, 2, 4), "dy": normal(2, 2, 4)}
    ),
    "gated_depthwise_conv1d": lambda: (
        lambda x, weight, bias, offset: torch.stack(
            gated_depthwise_conv1d(x, weight, bias, offset=offset, mask=MASK)
        ), mixed,
        {"x": normal(1, 3, 3), "weight": normal(3, 3), "bias": normal(3), "offset": normal(3)},
    ),
    "gated_depthwise_conv1d_bwd": lambda: (
        mixed_bwd_found, mixed_bwd,
        {"dz": normal(1, 1, 3), "dg": normal(1, 1, 3), "x": normal(1, 3, 3), "weight": normal(3, 3), "bias": normal(3),
         "offset": normal(3)},
    ),
    "turn": lambda: (lambda x: turn(x, True), lambda x: x.transpose(1, 2), {"x": normal(2, 3, 4)}),
    "blockdiag_linear": lambda: (
        lambda x, weight, bias, residual: m2gen.blockdiag_linear(x, weight, bias, None, residual),
        lambda x, weight, bias, residual: blockdiag(x, weight, bias) + residual,
        {"x": normal(2, 4), "weight": normal(2, 3, 2), "bias": normal(6), "residual": normal(2, 6)},
    ),
    "blockdiag_linear gelu": lambda: (
        lambda x, weight, bias, residual: m2gen.blockdiag_linear(x, weight, bias, "gelu", residual),
        lambda x, weight, bias, residual: F.gelu(blockdiag(x, weight, bias)) + residual,
        {"x": normal(2, 4), "weight": normal(2, 3, 2), "bias": normal(6), "residual": normal(2, 6)},
    ),
    "blockdiag_outer": lambda: (
        lambda dy, x: blockdiag_outer_op(dy, x, 2),
        lambda dy, x: torch.einsum("rbo,rbi->boi", dy.unflatten(-1, (2, -1)), x.unflatten(-1, (2, -1))),
        {"dy": normal(3, 4), "x": normal(3, 6)},
    ),
    "blockdiag_glu": lambda: (
        lambda x, weight, bias, residual: blockdiag_glu(x, weight, "silu", bias, residual),
        lambda x, weight, bias, residual: glu(blockdiag(x, weight, bias), silu) + residual,
        {"x": normal(2, 4), "weight": normal(2, 3, 2), "bias": normal(6), "residual": normal(2, 3)},
    ),
    "blockdiag_epilogue_bwd": blockdiag_bwd_case,
    "gated": lambda: (lambda z: gated(z, "gelu"), lambda z: glu(z, F.gelu), {"z": normal(2, 6)}),
    "gated_bwd": lambda: (
        lambda dy, z: gated_bwd_op(dy, z, "silu"), gated_bwd, {"dy": normal(2, 3), "z": normal(2, 6)}
    ),
    "monarch_matmul": lambda: (
        lambda x, first, second: m2gen.monarch_matmul(x, [first, second]), monarch,
        {"x": normal(2, 4), "first": normal(2, 3, 2), "second": normal(3, 1, 2)},
    ),
    "monarch_backward": monarch_backward_case,
}  # fmt: skip
OWN = ", its own gradients"  # as where kernels of a GPU give all of them: executor.own_gradients says so
CASES |= {name + OWN: CASES[name] for name in ("blockdiag_linear", "blockdiag_linear gelu", "blockdiag_glu")}
ARGUMENTS = [(name, argument) for name in CASES for argument in (*CASES[name]()[2], "all")]


def functions(name: str, argument: str) -> tuple[Function, Function]:
    """The operator and its formula, of two numbers that move the argument."""
    torch.manual_seed(len(name))
    found, reference, args = CASES[name]()
    moved = {
        one: torch.stack([x, normal(*x.shape), normal(*x.shape)]) for one, x in args.items() if argument in (one, "all")
    }

    def at(x: Tensor) -> Arguments:
        """As one product: each sum of a dual number and a plain one runs PyTorch's Python, for a tangent of zeros."""
        along = torch.cat([torch.ones(1, dtype=x.dtype), x])
        return {one: torch.tensordot(along, moved[one], 1) if one in moved else base for one, base in args.items()}

    return lambda x: torch.sin(found(**at(x))), lambda x: torch.sin(reference(**at(x)))


def compare(name: str, argument: str, chain: tuple[str, ...]) -> None:
    """The transforms, the last of the chain outermost, of the operator and of its formula."""
    x = torch.tensor([0.3, -0.2], dtype=torch.float64)
    y, expected = functions(name, argument)
    for one in chain:
        y, expected = TRANSFORMS[one](y), TRANSFORMS[one](expected)
    a, b = y(x), expected(x)
    size = b.abs().max()
    assert size > 0
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * float(size))

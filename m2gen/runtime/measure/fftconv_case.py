"""Long convolutions to be measured and tried.

A sample of a result is the first and last of the batch and some channels, all outputs of short sequences, a sample of
long ones with both ends in it. The tolerance is the tests' own (m2gen/testing/tolerances.py).
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.plan import Plan
from m2gen.planner.step import Body
from m2gen.reference.fftconv import fftconv_at
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.bindings.kept_spectra import KeptFilter
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.measure.case import Case
from m2gen.testing.exact import BOUND, NAMES, NESTED, STAGED, exact, relative
from m2gen.testing.operands import operands
from m2gen.testing.tolerances import check

_NUMBERS = 2**26  # in a tensor: larger problems are timed on fewer channels
_BATCH, _CHANNELS = 3, 2  # of the small problem
_TILES = (8, 4, 2)  # rows of a tile that several share
_TERMS = 2**26  # products a channel that the reference may take


class FftConvCase(Case[FftConvProblem]):
    """A convolution of random numbers with a filter that decays like a trained one."""

    def __init__(self, problem: FftConvProblem, device: torch.device) -> None:
        super().__init__(problem, device)
        self._take(tensors(problem, device))

    def _take(self, args: dict[str, Any]) -> None:
        self.args = args
        self.x = Operands(**{name: args[name] for name in (*NAMES, "add") if name in args})

    @staticmethod
    def reduced(problem: FftConvProblem) -> FftConvProblem:
        """With as few channels as keep its tensors small: channels do not know of one another."""
        most = max(16, _NUMBERS // (problem.b * problem.n))
        return problem if problem.h <= most else replace(problem, h=most)

    @staticmethod
    def small(problem: FftConvProblem) -> FftConvProblem:
        """A few rows; where the batch fills tiles of a kernel (`FftConvSpec.full`), they do, too."""
        filled = next((rows for rows in _TILES if problem.b % rows == 0), _BATCH)
        return replace(problem, b=min(problem.b, filled), h=min(problem.h, _CHANNELS))

    @property
    def large(self) -> bool:
        return self.problem.b * self.problem.h * self.problem.n > self.LARGE

    def call(self, kernel: Any) -> Tensor:
        y: Tensor = kernel.forward(self.x)
        return y

    def back(self, kernel: Any, y: Tensor) -> None:
        self._backward(kernel, y)

    def opposite(self) -> FftConvCase:
        other = copy(self)
        other._take(self.args | {name: -self.args[name] for name in ("u", "add") if name in self.args})
        other._oracle = replace(self._oracle, expected=-self._oracle.expected)
        return other

    @cached_property
    def _oracle(self) -> Oracle:
        return oracle(self.problem, self.x)

    def wrong(self, y: Tensor) -> str | None:
        return self._oracle.wrong(y)

    def wrong_somewhere(self, plan: Plan) -> str | None:
        bounds = [BOUND[self.problem.dtype] * slack for slack in _slack(plan)]
        kernel = kernel_of(plan)
        expected, leaves = exact(self.args)
        found = [("result", self.call(kernel), expected)]
        dy = torch.randn_like(found[0][1])
        wanted = dict(zip(leaves, torch.autograd.grad(expected, list(leaves.values()), dy.double()), strict=True))
        out = self._backward(kernel, dy)
        found += [(f"gradient of {name}", getattr(out, name), right) for name, right in wanted.items()]
        for names in self._alone(plan):
            out = self._backward(kernel, dy, names)
            found += [(f"gradient of {name} alone", getattr(out, name), wanted[name]) for name in names]
        for what, value, right in found:
            bound = bounds[what.startswith("gradient")]
            if not (error := relative(value, right)) < bound:  # also true for NaN
                return f"it is wrong: {what} is off by {error:.3g}, allowed {bound:.3g}"
        return None

    def wrong_in_a_sample(self, plan: Plan) -> str | None:
        kernel = kernel_of(plan)
        y = self.call(kernel)
        why = self.wrong(y)
        every = [NAMES, *self._alone(plan)] if why is None else []
        outs = [self._backward(kernel, y, names) for names in every]
        gradients = [value for out in outs for name in NAMES if (value := getattr(out, name)) is not None]
        return why if all(bool(x.isfinite().all()) for x in gradients) else "it is wrong: a gradient is not finite"

    def _alone(self, plan: Plan) -> list[tuple[str, ...]]:
        """Gradients for which a plan has kernels of their own where no others are wanted."""
        return [(name,) for name in ("u", "pre_gate") if name in self.args and isinstance(plan.body, PassesConv)]

    def _backward(self, kernel: Any, dy: Tensor, names: tuple[str, ...] = NAMES) -> Gradients:
        given = {name: value for name in names if (value := getattr(self.x, name)) is not None}
        out = Gradients(**{n: torch.empty_like(t) if t.dim() == 3 else torch.zeros_like(t) for n, t in given.items()})
        kernel.backward(dy, self.x, out)
        return out

    def staying(self, kernel: Any) -> Callable[[], Tensor]:
        """With a filter that is kept, and whose spectrum was kept by a call before."""
        x = self.x
        k_rev, skip = (None if t is None else t.clone() for t in (x.k_rev, x.skip))
        filters = KeptFilter(x.k.clone(), k_rev, skip)
        k, k_rev, skip = filters.tensors
        own = replace(x, k=k, k_rev=k_rev, skip=skip)
        kernel.forward(own)

        def call(kept: KeptFilter = filters) -> Tensor:  # which lives as long as the call
            y: Tensor = kernel.forward(own)
            return y

        return call


def _slack(plan: Plan) -> tuple[float, float]:
    """Times the bound of a kernel on chip, of the result and of gradients."""
    body = plan.body
    back = body.back if isinstance(body, FusedConv) else None
    return _rounded(body), _rounded(body if back is None else back)


def _rounded(body: Body[Any]) -> float:
    """What goes through memory in half precision is rounded there once more."""
    if isinstance(body, PassesConv):
        return NESTED if len(body.outer) > 1 else STAGED
    return STAGED if isinstance(body, FusedConv) and body.spec.staged else 1


def tensors(problem: FftConvProblem, device: torch.device) -> dict[str, Any]:
    """Operands (B, H, L) of the problem in its layout, and the mode."""
    args = operands(problem, device=device)
    if args.pop("layout") == "BLH":
        args |= {name: args[name].mT for name in ("u", "pre_gate", "post_gate", "add") if name in args}
    return args


# -- a sample of the answer --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oracle:
    """Rows of a problem's result in float64: y[rows of the batch, channels, positions]."""

    batch: Tensor
    channels: Tensor
    positions: Tensor
    expected: Tensor
    scale: Tensor
    terms: int

    def wrong(self, y: Tensor) -> str | None:
        """Why `y` (B, H, L) is wrong; None where it is right."""
        device = y.device
        found = y[self.batch.to(device)][:, self.channels.to(device)][..., self.positions.to(device)].cpu()
        try:
            check(found, self.expected, self.scale, self.terms)
        except AssertionError as error:
            return f"it is wrong: {error}"
        return None


def oracle(problem: FftConvProblem, x: Operands) -> Oracle:
    """The reference's answer to the operands of a problem, for some of its rows."""
    h, n = problem.h, problem.n
    channels = torch.tensor(sorted({0, h // 3, 2 * h // 3, h - 1}))
    batch = torch.tensor(sorted({0, x.u.shape[0] - 1}))
    count = min(n, max(32, _TERMS // n))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randperm(n, generator=generator)[:count]
    positions = torch.tensor(sorted({*drawn.tolist(), 0, n - 1}))
    rows = {name: _rows(getattr(x, name), batch, channels) for name in (*NAMES, "add")}
    given = {name: value for name, value in rows.items() if value is not None}
    expected = _at(positions, given, problem.mode)
    # what an error is measured against: the size of the terms that were summed, times the gate after the sum
    sizes = {name: value.abs() for name, value in given.items()}
    gate, add = sizes.pop("post_gate", None), sizes.pop("add", None)
    scale = _at(positions, sizes, problem.mode).amax(-1, keepdim=True)
    scale = scale if gate is None else scale * gate.double()[..., positions]
    scale = scale if add is None else scale + add.double()[..., positions]
    return Oracle(batch, channels, positions, expected, scale, problem.linear_size)


def _at(positions: Tensor, given: dict[str, Tensor], mode: str) -> Tensor:
    rest: dict[str, Any] = {name: value for name, value in given.items() if name not in ("u", "k")}
    return fftconv_at(positions, given["u"], given["k"], mode=mode, **rest)


def _rows(tensor: Tensor | None, batch: Tensor, channels: Tensor) -> Tensor | None:
    if tensor is None:
        return None
    if tensor.dim() == 3:
        tensor = tensor[batch.to(tensor.device)][:, channels.to(tensor.device)]
    else:
        tensor = tensor[channels.to(tensor.device)]
    return tensor.cpu()

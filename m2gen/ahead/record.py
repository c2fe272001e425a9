"""Which problems a model poses: it is run on PyTorch's fake tensors, which have shapes and strides but no data, and the
calls of m2gen's operators are written down. No weights, no memory, no kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from m2gen.planner.problem import Problem

if TYPE_CHECKING:
    from m2gen.device.limits import DeviceLimits


def counted(number: int, what: str) -> str:
    """A number of things, such as "1 kernel", "2 kernels"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


@dataclass(slots=True)
class Wanted:
    """What is to be compiled for one target: problems with who asks for them, and those whose gradients are wanted."""

    problems: dict[Problem, list[str]] = field(default_factory=dict)
    trained: set[Problem] = field(default_factory=set)

    def add(self, problem: Problem, of: str, gradients: bool) -> None:
        who = self.problems.setdefault(problem, [])
        if of not in who:
            who.append(of)
        if gradients:
            self.trained.add(problem)


def recorder(wanted: Wanted, of: str, limits: DeviceLimits) -> Any:
    """A context in which calls of operators are noted in `wanted`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    notes = notes_of(wanted, of, limits)

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in notes:
                with self:  # a note may run the operator's parts
                    notes[func](*args)
            return func(*args, **(kwargs or {}))

    return Recorder()  # type: ignore[no-untyped-call]


class Noting(Protocol):
    """What is told of every problem that is posed, or whose gradients are."""

    def add(self, problem: Problem, of: str, gradients: bool) -> None: ...


def notes_of(wanted: Noting, of: str, limits: DeviceLimits) -> dict[Any, Callable[..., Any]]:
    """What to note of each operator's call."""
    import torch

    from m2gen.kernels.shortconv import SUMMED
    from m2gen.ops import monarch_matmul
    from m2gen.ops.blockdiag_linear import (
        blockdiag_epilogue_bwd_op,
        blockdiag_epilogue_op,
        blockdiag_linear_op,
        blockdiag_outer_op,
    )
    from m2gen.ops.depthwise_conv1d import depthwise_conv1d_dw_op, depthwise_conv1d_op
    from m2gen.ops.fftconv import fftconv_bwd_op, fftconv_dk_op, fftconv_op
    from m2gen.ops.gate import gated_bwd_op, gated_op
    from m2gen.ops.gated_depthwise_conv1d import gated_depthwise_conv1d_bwd_op, gated_depthwise_conv1d_op
    from m2gen.ops.turn import turn_op
    from m2gen.runtime import posed
    from m2gen.runtime.bindings.spectral import Operands
    from m2gen.runtime.posed import monarch_problem, problem_of, product_problem

    def long(gradients: bool, *args: Any) -> None:
        tensors, (mode, precision, *add) = args[:6], args[6:]
        wanted.add(problem_of(Operands(*tensors, *add), mode, precision), of, gradients)

    def taps(z: Any, dc: Any, length: int, mode: str, precision: str) -> None:
        k = z.new_empty((dc.shape[1], length))
        long(True, z, k, k if mode == "bidirectional" else None, None, None, None, mode, precision)

    def product(
        x: Any, weight: Any, bias: Any, residual: Any = None, activation: str | None = None, glu: bool = False
    ) -> None:
        if x.numel() and weight.numel():
            rows, words = x.numel() // (weight.shape[0] * weight.shape[2]), (glu, activation, residual is not None)
            wanted.add(product_problem(weight.shape, rows, x.dtype, bias is not None, *words), of, False)

    def behind(dy: Any, x: Any, weight: Any, bias: Any, activation: str | None, glu: bool, needs: Any) -> None:
        if x.numel() and weight.numel():
            rows = x.numel() // (weight.shape[0] * weight.shape[2])
            problem = product_problem(weight.shape, rows, x.dtype, bias is not None, glu, activation)
            wanted.add(problem, of, True)

    def outer(dy: Any, x: Any, nblocks: int) -> None:
        if x.numel() and dy.numel():
            shape = (nblocks, dy.shape[1] // nblocks, x.shape[1] // nblocks)
            wanted.add(product_problem(shape, x.shape[0], x.dtype), of, True)

    def monarch(x: Any, factors: Any, gradients: bool) -> None:
        if not x.numel() or not all(f.numel() for f in factors):
            return
        shapes = tuple(tuple(f.shape) for f in factors)
        problem = monarch_problem(shapes, x.numel() // (shapes[0][0] * shapes[0][2]), x.dtype)
        wanted.add(problem, of, gradients)

    def short(x: Any, outputs: int, width: int, bias: Any, gradients: bool) -> None:
        if x.numel() and outputs:
            sizes = (x.shape, outputs, width, x.dtype, bias is not None, posed.channels_last(x))
            wanted.add(posed.shortconv_problem(*sizes), of, gradients)

    def mixed(x: Any, weight: Any, bias: Any, last: bool, offset: Any, mask: Any, gradients: bool) -> None:
        if not x.numel():
            return
        width, words = weight.shape[1], (bias is not None, offset is not None, mask is not None)
        problem = posed.mixed_problem(x, last, width, *words)
        wanted.add(problem, of, gradients)
        if gradients and (limits.kind == "cpu" or width > SUMMED):  # by way of the gradient behind the convolutions
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            short(wide, x.shape[2], width, None, False)
            short(wide, x.shape[2], width, None, True)

    def turned(x: Any) -> None:
        if x.numel():
            batch, length, channels = x.shape
            wanted.add(posed.turn_problem(batch, length, channels, x.dtype), of, False)

    def gate(z: Any, activation: str | None, gradients: bool) -> None:
        if z.numel() and limits.kind == "cpu":
            width = z.shape[-1]
            wanted.add(posed.gate_problem(width, z.numel() // width, z.dtype, activation), of, gradients)

    return {
        fftconv_op: lambda *args: long(False, *args),
        fftconv_bwd_op: lambda dy, *args: long(True, *args[:-1]),
        fftconv_dk_op: taps,  # where gradients are differentiated again
        blockdiag_linear_op: product,
        blockdiag_epilogue_op: product,
        blockdiag_epilogue_bwd_op: behind,
        blockdiag_outer_op: outer,
        monarch_matmul.monarch_matmul_op: lambda x, factors: monarch(x, factors, False),
        monarch_matmul.monarch_backward_op: lambda dy, x, factors, needs: monarch(x, factors, True),
        depthwise_conv1d_op: lambda x, weight, bias, left, right: short(
            x, x.shape[2] + left + right - weight.shape[1] + 1, weight.shape[1], bias, False
        ),
        depthwise_conv1d_dw_op: lambda x, dy, width, *_: short(x, dy.shape[2], width, None, True),
        gated_depthwise_conv1d_op: lambda x, weight, bias, last, offset=None, mask=None: mixed(
            x, weight, bias, last, offset, mask, False
        ),
        gated_depthwise_conv1d_bwd_op: lambda dz, dg, x, weight, bias, offset, mask, needs: mixed(
            x, weight, bias, posed.channels_last(dz), offset, mask, True
        ),
        turn_op: lambda x, first: turned(x),
        gated_op: lambda z, activation: gate(z, activation, False),
        gated_bwd_op: lambda dy, z, activation: gate(z, activation, True),
    }

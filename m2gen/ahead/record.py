"""Which problems a model poses: it is run on PyTorch's fake tensors, which have shapes and strides but no data, and the
calls of m2gen's operators are written down. No weights, no memory, no kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from m2gen.ahead.models import Sizes, config_of, inputs_of, model_of
from m2gen.planner.problem import Problem

if TYPE_CHECKING:
    from m2gen.device.limits import DeviceLimits
    from m2gen.kernels.spec import KernelSpec


@dataclass(slots=True)
class Wanted:
    """What is to be compiled for one target: long convolutions, each with who asks for it and whether gradients are
    wanted; and the kernels of short ones and of products, by the operator's name."""

    problems: dict[Problem, list[str]] = field(default_factory=dict)
    trained: set[Problem] = field(default_factory=set)
    others: dict[str, dict[KernelSpec, None]] = field(default_factory=dict)  # in the order they were met

    def add(self, problem: Problem, of: str, gradients: bool) -> None:
        who = self.problems.setdefault(problem, [])
        if of not in who:
            who.append(of)
        if gradients:
            self.trained.add(problem)

    def add_kernels(self, op: str, specs: Iterable[KernelSpec | None]) -> None:
        self.others.setdefault(op, {}).update({spec: None for spec in specs if spec is not None})


def record(
    wanted: Wanted, name: str, limits: DeviceLimits, sizes: Sizes | None = None, *, gradients: bool = False
) -> None:
    """Add what the model `name`, a folder's or a preset's, calls in evaluation, with `gradients` in training too, and
    what generation with a cache calls. Raises M2GenError."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from m2gen.dtypes import DTYPES

    config, sizes = config_of(name), sizes or Sizes()
    weights = getattr(torch, DTYPES[sizes.dtype].torch_name) if sizes.dtype else config.dtype or torch.float32
    with FakeTensorMode(), _recorder(wanted, name, limits):
        model = model_of(config, weights)
        for inputs in inputs_of(config, weights, sizes):
            with torch.no_grad():
                model.eval()(inputs)
                if hasattr(model, "new_cache"):
                    _generation(model, inputs)
            if gradients:  # other kernels than in evaluation
                model.train()(inputs)[0].float().sum().backward()


def _generation(model: Any, prompt: Any) -> None:
    """A prompt read with a cache, a token after it, and all that may stand before and after them."""
    cache = model.new_cache(prompt.shape[0])
    cache.rehearse()
    model(prompt, cache=cache)
    model(prompt[:, :1], cache=model.new_cache(prompt.shape[0]))  # products of few rows are done otherwise


def _recorder(wanted: Wanted, of: str, limits: DeviceLimits) -> Any:
    """A context in which calls of operators are noted in `wanted`."""
    from torch.utils._python_dispatch import TorchDispatchMode

    notes = _notes(wanted, of, limits)

    class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in notes:
                with self:  # a note may run the operator's parts
                    notes[func](*args)
            return func(*args, **(kwargs or {}))

    return Recorder()  # type: ignore[no-untyped-call]


def _notes(wanted: Wanted, of: str, limits: DeviceLimits) -> dict[Any, Callable[..., Any]]:
    """What to note of each operator's call."""
    from m2gen.ops import monarch_matmul
    from m2gen.ops.blockdiag_linear import blockdiag_glu_op, blockdiag_linear_op, blockdiag_outer_op
    from m2gen.ops.fftconv import fftconv_bwd_op, fftconv_dk_op, fftconv_op
    from m2gen.planner import search
    from m2gen.runtime.executor import monarch_problem, problem_of, product_problem
    from m2gen.runtime.spectral import Operands

    def long(gradients: bool, *args: Any) -> None:
        *tensors, mode, precision = args
        wanted.add(problem_of(Operands(*tensors), mode, precision), of, gradients)

    def taps(z: Any, dc: Any, length: int, mode: str, precision: str) -> None:
        k = z.new_empty((dc.shape[1], length))
        long(True, z, k, k if mode == "bidirectional" else None, None, None, None, mode, precision)

    def product(x: Any, weight: Any, bias: Any = None, glu: bool = False, activation: str | None = None) -> None:
        if x.numel() and weight.numel():
            rows = x.numel() // (weight.shape[0] * weight.shape[2])
            wanted.add(product_problem(weight.shape, rows, x.dtype, bias is not None, glu, activation), of, False)

    def outer(dy: Any, x: Any, nblocks: int) -> None:
        if x.numel() and dy.numel():
            shape = (nblocks, dy.shape[1] // nblocks, x.shape[1] // nblocks)
            wanted.add(product_problem(shape, x.shape[0], x.dtype), of, True)

    def monarch(x: Any, factors: Any, gradients: bool) -> bool:
        """Whether the product is planned as one kernel."""
        if not x.numel() or not all(f.numel() for f in factors):
            return False
        shapes = tuple(tuple(f.shape) for f in factors)
        problem = monarch_problem(shapes, x.numel() // (shapes[0][0] * shapes[0][2]), x.dtype)
        wanted.add(problem, of, gradients)
        return bool(search.plan(problem, limits).body.kernels(problem))

    def monarch_product(x: Any, factors: Any) -> None:
        if not monarch(x, factors, False):
            monarch_matmul.run(x, factors)

    def monarch_backward(dy: Any, x: Any, factors: Any, needs: Any) -> None:
        if not monarch(x, factors, True):
            monarch_matmul.backward_by_stages(dy, x, factors, needs)

    planned: dict[Any, Callable[..., Any]] = {
        fftconv_op: lambda *args: long(False, *args),
        fftconv_bwd_op: lambda dy, *args: long(True, *args[:-1]),
        fftconv_dk_op: taps,  # where gradients are differentiated again
        blockdiag_linear_op: product,
        blockdiag_glu_op: lambda x, weight, activation: product(x, weight, None, True, activation),
        blockdiag_outer_op: outer,
        monarch_matmul.monarch_matmul_op: monarch_product,
        monarch_matmul.monarch_backward_op: monarch_backward,
    }
    return planned | (_notes_of_kernels(wanted, limits) if limits.kind == "cpu" else {})


def _notes_of_kernels(wanted: Wanted, limits: DeviceLimits) -> dict[Any, Callable[..., Any]]:
    """Of the operators that pose no Problem: their kernels follow from shapes alone."""
    from m2gen.ops.depthwise_conv1d import depthwise_conv1d_dw_op, depthwise_conv1d_op
    from m2gen.ops.gate import gated_bwd_op, gated_op
    from m2gen.runtime.depthwise import spec_of
    from m2gen.runtime.gate import spec_of as gate_spec

    def short(part: Any, x: Any, width: int) -> None:
        wanted.add_kernels("depthwise_conv1d", [spec_of(part, x, width, limits.vector_bytes)])

    def gate(part: Any, z: Any, activation: str | None) -> None:
        wanted.add_kernels("gated", [gate_spec(part, z, activation, limits.vector_bytes)])

    return {
        depthwise_conv1d_op: lambda x, weight, *_: short("fwd", x, weight.shape[1]),
        depthwise_conv1d_dw_op: lambda x, dy, width, *_: short("dw", x, width),
        gated_op: lambda z, activation: gate("fwd", z, activation),
        gated_bwd_op: lambda dy, z, activation: gate("bwd", z, activation),
    }

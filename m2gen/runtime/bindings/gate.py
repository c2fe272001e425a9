"""Gates of gated linear units: by generated C++ kernels on a CPU, or by PyTorch's operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import CompileError
from m2gen.log import fallback
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.gate.steps import LibraryGate, NativeGate
from m2gen.runtime.build.cpp_kernel import CppKernel, compile_together, load
from m2gen.runtime.build.scratch import on_huge_pages

ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
}


class LibraryKernel:
    """A gate by PyTorch, of any dtype, on any device."""

    def __init__(self, problem: GateProblem, step: LibraryGate) -> None:
        self.activation = problem.activation

    def gated(self, z: Tensor) -> Tensor:
        """z (..., 2 n) -> (..., n), contiguous."""
        gate, value = z.chunk(2, dim=-1)
        return (ACTIVATIONS[self.activation](gate) * value).contiguous()

    def gradient(self, dy: Tensor, z: Tensor) -> None:
        """None: the operator composes it."""


class NativeKernel:
    """A gate by generated C++. Raises CompileError where its kernel does not compile."""

    def __init__(self, problem: GateProblem, step: NativeGate) -> None:
        self.problem, self.step, self.parts = problem, step, step.parts(problem)
        compile_together(*self.parts.values())
        self.kernel = load(step.spec)

    def gated(self, z: Tensor) -> Tensor:
        """z (..., 2 n) -> (..., n), contiguous."""
        z = z.resolve_neg().contiguous()
        y = on_huge_pages(z.new_empty((*z.shape[:-1], self.problem.n)))
        self._run(self.kernel, z, y)
        return y

    def gradient(self, dy: Tensor, z: Tensor) -> Tensor | None:
        """The gradient in z, given that of `gated`'s result; None, with a line in the log, where its kernel does not
        compile."""
        try:
            kernel = load(self.parts["bwd"])
        except CompileError as error:
            fallback(f"gradients of gates are done by PyTorch's elementwise operators: {error}")
            return None
        dy, z = dy.resolve_neg().contiguous(), z.resolve_neg().contiguous()
        dz = on_huge_pages(torch.empty_like(z))
        self._run(kernel, dy, z, dz)
        return dz

    def _run(self, kernel: CppKernel, *tensors: Tensor) -> None:
        of, together = self.problem, self.step.together
        pointers = [tensor.data_ptr() for tensor in tensors]
        kernel.run(pointers, [of.rows, of.n, together], -(-of.rows // together), parallel=self.step.parallel)

"""The convolution by generated C++ kernels: what tensors are to a kernel, addresses and strides.

A call makes each filter's spectrum right before its rows; of a filter that its user keeps (`m2gen.prepare_filter`) the
spectra are kept too, where the plan says so, and later calls read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from m2gen.errors import CompileError
from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.log import fallback
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps_native import NativeConv
from m2gen.runtime.bindings import kept_spectra
from m2gen.runtime.bindings.native_table import table
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.cpp_kernel import compile_together, load
from m2gen.runtime.build.scratch import on_huge_pages

_TORCH = {"fp32": torch.float32, "fp64": torch.float64}
_ITEMS = 4  # groups of channels for each thread, at least, before groups are widened
_ALONE = 2**17  # ring points of all rows below which a second thread costs more than it does


class NativeKernel:
    """One planned convolution, forward and backward. Raises CompileError where the kernel does not compile."""

    def __init__(self, problem: FftConvProblem, step: NativeConv) -> None:
        self.step = step
        ring = Ring(problem, 2 * step.spec.size)
        tail = ring.hi if step.fold else 0
        self.sizes = [problem.b, problem.h, problem.n, tail, ring.hi, ring.lo, ring.centre]
        self.keep = step.keep
        spec = step.spec
        self.kept = replace(spec, kept=True)
        self.how = (spec.size, spec.radices, spec.vector, spec.wide, spec.compute, ring.lo, ring.hi, ring.centre)
        self.parallel = problem.b * problem.h * step.spec.size >= _ALONE
        compile_together(step.spec, step.bwd)
        load(step.spec)

    def forward(self, x: Operands) -> Tensor:
        y = on_huge_pages(torch.empty_like(x.u))
        spectra = self._spectra(x) if self.keep else None
        self._run(self.step.spec if spectra is None else self.kept, x, y, Gradients(), spectra)
        return y

    def _spectra(self, x: Operands) -> Tensor | None:
        """(H, M) spectra of a filter that is kept, H rounded up to whole groups where lanes are channels; else none."""
        kept = kept_spectra.of(x)
        if kept is None:
            return None
        try:
            return kept.get(self.how, lambda: self._made(x))
        except CompileError as error:
            self.keep = False
            fallback(f"filters' spectra are not kept from call to call: {error}")
            return None

    def _made(self, x: Operands) -> Tensor:
        spec = self.step.spec
        load(self.kept)
        rows = self._items(spec.group) * spec.group if spec.wide else self.sizes[1]
        spectra = on_huge_pages(x.k.new_empty((rows, 2 * spec.size), dtype=_TORCH[spec.compute]))
        self._run(spec.of_filters, x, None, Gradients(), spectra)
        return spectra

    def backward(self, dy: Tensor, x: Operands, out: Gradients) -> None:
        """Fill the wanted gradients; the forward's spectra are computed again."""
        for fresh in (out.u, out.pre_gate, out.post_gate):
            if fresh is not None:
                on_huge_pages(fresh)
        self._run(self.step.bwd, x, dy, out)

    def _run(
        self, spec: FftConvCppSpec, x: Operands, y: Tensor | None, out: Gradients, spectra: Tensor | None = None
    ) -> None:
        """Run with y, the result or its gradient. Every tensor whose address is used is held until it is done."""
        sequences = [_plain(tensor) for tensor in (x.u, x.pre_gate, x.post_gate, y)]
        added = [_plain(x.add)] if spec.add else []
        if spec.wide:
            given = 4 if spec.part == "bwd" else 3  # forward, the last is the result
            sequences[:given] = [_channels_last(tensor) for tensor in sequences[:given]]
            added = [_channels_last(tensor) for tensor in added]
        filters = [_plain(tensor, _TORCH[spec.compute]) for tensor in (x.k, x.k_rev, x.skip)]
        constants = table(spec)
        inputs = (out.u, out.pre_gate, out.post_gate)
        taps = (out.k, out.k_rev, out.skip)
        pointers = [_address(tensor) for tensor in (*sequences, *filters, constants, *inputs, *taps, spectra, *added)]
        group = spec.group or (1 if spec.part == "spectrum" else self._group(spec))
        strides = [*_strides((*sequences, *inputs), (3,) * 7), *_strides((*filters, *taps), (2, 2, 1) * 2)]
        strides += _strides(added, (3,) * len(added))
        load(spec).run(pointers, [*self.sizes, group, *strides], self._items(group), parallel=self.parallel)

    def _items(self, group: int) -> int:
        return -(-self.sizes[1] // group)

    def _group(self, spec: FftConvCppSpec) -> int:
        """Channels done together: as planned, fewer vectors of them where threads would be left without work. Not where
        lanes are channels: kernels of different widths may round differently, and threads must not change bits."""
        group, vector = self.step.channels, spec.vector
        threads = torch.get_num_threads() if self.parallel else 1
        least = _ITEMS * threads if threads > 1 else 1
        while group > vector and (spec.part == "bwd" or self.sizes[1] < least * group):
            group = max(vector, group // 2)
        return group


def _plain(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Tensor | None:
    """The tensor with its numbers as they lie in memory (a view may be lazily negative), in `dtype`."""
    if tensor is None:
        return None
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if dtype is None or tensor.dtype == dtype else tensor.to(dtype)


def _channels_last(tensor: Tensor | None) -> Tensor | None:
    """The (B, H, L) tensor, copied where channels are not neighbours in memory."""
    return tensor if tensor is None or tensor.stride(1) == 1 else tensor.mT.contiguous().mT


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(tensors: Sequence[Tensor | None], dims: Sequence[int]) -> list[int]:
    """The strides of each tensor, zeros for one that is absent."""
    found: list[int] = []
    for tensor, dim in zip(tensors, dims, strict=True):
        found += (0,) * dim if tensor is None else tensor.stride()
    return found

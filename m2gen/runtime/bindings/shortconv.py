"""Short depthwise convolutions: by generated C++ kernels on a CPU, or by PyTorch's operators.

Sequences are (B, H, L) with any strides; channels-last is a transposed view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from m2gen.errors import CompileError
from m2gen.log import fallback
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.shortconv.steps import LibraryShortconv, NativeShortconv
from m2gen.runtime.build.cpp_kernel import compile_together, load
from m2gen.runtime.build.scratch import on_huge_pages


class Mixed(NamedTuple):
    """What the mixer's form reads: h (B, 3 D, L), weight (3 D, W), bias and offset (3 D,), mask (B, L) bool."""

    h: Tensor
    weight: Tensor
    bias: Tensor | None = None
    offset: Tensor | None = None
    mask: Tensor | None = None


class MixGradients(NamedTuple):
    """Those in h, weight, bias and offset, None where one was not wanted."""

    h: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    offset: Tensor | None


def heard(x: Tensor, offset: Tensor | None, mask: Tensor | None) -> Tensor:
    """x (B, H, L) + offset (H,), zero where the mask (B, L) says no."""
    x = x if offset is None else x + offset[:, None]
    return x if mask is None else torch.where(mask[:, None], x, x.new_zeros(()))


class LibraryKernel:
    """A convolution by PyTorch: of any width, on any device; sums in the dtype of the arithmetic."""

    def __init__(self, problem: ShortconvProblem, step: LibraryShortconv) -> None:
        self.width = problem.width

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, left: int, y: Tensor) -> None:
        """Fill y (B, H, L_out) with bias[h] + sum over w of weight[h, w] x[b, h, i + w - left]."""
        total = convolved(x, weight, left, y.shape[2])
        y.copy_(total if bias is None else total.add_(bias.to(total.dtype).unsqueeze(-1)))

    def weight_gradients(self, x: Tensor, dy: Tensor, left: int, sums: Tensor) -> None:
        """Fill `sums` (H, W + 1), in the dtype of the arithmetic: the weight's gradient and, last, the bias's."""
        padded = _padded(x, self.width, left, dy.shape[2])
        for w in range(self.width):
            sums[:, w] = (padded[..., w : w + dy.shape[2]] * dy).sum((0, 2), dtype=sums.dtype)
        sums[:, self.width] = dy.sum((0, 2), dtype=sums.dtype)

    def mix(self, mixed: Mixed, z: Tensor, g: Tensor) -> None:
        """Fill z and g (B, D, L) with s(x1) s(v) and s(x2), s the causal convolution of h + offset = (x1, x2, v), which
        is (B, 3 D, L); where the mask (B, L) says no, h + offset and s(v) are zero."""
        h, weight, bias, offset, mask = mixed
        x1, x2, v = self._streams(heard(h, offset, mask), weight, bias)
        z.copy_(heard(x1 * v, None, mask))
        g.copy_(x2)

    def mix_gradients(
        self, dz: Tensor, dg: Tensor, mixed: Mixed, wanted: Sequence[bool], dh: Tensor
    ) -> MixGradients | None:
        """None: they go by way of `behind`."""
        return None

    def behind(self, dz: Tensor, dg: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, ds: Tensor) -> None:
        """Fill ds (B, 3 D, L), in the dtype of the arithmetic, with the gradient behind the convolutions of `mix`."""
        x1, _, v = self._streams(x, weight, bias)
        torch.cat([dz * v, dg.to(v.dtype), dz * x1], 1, out=ds)

    def _streams(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        s = convolved(x, weight, self.width - 1, x.shape[2])
        return (s if bias is None else s.add_(bias.to(s.dtype).unsqueeze(-1))).chunk(3, dim=1)


def convolved(x: Tensor, weight: Tensor, left: int, length: int) -> Tensor:
    """A sum of shifted copies of x (B, H, L), (B, H, length) in the dtype of the arithmetic."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    padded = _padded(x, weight.shape[1], left, length).to(dtype)
    taps = weight.to(dtype).unsqueeze(-1).unbind(1)
    total = padded[..., :length] * taps[0]
    for w, tap in enumerate(taps[1:], start=1):
        total.addcmul_(padded[..., w : w + length], tap)
    return total


def _padded(x: Tensor, width: int, left: int, length: int) -> Tensor:
    return F.pad(x, (left, length + width - 1 - left - x.shape[2]))


class NativeKernel:
    """A convolution by generated C++. Raises CompileError where its kernel does not compile."""

    def __init__(self, problem: ShortconvProblem, step: NativeShortconv) -> None:
        self.problem, self.step, self.last = problem, step, step.spec.layout == "BLH"
        compile_together(step.spec, step.back)
        self.kernel = load(step.spec)
        self.items, self.items_back = step.items(problem), step.items_back(problem)
        self.dtype = torch.float64 if problem.dtype == "fp64" else torch.float32
        self.library = LibraryKernel(problem, LibraryShortconv(step.estimate))

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, left: int, y: Tensor) -> None:
        """Fill y (B, H, L_out) with bias[h] + sum over w of weight[h, w] x[b, h, i + w - left]."""
        on_huge_pages(y)
        x, strides = self._laid(x)
        taps, offset = self._filters(weight, bias)
        into = y if self._dense(y) else self._empty(y.shape, y.dtype)
        batch, channels, length = x.shape
        pointers = [x.data_ptr(), taps.data_ptr(), 0 if offset is None else offset.data_ptr(), into.data_ptr()]
        sizes = [batch, channels, length, y.shape[2], left, *strides]
        self.kernel.run(pointers, sizes, self.items, parallel=self.step.parallel)
        if into is not y:
            y.copy_(into)

    def weight_gradients(self, x: Tensor, dy: Tensor, left: int, sums: Tensor) -> None:
        """Fill `sums` (H, W + 1), in the dtype of the arithmetic: the weight's gradient and, last, the bias's. The same
        bits with any number of threads."""
        step, width = self.step, self.problem.width
        try:
            kernel = load(step.back)
        except CompileError as error:
            fallback(f"gradients of short filters are done by PyTorch's elementwise operators: {error}")
            return self.library.weight_gradients(x, dy, left, sums)
        x, of_x = self._laid(x)
        dy, of_dy = self._laid(dy)
        batch, channels, length = x.shape
        shape = (self.items_back, width + 1, channels) if self.last else (channels, width + 1)
        parts = torch.empty(shape, dtype=self.dtype)
        sizes = [batch, channels, length, dy.shape[2], left, *of_x, *of_dy, *([] if self.last else [step.group])]
        pointers = [x.data_ptr(), dy.data_ptr(), parts.data_ptr()]
        kernel.run(pointers, sizes, self.items_back, parallel=step.parallel)
        sums.copy_(_total(parts).t() if self.last else parts)
        return None

    def mix(self, mixed: Mixed, z: Tensor, g: Tensor) -> None:
        """Fill z and g, see `LibraryKernel.mix`; offset and mask are passes of their own."""
        on_huge_pages(z), on_huge_pages(g)
        h, weight, bias, offset, mask = mixed
        x, strides = self._laid(heard(h, offset, mask))
        into = [y if self._dense(y) else self._empty(y.shape, y.dtype) for y in (z, g)]
        tensors = (x, *self._filters(weight, bias), *into)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        self.kernel.run(pointers, self._mixed(strides), self.items, parallel=self.step.parallel)
        if mask is not None:
            into[0].masked_fill_(~mask[:, None], 0.0)
        for y, of in zip((z, g), into, strict=True):
            if of is not y:
                y.copy_(of)

    def mix_gradients(
        self, dz: Tensor, dg: Tensor, mixed: Mixed, wanted: Sequence[bool], dh: Tensor
    ) -> MixGradients | None:
        """None: they go by way of `behind`."""
        return None

    def behind(self, dz: Tensor, dg: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, ds: Tensor) -> None:
        """Fill ds (B, 3 D, L), in the dtype of the arithmetic, with the gradient behind the convolutions of `mix`."""
        try:
            kernel = load(self.step.back)
        except CompileError as error:
            fallback(f"gradients of gated short filters are done by PyTorch's elementwise operators: {error}")
            return self.library.behind(dz, dg, x, weight, bias, ds)
        x, strides = self._laid(x)
        taps, offset = self._filters(weight, bias)
        dz, dg = (t if self._dense(t) else self._empty(t.shape, t.dtype).copy_(t) for t in (dz, dg))
        into = ds if self._dense(ds) else self._empty(ds.shape, ds.dtype)
        tensors = (x, taps, offset, dz, dg, into)
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        kernel.run(pointers, self._mixed(strides), self.items_back, parallel=self.step.parallel)
        if into is not ds:
            ds.copy_(into)
        return None

    def _mixed(self, strides: tuple[int, int]) -> list[int]:
        of = self.problem
        return [of.b, of.h, of.n, of.width - 1, *strides]

    def _filters(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """As the kernels read them, in the dtype of the arithmetic."""
        taps = (weight.t() if self.last else weight).to(self.dtype).contiguous()
        return taps, None if bias is None else bias.to(self.dtype).contiguous()

    def _laid(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """x with neighbours as the kernels want them, and its other two strides."""
        if self.last:
            x = x if x.stride(1) == 1 else x.transpose(1, 2).contiguous().transpose(1, 2)
            return x, (x.stride(0), x.stride(2))
        x = x if x.stride(2) == 1 else x.contiguous()
        return x, (x.stride(0), x.stride(1))

    def _dense(self, y: Tensor) -> bool:
        """Whether the kernels can write to y (B, H, L) itself."""
        return (y.transpose(1, 2) if self.last else y).is_contiguous()

    def _empty(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """(..., H, L) as the kernels write it."""
        if not self.last:
            return torch.empty(shape, dtype=dtype)
        return torch.empty((*shape[:-2], shape[-1], shape[-2]), dtype=dtype).transpose(-1, -2)


def _total(parts: Tensor) -> Tensor:
    """The sum over the first dimension, always in the same order: halves onto halves."""
    while (count := parts.shape[0]) > 1:
        half = count // 2
        parts[:half] += parts[count - half :]
        parts = parts[: count - half]
    return parts[0]

"""Short depthwise convolutions by generated Triton kernels: tensors in, tensors out.

Sequences are (B, H, L) with any strides: a tensor whose channels are neighbours in memory is a transposed view, on
either side. Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from m2gen.errors import M2GenError
from m2gen.kernels.shortconv import WIDEST, Part, ShortconvSpec
from m2gen.kernels.spec import Candidate
from m2gen.planner.shortconv.problem import ShortconvProblem
from m2gen.planner.shortconv.steps import FusedShortconv
from m2gen.planner.shortconv.tiles import ShortconvSizes, candidates
from m2gen.runtime.bindings.blockdiag_triton import add_parts
from m2gen.runtime.bindings.shortconv import Mixed, MixGradients
from m2gen.runtime.build.limits import live
from m2gen.runtime.build.triton_kernel import DTYPES, emulated, launch


class Gradients(NamedTuple):
    """None where it was not wanted."""

    x: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class FusedKernel:
    """One planned convolution, and the gradients of its weight and bias; or the mixer's, and the gradient behind it."""

    def __init__(self, problem: ShortconvProblem, step: FusedShortconv) -> None:
        self.step = step

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, left: int, y: Tensor) -> None:
        """Fill y (B, H, L_out)."""
        convolve(x, weight, bias, left, None, y, self.step.spec)

    def weight_gradients(self, x: Tensor, dy: Tensor, left: int, sums: Tensor) -> None:
        """Fill `sums` (H, W + 1): the weight's gradient and, last, the bias's."""
        choice = Candidate(self.step.back, 0.0, 0.0, self.step.parts_of_times)
        weight_gradients(dy, x, sums.shape[1] - 1, left, None, choice, sums)

    def mix(self, mixed: Mixed, z: Tensor, g: Tensor) -> None:
        """Fill z and g (B, D, L) with s(x1) s(v) and s(x2)."""
        _mixed("mix", mixed, z, g, z, self.step.spec)

    def mix_gradients(
        self, dz: Tensor, dg: Tensor, mixed: Mixed, wanted: Sequence[bool], dh: Tensor
    ) -> MixGradients | None:
        """Those of `mix`, that in h to `dh`; None where its filters have more taps than one kernel has registers for:
        they go by way of `behind`."""
        back = self.step.back
        if back.part != "mix_bwd":
            return None
        choice = Candidate(back, 0.0, 0.0, self.step.parts_of_times)
        dh = dh if wanted[0] else torch.empty_like(mixed.h)  # the kernel writes it in any case
        return mix_gradients(dz, dg, *mixed, wanted=wanted, dh=dh, choice=choice)

    def behind(self, dz: Tensor, dg: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, ds: Tensor) -> None:
        """Fill ds (B, 3 D, L), float32, with the gradient behind the convolutions."""
        _mixed("ds", Mixed(x, weight, bias), dz, dg, ds)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    left: int | None = None,
    mask: Tensor | None = None,
    y: Tensor | None = None,
    spec: ShortconvSpec | None = None,
) -> Tensor:
    """y[b, h, i] = bias[h] + sum over w of weight[h, w] x[b, h, i + w - left]; causal, left = W - 1, by default.

    x (B, H, L), weight (H, W), bias (H,), mask (B, L) bool: x counts as zero where it is false. y (B, H, any length),
    any strides, by default as long as x and with neighbours in time.
    """
    y = x.new_empty(x.shape) if y is None else y
    left = weight.shape[1] - 1 if left is None else left
    taps = (weight, weight.stride(1))
    return _convolve(x, taps, bias, left, mask, "in", y, spec)


def gradients(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    has_bias: bool,
    left: int | None = None,
    mask: Tensor | None = None,
    wanted: tuple[bool, bool, bool] = (True, True, True),
    dx: Tensor | None = None,
) -> Gradients:
    """Those of `convolve` in x (to `dx`, by default laid out like x), weight and bias, each where it is wanted."""
    width = weight.shape[1]
    left = width - 1 if left is None else left
    if wanted[0]:
        reversed_taps = (weight.resolve_neg()[:, width - 1 :], -weight.stride(1))
        dx = torch.empty_like(x) if dx is None else dx
        _convolve(dy, reversed_taps, None, width - 1 - left, mask, "out", dx, None, width)
    of_bias = wanted[2] and has_bias
    sums = weight_gradients(dy, x, width, left, mask) if wanted[1] or of_bias else None
    return Gradients(
        dx if wanted[0] else None,
        sums[:, :width] if sums is not None and wanted[1] else None,
        sums[:, width] if sums is not None and of_bias else None,
    )


def weight_gradients(
    dy: Tensor,
    x: Tensor,
    width: int,
    left: int,
    mask: Tensor | None = None,
    choice: Candidate[ShortconvSpec] | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """(H, W + 1), in `total` or of x's dtype: sums of dy[b, h, i] x[b, h, i + w - left] for each tap and, last, of dy.
    The same bits in every call: tiles are summed in parts of a fixed number, and these in their order."""
    dy, x = dy.resolve_neg(), x.resolve_neg()
    batch, channels, length = x.shape
    total = x.new_empty((channels, width + 1)) if total is None else total
    if dy.numel() == 0:
        return total.zero_()
    masked = "no" if mask is None else "in"
    choice = _choice("dw", x, dy, width, False, masked) if choice is None else choice
    spec, parts = _here(choice.spec, x), choice.parts
    sums = torch.empty((parts, channels, width + 1), dtype=torch.float32, device=x.device) if parts > 1 else total
    items = batch * -(-dy.shape[2] // spec.block_l)
    programs = -(-channels // spec.block_h) * parts * -(-width // spec.taps)
    heard, strides = _mask(mask, x)
    sizes = (channels, length, dy.shape[2], left, items, parts)
    launch(spec, programs, x, dy, heard, sums, *sizes, *x.stride(), *strides, *dy.stride())
    if parts > 1:
        add_parts(sums, total)
    return total


def mix(
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None = None,
    out: tuple[Tensor, Tensor] | None = None,
    spec: ShortconvSpec | None = None,
    offset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """z = s(x1) * s(v), g = s(x2) for h + offset = (x1, x2, v), s the causal convolution with weight and bias.

    Shapes as `Mixed` says. The mask is true at real times: elsewhere h + offset and s(v) count as zero. z, g: (B, D,
    L), any strides (`out`), by default with neighbours in time.
    """
    batch, channels, length = h.shape[0], h.shape[1] // 3, h.shape[2]
    z, g = (h.new_empty((batch, channels, length)) for _ in range(2)) if out is None else out
    if z.numel():
        _mixed("mix", Mixed(h, weight, bias, offset, mask), z, g, z, spec)
    return z, g


def mix_gradients(
    dz: Tensor,
    dg: Tensor,
    h: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offset: Tensor | None = None,
    mask: Tensor | None = None,
    wanted: Sequence[bool] = (True, True, True, True),
    dh: Tensor | None = None,
    choice: Candidate[ShortconvSpec] | None = None,
) -> MixGradients:
    """Those of `mix` in h (to `dh`, by default laid out like h), weight, bias and offset, each where it is wanted: one
    kernel, and one that adds its sums. For at most SUMMED taps, h not empty."""
    mixed, dz, dg = Mixed(h, weight, bias, offset, mask), dz.resolve_neg(), dg.resolve_neg()
    batch, channels, length = dz.shape
    width = weight.shape[1]
    dh = torch.empty_like(h) if dh is None else dh
    if choice is None:
        choice = _choice("mix_bwd", h, dz, width, bias is not None, "no" if mask is None else "in", offset is not None)
    spec, parts = choice.spec, choice.parts
    total = h.new_empty((3 * channels, spec.sums), dtype=torch.float32)
    sums = total.new_empty((parts, 3 * channels, spec.sums)) if parts > 1 else total
    programs = -(-channels // spec.block_h) * parts
    counts = (batch * -(-length // spec.block_l), parts)
    _launch_mixed(spec, programs, mixed, (dz, dg, dh, sums), counts)
    if parts > 1:
        add_parts(sums, total)
    return MixGradients(
        dh if wanted[0] else None,
        total[:, :width].to(weight.dtype) if wanted[1] else None,
        total[:, width].to(bias.dtype) if wanted[2] and bias is not None else None,
        total[:, width + 1].to(offset.dtype) if wanted[3] and offset is not None else None,
    )


def _convolve(
    x: Tensor,
    taps: tuple[Tensor, int],
    bias: Tensor | None,
    left: int,
    mask: Tensor | None,
    masked: str,
    y: Tensor,
    spec: ShortconvSpec | None,
    width: int | None = None,
) -> Tensor:
    """`taps`: a weight (H, ...) from its first tap on and how far apart its taps lie, backwards where that is less
    than 0."""
    if y.numel() == 0:
        return y
    x = x.resolve_neg()
    weight, step = taps[0].resolve_neg(), taps[1]
    width = weight.shape[1] if width is None else width
    _check(width)
    where = "no" if mask is None else masked
    spec = _choice("fwd", x, y, width, bias is not None, where).spec if spec is None else spec
    batch, channels, length = x.shape
    programs = batch * -(-y.shape[2] // spec.block_l) * -(-channels // spec.block_h)
    heard, strides = _mask(mask, x)
    offset = weight if bias is None else bias.resolve_neg().contiguous()
    sizes = (channels, length, y.shape[2], left)
    strides = (*x.stride(), weight.stride(0), step, *strides, *y.stride())
    launch(_here(spec, x, y), programs, x, weight, offset, heard, y, *sizes, *strides)
    return y


def _mixed(part: Part, mixed: Mixed, z: Tensor, g: Tensor, y: Tensor, spec: ShortconvSpec | None = None) -> None:
    """ "mix" writes z and g, "ds" reads them as gradients and writes y."""
    h, weight, bias, offset, mask = mixed
    _check(weight.shape[1])
    batch, channels, length = z.shape
    if spec is None:
        masked = "no" if mask is None else "in"
        spec = _choice(part, h, z, weight.shape[1], bias is not None, masked, offset is not None).spec
    programs = batch * -(-length // spec.block_l) * -(-channels // spec.block_h)
    _launch_mixed(spec, programs, mixed, (z.resolve_neg(), g.resolve_neg(), y))


def _launch_mixed(
    spec: ShortconvSpec,
    programs: int,
    mixed: Mixed,
    others: tuple[Tensor, ...],
    counts: tuple[int, ...] = (),
) -> None:
    """`others`: z, g, y, and the sums where the kernel has some."""
    h, weight = mixed.h.resolve_neg(), mixed.weight.resolve_neg()
    heard, strides = _mask(mixed.mask, h)
    bias, offset = (weight if t is None else t.resolve_neg().contiguous() for t in (mixed.bias, mixed.offset))
    sizes = (others[0].shape[1], h.shape[2], weight.shape[1] - 1, *counts)
    strides = (*h.stride(), *weight.stride(), *strides, *(s for other in others[:3] for s in other.stride()))
    launch(_here(spec, h), programs, h, weight, bias, offset, heard, *others, *sizes, *strides)


def _check(width: int) -> None:
    if not 1 <= width <= WIDEST:
        raise M2GenError(
            f"a short convolution of {width} taps", f"its kernels have 1 to {WIDEST}", "use fftconv for longer filters"
        )


def _mask(mask: Tensor | None, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The mask's bytes and strides; something to point at where there is none."""
    return (x, (0, 0)) if mask is None else (mask.view(torch.int8), mask.stride())


def _here(spec: ShortconvSpec, *tensors: Tensor) -> ShortconvSpec:
    return replace(spec, emulated=True) if any(emulated(x.dtype) for x in tensors) else spec


def _choice(
    part: Part, x: Tensor, y: Tensor, width: int, bias: bool, masked: str, offset: bool = False
) -> Candidate[ShortconvSpec]:
    """The kernel that is expected to be the fastest, for x in and y out."""
    sizes = ShortconvSizes(
        batch=y.shape[0],
        channels=y.shape[1],
        length=x.shape[2],
        width=width,
        dtype=DTYPES[x.dtype],
        length_out=y.shape[2],
        bias=bias,
        masked=masked,  # type: ignore[arg-type]
        offset=offset,
        last_in=_last(x),
        last_out=_last(y),
    )
    return candidates(sizes, live(x.device), part)[0]


def _last(x: Tensor) -> bool:
    """Whether channels are neighbours in memory."""
    return x.stride(1) == 1 and x.stride(2) != 1

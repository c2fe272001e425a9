"""The transposing copy by a generated Triton kernel: tensors in, tensors out. Its gradient is the same copy back.

Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from torch import Tensor

from m2gen.kernels.turn import TurnSpec
from m2gen.planner.turn.tiles import TurnSizes, candidates
from m2gen.runtime.build.limits import live
from m2gen.runtime.build.triton_kernel import DTYPES, launch


def turned(x: Tensor, y: Tensor | None = None, spec: TurnSpec | None = None) -> Tensor:
    """x (B, R, C), any strides -> (B, C, R), contiguous or written to `y`, any strides."""
    x = x.resolve_neg()  # a kernel reads memory: a sign that is only noted would be lost
    batch, rows, columns = x.shape
    y = x.new_empty((batch, columns, rows)) if y is None else y
    if y.numel() == 0:
        return y
    spec = spec_of(x) if spec is None else spec
    programs = batch * -(-rows // spec.block_r) * -(-columns // spec.block_c)
    launch(spec, programs, x, y, rows, columns, *x.stride(), *y.stride())
    return y


def spec_of(x: Tensor) -> TurnSpec:
    """The kernel that is expected to be the fastest."""
    batch, rows, columns = x.shape
    return candidates(TurnSizes(batch, rows, columns, DTYPES[x.dtype]), live(x.device))[0].spec

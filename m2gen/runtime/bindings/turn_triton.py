"""The transposing copy by a generated Triton kernel: tensors in, tensors out. Its gradient is the same copy back.

Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from m2gen.kernels.turn import TurnSpec
from m2gen.planner.turn.tiles import TurnSizes, candidates
from m2gen.runtime.build.limits import live
from m2gen.runtime.build.triton_kernel import DTYPES, emulated, launch


def turned(
    x: Tensor,
    y: Tensor | None = None,
    spec: TurnSpec | None = None,
    *,
    pre: Tensor | None = None,
    post: Tensor | None = None,
    add: Tensor | None = None,
) -> Tensor:
    """x (B, R, C), any strides -> (B, C, R), contiguous or written to `y`, any strides.

    With pre (B, R, C), or post and add (B, C, R), any strides: (x * pre) turned, times post, plus add, in float32 and
    rounded once, to the dtype of `y`, which is then given. `spec` says the same of them.
    """
    x = x.resolve_neg()  # a kernel reads memory: a sign that is only noted would be lost
    more = [t.resolve_neg() for t in (pre, post, add) if t is not None]
    batch, rows, columns = x.shape
    y = x.new_empty((batch, columns, rows)) if y is None else y
    if y.numel() == 0:
        return y
    spec = spec_of(x) if spec is None else spec
    if more and emulated(y.dtype):
        spec = replace(spec, emulated=True)
    programs = batch * -(-rows // spec.block_r) * -(-columns // spec.block_c)
    strides = [stride for t in (x, *more, y) for stride in t.stride()]
    launch(spec, programs, x, *more, y, rows, columns, *strides)
    return y


def spec_of(x: Tensor) -> TurnSpec:
    """The kernel that is expected to be the fastest."""
    batch, rows, columns = x.shape
    return candidates(TurnSizes(batch, rows, columns, DTYPES[x.dtype]), live(x.device))[0].spec

"""The largest number of each tile of what comes backward, found on the device by a launch of its own.

Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from m2gen.kernels.largest import LargestSpec
from m2gen.runtime.build.triton_kernel import interned, launch

_BLOCKS = 4  # of samples that a program reads, at least


def largest_of(d: Tensor, gate: Tensor | None, spec: LargestSpec, programs: int) -> Tensor:
    """(T, H) in float32: the largest |d gate| of each tile of `spec.rows` batch rows of d (B, H, L), any strides, by
    `programs` programs about. The bits of a NaN where there is one."""
    batch, channels, length = d.shape
    tiles = -(-batch // spec.rows)
    found = d.new_zeros((tiles, channels), dtype=torch.int32)  # bits: they are in the order of |d gate|
    blocks = -(-length // spec.block)
    splits = max(1, min(blocks // _BLOCKS, programs // (tiles * channels)))
    spec = interned(replace(spec, gate=gate is not None))
    tensors = (d,) if gate is None else (d, gate)
    strides = [stride for tensor in tensors for stride in tensor.stride()]
    launch(spec, channels * tiles * splits, *tensors, found, batch, length, channels, splits, *strides)
    return found.view(torch.float32)

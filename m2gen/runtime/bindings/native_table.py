"""The constants of a generated C++ transform, in the order the spec's offsets say."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from m2gen.kernels.fftconv_cpp import FftConvCppSpec

_TORCH = {"fp32": torch.float32, "fp64": torch.float64}


@lru_cache(maxsize=64)
def table(spec: FftConvCppSpec) -> Tensor:
    """Every twiddle of the ring, computed in float64 and rounded once: complex vectors as V real, V imaginary parts."""
    turns = torch.tensor([0.25], dtype=torch.float64)  # t^size = i: a block is t^m = exp(2 pi i turns)
    scalars = []
    for at in spec.passes:
        scalars.append(_scalars(turns, torch.arange(1, at.radix), at.radix))
        turns = _split(turns, at.radix)
    if spec.wide:  # a codelet is one more pass
        return torch.cat([*scalars, _scalars(turns, torch.arange(1, spec.leaf), spec.leaf)]).to(_TORCH[spec.compute])
    leaf_scalars = _scalars(turns, spec.vector * torch.arange(1, 4), spec.leaf)
    lanes = _vectors(turns.unsqueeze(1) * torch.arange(spec.vector) / spec.leaf)
    whole = torch.cat([_constants(spec), *scalars, leaf_scalars])
    whole = torch.cat([whole, whole.new_zeros(spec.offsets.leaf_lanes - whole.numel()), lanes])
    return whole.to(_TORCH[spec.compute])


def _split(turns: Tensor, radix: int) -> Tensor:
    """The blocks that a pass of `radix` leaves, in their order."""
    return ((turns.unsqueeze(-1) + torch.arange(radix)) / radix).flatten()


def _scalars(turns: Tensor, powers: Tensor, radix: int) -> Tensor:
    """w^a, w = exp(2 pi i turns / radix), for every block and power a."""
    angles = 2 * torch.pi * turns.unsqueeze(1) * powers / radix
    return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten()


def _vectors(turns: Tensor) -> Tensor:
    """exp(2 pi i turns) of (n, V) turns, as n times V real and V imaginary parts."""
    angles = 2 * torch.pi * turns
    return torch.stack([angles.cos(), angles.sin()], dim=1).flatten()


def _constants(spec: FftConvCppSpec) -> Tensor:
    """Twiddles of the stages across lanes, by doing the exchanges on the blocks that the lanes belong to."""
    turns = (torch.arange(4, dtype=torch.float64) / 4).unsqueeze(1).expand(4, spec.vector)
    found = [torch.empty(0, dtype=torch.float64)]
    for stage in spec.stages:
        for level in spec.shuffles[stage.exchange]:
            turns = torch.stack([torch.cat([turns[a], turns[b]])[lanes] for a, b, lanes in level])
        term = (torch.arange(4) % stage.radix).unsqueeze(1)
        found.append(_vectors((term * turns / stage.radix)[list(stage.turned)]))
        turns = (turns + term) / stage.radix
    return torch.cat(found)

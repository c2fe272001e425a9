"""What the tests of the generated kernels share: how far a result may be from float64, and tensors of odd strides."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from m2gen.device.limits import target

BOUND = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}  # of the largest result
SIZES = st.sampled_from([1, 2, 3, 5, 7, 13, 16, 17, 33])
SMALL = replace(target("sm90"), cores=1)  # it gets few large tiles: the interpreter's time goes by programs
dtypes = st.sampled_from(list(BOUND))


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def close(found: Tensor, expected: Tensor, name: str = "") -> None:
    assert found.shape == expected.shape, name
    if found.numel() == 0:
        return
    error = (found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= BOUND[found.dtype], (name, error)


def strided(x: Tensor, how: str) -> Tensor:
    """The same numbers in another memory: every other entry, an odd start, rows far apart, the first turned inside."""
    if how == "step":
        return torch.stack([x, -x], dim=-1).flatten(-2)[..., ::2]
    if how == "offset":
        return torch.cat([x[..., :1], x], dim=-1)[..., 1:]
    if how == "turned":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    return x


STRIDES = st.sampled_from(["as is", "step", "offset", "turned"])

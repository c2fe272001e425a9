"""A fused convolution's kernel from its name, as measurements and profilers have it."""

from __future__ import annotations

import re
from typing import Any

from m2gen.kernels.fftconv import FftConvSpec

_NAME = re.compile(
    r"fftconv_(?P<part>fwd|dk)_n\d+_r(?P<radices>\d+x\d+(?:x\d+)?)_(?P<ring>cyclic|causal)_(?P<dtype>fp16|bf16|fp32)"
    r"_(?P<compute>fp16|bf16|fp32)(?:_stack(?P<stack>\d+))?(?P<flags>(?:_[a-z]+)*)_w(?P<warps>\d+)_s(?P<stages>\d+)"
)
_FIELDS = {"pre": "pre_gate", "post": "post_gate"}  # where a flag's name is longer than in a kernel's


def named(name: str) -> FftConvSpec | None:
    """The kernel called `name`; None where no kernel of today is called that."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    n0, n1, n2 = ([1, *map(int, found["radices"].split("x"))])[-3:]
    flags: dict[str, Any] = {_FIELDS.get(flag, flag): True for flag in found["flags"].split("_") if flag}
    try:
        spec = FftConvSpec(
            part="fwd" if found["part"] == "fwd" else "dk",
            ring="causal" if found["ring"] == "causal" else "cyclic",
            n0=n0,
            n1=n1,
            n2=n2,
            stack=int(found["stack"] or 1),
            dtype=found["dtype"],
            compute=found["compute"],
            num_warps=int(found["warps"]),
            num_stages=int(found["stages"]),
            **flags,
        )
    except TypeError:  # a flag that no kernel has
        return None
    return spec if spec.name == name else None

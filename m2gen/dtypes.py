"""The dtypes m2gen knows, by their short names; no torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DType:
    name: str  # as written in a problem
    torch_name: str  # attribute of the torch module
    bytes: int
    eps: float  # distance from 1 to the next number
    compute: str  # the dtype arithmetic is done in where no kernel is specialised for it


DTYPES: dict[str, DType] = {
    row.name: row
    for row in (
        DType("fp16", "float16", 2, 2.0**-10, "fp32"),
        DType("bf16", "bfloat16", 2, 2.0**-7, "fp32"),
        DType("fp32", "float32", 4, 2.0**-23, "fp32"),
        DType("fp64", "float64", 8, 2.0**-52, "fp64"),
    )
}

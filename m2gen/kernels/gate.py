"""The gate of a gated linear unit on a CPU: y = activation(first half) * second half of each row, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m2gen.kernels.activation import EXPONENTIAL, erfcx
from m2gen.kernels.vectors import Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec(Vectors):
    """activation is "gelu", "relu", "silu" or None; dtype that of the tensors, with float32 arithmetic for 16 bits."""

    part: Literal["fwd", "bwd"]
    activation: str | None
    dtype: str
    vector_bytes: int = 64
    arch: str = "native"

    @property
    def name(self) -> str:
        """For example gate_fwd_gelu_bf16_v64_native."""
        return "_".join(["gate", self.part, str(self.activation), self.dtype, f"v{self.vector_bytes}", self.arch])

    @property
    def template(self) -> str:
        return f"cpp/gate/{self.part}.cpp.jinja"

    @property
    def erfcx(self) -> list[float]:
        return list(erfcx())

    @property
    def exponential(self) -> list[str]:
        return list(EXPONENTIAL)

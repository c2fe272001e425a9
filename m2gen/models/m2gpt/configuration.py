"""The sizes of an M2-GPT, without any library of models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from m2gen.errors import ProblemError

PRESETS: dict[str, dict[str, Any]] = {
    "145M": {"d_model": 1024, "n_layers": 22},
    "360M": {"d_model": 1536, "n_layers": 30},
}
_PRESET_COMMON: dict[str, Any] = {"vocab_size": 50257, "max_length": 2048, "filter_options": {"heads": 8}}


@dataclass(frozen=True)
class M2GPTConfig:
    """Sizes of an `M2GPT`.

    expand           None for no dimension mixers (the paper's M2-GPT), else their expansion; they are pre-norm GLUs
    filter_options   passed on to every `HyenaFilter`: width, emb_dim, w, heads, ...; `heads` shares filters, see there
    causal           "fft": the long filter acts by a causal convolution; "monarch": by a `CausalMonarch`, a triangular
                     Monarch matrix learned besides the filter, of length max_length and options `monarch_options`

    Raises ProblemError for another `causal`, for `monarch_options` without a CausalMonarch, for sizes below 1 and a
    dropout that is no probability.
    """

    vocab_size: int = 256
    d_model: int = 256
    n_layers: int = 6
    max_length: int = 1024
    short_kernel: int = 3
    expand: int | None = None
    nblocks: int = 4
    dropout: float = 0.0
    filter_options: dict[str, Any] = field(default_factory=dict)
    causal: str = "fft"
    monarch_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.causal not in ("fft", "monarch"):
            raise ProblemError(f"an M2-GPT with causal={self.causal!r}", "there is no such", "use 'fft' or 'monarch'")
        if self.monarch_options and self.causal != "monarch":
            asked = f"an M2-GPT with monarch_options and causal={self.causal!r}"
            raise ProblemError(asked, "they would act on nothing", "use causal='monarch', or leave them out")
        for name in ("vocab_size", "d_model", "n_layers", "max_length", "short_kernel", "expand", "nblocks"):
            value = getattr(self, name)
            if not ((isinstance(value, int) and value >= 1) or (name == "expand" and value is None)):
                raise ProblemError(f"an M2-GPT with {name}={value!r}", "it is no size", "use a whole number from 1 on")
        if not 0 <= self.dropout < 1:
            raise ProblemError(f"an M2-GPT with dropout={self.dropout}", "it is a probability", "use [0, 1)")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> M2GPTConfig:
        """Models of the paper's two sizes, "145M" and "360M" parameters, with `changes`.

        The paper gives no more than these names: layers, widths and heads are not public and no code was released. Our
        choice: 22 layers of width 1024 and 30 of 1536 for a vocabulary of 50,257 and 2,048 tokens, 8 heads. Without
        MLPs nearly all parameters of a layer are its four projections, so these have more layers than a Transformer of
        their width. Raises ProblemError for another name.
        """
        return cls(**preset(name, changes))


def preset(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The fields of a preset. Raises ProblemError where there is none of this name."""
    if name not in PRESETS:
        raise ProblemError(f"the M2-GPT {name!r}", "there is no such preset", f"use one of {', '.join(PRESETS)}")
    return {**_PRESET_COMMON, **PRESETS[name], **changes}

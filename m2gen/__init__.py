"""m2gen: a compiler for Monarch operators.

Importing this package loads neither torch nor triton; each name below is loaded the first time it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from m2gen.version import __version__

# public name -> module that defines it
_PUBLIC = {
    "fftconv": "m2gen.ops.fftconv",
    "monarch_matmul": "m2gen.ops.monarch_matmul",
    "blockdiag_linear": "m2gen.ops.blockdiag_linear",
    "depthwise_conv1d": "m2gen.ops.depthwise_conv1d",
    "PreparedFilter": "m2gen.ops.prepared",
    "prepare_filter": "m2gen.ops.prepared",
    "keep_filters": "m2gen.modules.kept",
    "forget_filters": "m2gen.modules.kept",
    "rehearse": "m2gen.ahead.rehearse",
    "plan": "m2gen.runtime.planning",
    "share_wisdom": "m2gen.runtime.measure.wisdom",
    "M2GenError": "m2gen.errors",
    "ProblemError": "m2gen.errors",
    "WisdomError": "m2gen.errors",
    "PlanError": "m2gen.errors",
    "ConfigError": "m2gen.errors",
}
_SUBMODULES = ("models", "modules", "monarch", "testing")

__all__ = [
    "ConfigError",
    "M2GenError",
    "PlanError",
    "PreparedFilter",
    "ProblemError",
    "WisdomError",
    "__version__",
    "blockdiag_linear",
    "depthwise_conv1d",
    "fftconv",
    "forget_filters",
    "keep_filters",
    "models",
    "modules",
    "monarch",
    "monarch_matmul",
    "plan",
    "prepare_filter",
    "rehearse",
    "share_wisdom",
    "testing",
]

if TYPE_CHECKING:
    from m2gen import models, modules, monarch, testing
    from m2gen.ahead.rehearse import rehearse
    from m2gen.errors import ConfigError, M2GenError, PlanError, ProblemError, WisdomError
    from m2gen.modules.kept import forget_filters, keep_filters
    from m2gen.ops.blockdiag_linear import blockdiag_linear
    from m2gen.ops.depthwise_conv1d import depthwise_conv1d
    from m2gen.ops.fftconv import fftconv
    from m2gen.ops.monarch_matmul import monarch_matmul
    from m2gen.ops.prepared import PreparedFilter, prepare_filter
    from m2gen.runtime.measure.wisdom import share_wisdom
    from m2gen.runtime.planning import plan


def __getattr__(name: str) -> object:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"m2gen.{name}")
    else:
        raise AttributeError(f"module 'm2gen' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

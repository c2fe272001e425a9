"""What models may see of a tensor's values, see `m2gen.ops.values`."""

from __future__ import annotations

from m2gen.ops.values import all_true, being_traced, ensured, on_gpu

__all__ = ["all_true", "being_traced", "ensured", "on_gpu"]

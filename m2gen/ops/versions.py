"""What modules that keep something in evaluation compare, to see whether their parameters have changed since."""

from __future__ import annotations

from m2gen.runtime.remember import versions

__all__ = ["versions"]

"""Empty."""

from __future__ import annotations

Entry = tuple[float, int, int, int] | None

SURVEYED_BWD: dict[tuple[str, int, str, str], dict[tuple[int, ...], tuple[Entry, ...]]] = {}

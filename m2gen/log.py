"""One logger for the package; quiet unless M2GEN_LOG says otherwise."""

from __future__ import annotations

import logging
from functools import lru_cache

from m2gen.config import config


@lru_cache(maxsize=1)
def logger() -> logging.Logger:
    log = logging.getLogger("m2gen")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("m2gen: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(config().log.upper())
    return log


@lru_cache(maxsize=4096)
def once(message: str) -> None:
    """Log `message` at level info, the first time only."""
    logger().info(message)


@lru_cache(maxsize=4096)
def fallback(message: str) -> None:
    """Say, the first time only and at level warning, that something else is done than one would expect."""
    logger().warning(message)

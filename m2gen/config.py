"""The only reader of `os.environ`. Each variable is listed here once; a value that means nothing raises.

| variable             | values                          | meaning                                                     |
|----------------------|---------------------------------|-------------------------------------------------------------|
| M2GEN_LOG            | debug, info, warning (default)  | what the `m2gen` logger shows on stderr                     |
| M2GEN_CHECK_FINITE   | 0 (default), 1                  | 1: every op raises on NaN or infinity in its inputs         |
| M2GEN_CACHE_DIR      | a folder                        | where generated kernels are kept; default ~/.cache/m2gen    |
| M2GEN_COMPILED_DIR   | a folder of `m2gen compile`     | kernels compiled ahead; only read                           |
| M2GEN_COMPILE        | wait (default), beside          | beside: other solvers compute until kernels are compiled    |
| M2GEN_UNTRIED        | check (default), trust, avoid   | kernels that no device has run: check them here before      |
|                      |                                 | their first use, use them at once, or put them last         |
| M2GEN_RIGOR          | estimate (default), measure,    | measure: tune a problem at its first call;                  |
|                      | wisdom_only                     | wisdom_only: an error for problems that were never tuned    |
| M2GEN_WISDOM         | a folder, or a table's file     | what tuning measured; default: wisdom in the cache's folder |

Three variables of others are heeded: CXX, the C++ compiler (a command, arguments allowed), TRITON_INTERPRET, and
PyTorch's ATEN_CPU_CAPABILITY: a CPU held to fewer instructions than it has gets code of a CPU that has no more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from m2gen.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Config:
    log: str = "warning"
    check_finite: bool = False
    cache_dir: str = ""
    compiled_dir: str = ""  # empty: nothing is compiled ahead
    compile: str = "wait"
    untried: str = "check"
    rigor: str = "estimate"
    wisdom: str = ""
    cxx: str = ""  # the C++ compiler's command; empty: the first of the usual ones
    aten_cpu_capability: str = ""  # the instructions that PyTorch was told to use; empty: all that there are
    triton_interpret: bool = False  # Triton's own TRITON_INTERPRET: its kernels run on CPU tensors


_CHOICES: dict[str, dict[str, object]] = {
    "M2GEN_LOG": {"debug": "debug", "info": "info", "warning": "warning"},
    "M2GEN_CHECK_FINITE": {"0": False, "1": True},
    "M2GEN_COMPILE": {"wait": "wait", "beside": "beside"},
    "M2GEN_UNTRIED": {"check": "check", "trust": "trust", "avoid": "avoid"},
    "M2GEN_RIGOR": {"estimate": "estimate", "measure": "measure", "wisdom_only": "wisdom_only"},
}
_FREE = ("M2GEN_CACHE_DIR", "M2GEN_COMPILED_DIR", "M2GEN_WISDOM")
FOREIGN = {  # fields of Config that others' variables set
    "cxx": "CXX",
    "aten_cpu_capability": "ATEN_CPU_CAPABILITY",
    "triton_interpret": "TRITON_INTERPRET",
}


def _read(env: Mapping[str, str]) -> Config:
    known = {name: _choice(name, value) for name, value in env.items() if name.startswith("M2GEN_")}
    fields: dict[str, object] = {name.removeprefix("M2GEN_").lower(): value for name, value in known.items()}
    interpret = env.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
    foreign = {"cxx": env.get("CXX", ""), "aten_cpu_capability": env.get("ATEN_CPU_CAPABILITY", "")}
    return Config(**fields, **foreign, triton_interpret=interpret)  # type: ignore[arg-type]


def _choice(name: str, value: str) -> object:
    if name in _FREE:
        return value
    if name not in _CHOICES:
        known = sorted([*_CHOICES, *_FREE])
        raise ConfigError(f"environment variable {name}", "it is not one m2gen reads", f"use one of {known}")
    if value not in _CHOICES[name]:
        raise ConfigError(f"{name}={value!r}", "not a value of that variable", f"use one of {sorted(_CHOICES[name])}")
    return _CHOICES[name][value]


@lru_cache(maxsize=1)
def config() -> Config:
    """The process's configuration, read from the environment at the first call."""
    return _read(os.environ)

"""The kernel of a spec as Triton reads it. Without torch, which processes that only compile need not wait for."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

from m2gen.cache import store
from m2gen.codegen.render import render
from m2gen.errors import M2GenError
from m2gen.kernels.spec import KernelSpec


@lru_cache(maxsize=1024)
def load(spec: KernelSpec) -> Any:
    """The kernel of a spec, from its source file: triton reads the text behind a function."""
    source = render(spec)
    path = store.put(source.name, source.digest, source.text)
    found = importlib.util.spec_from_file_location(f"m2gen_generated.{source.name}", path)
    if found is None or found.loader is None:
        raise M2GenError(f"the kernel {source.name}", f"python finds no loader for {path}", "report this as a bug")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return getattr(module, source.name)

"""What Triton compiles for a launch, and where its cache keeps it: asked of Triton's own binder, so that a kernel
compiled ahead is the one that a call looks for. The same for a device that is here and for one that is not."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from m2gen.errors import CompileError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.spec import TritonSpec
from m2gen.runtime.build.launched import Argument, Launched, Pointer
from m2gen.runtime.build.triton_source import load

TARGETS = {**{f"sm{cc}": ("cuda", cc, 32) for cc in (80, 86, 89, 90, 100, 120)}, "gfx942": ("hip", "gfx942", 64)}
BINARIES = ("cubin", "hsaco")
_NEEDED = "install triton 3.6 or newer"


class Specialised(NamedTuple):
    """Arguments of Triton's compiler, without its own classes: what is asked in one process is compiled in another."""

    spec: FftConvSpec | TritonSpec
    arch: str
    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]

    @property
    def source(self) -> Any:
        from triton.compiler import ASTSource

        return ASTSource(load(self.spec), self.signature, self.constants, self.attributes)

    @property
    def target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget(*target_of(self.arch))


def target_of(arch: str) -> tuple[str, int | str, int]:
    """(backend, architecture, threads of a warp) as Triton wants them, also for devices that have no row."""
    if arch in TARGETS:
        return TARGETS[arch]
    if arch.startswith("sm") and arch[2:].isdecimal():
        return "cuda", int(arch[2:]), 32
    if arch.startswith("gfx"):
        return "hip", arch, 64 if arch.startswith("gfx9") else 32
    raise CompileError(f"a Triton kernel for {arch}", "not a GPU", f"use one of {', '.join(TARGETS)}")


@lru_cache(maxsize=4096)
def specialised(launch: Launched, arch: str) -> Specialised:
    """What a call with these arguments compiles on a device of `arch`, by Triton's own binder, which loads torch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import make_backend

    spec = launch.spec
    asked = f"{spec.name} for {arch}"
    try:
        from triton.runtime.jit import JITFunction, create_function_from_signature
    except ImportError:
        raise _too_old(asked, triton.__version__) from None
    if not hasattr(triton, "knobs") or not hasattr(JITFunction, "_pack_args"):
        raise _too_old(asked, triton.__version__)
    kernel, target = load(spec), GPUTarget(*target_of(arch))
    if not isinstance(kernel, JITFunction):
        raise CompileError(asked, "Triton interprets kernels in this process", "unset TRITON_INTERPRET")
    backend = make_backend(target)
    words = {"num_warps": spec.num_warps, "num_stages": spec.num_stages}
    # as JITFunction.run does it
    words |= {"debug": kernel.debug or triton.knobs.runtime.debug}
    words |= {"instrumentation_mode": triton.knobs.compilation.instrumentation_mode}
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, found, options = binder(*launch.arguments, **words)
    options, signature, constants, attributes = kernel._pack_args(backend, words, bound, found, options)
    return Specialised(spec, arch, signature, constants, attributes, dict(options.__dict__))


def _too_old(asked: str, version: str) -> CompileError:
    return CompileError(asked, f"triton {version} does not tell what it compiles a launch for", _NEEDED)


def key_of(what: Specialised) -> str:
    """The name under which Triton's cache keeps it, as `triton.compile` makes it."""
    from triton import knobs
    from triton._C.libtriton import get_cache_invalidating_env_vars
    from triton.compiler import make_backend
    from triton.runtime.cache import get_cache_key

    backend = make_backend(what.target)
    options = backend.parse_options(dict(what.options))
    key = get_cache_key(what.source, backend, options, env_vars=get_cache_invalidating_env_vars())
    if knobs.runtime.add_stages_inspection_hook is not None:
        key += knobs.runtime.add_stages_inspection_hook()[0]
    return sha256(key.encode()).hexdigest()


def files_of(what: Specialised) -> dict[str, str]:
    """The paths of what Triton's cache has of it, by the files' names; none where a call would compile it."""
    from triton.runtime.cache import get_cache_manager

    name = f"{what.spec.name[:150]}.json"
    try:
        found: dict[str, str] = get_cache_manager(key_of(what)).get_group(name) or {}
    except OSError:  # a folder that cannot be written to
        return {}
    return found if name in found else {}


def install(what: Specialised, contents: dict[str, bytes]) -> None:
    """Put files that were compiled elsewhere where a call looks for them. Raises OSError."""
    from triton.runtime.cache import get_cache_manager

    name = f"{what.spec.name[:150]}.json"
    manager = get_cache_manager(key_of(what))
    paths = {file: manager.put(content, file) for file, content in contents.items() if file != name}
    paths[name] = manager.put(contents[name], name)  # the last: with it the kernel is there
    manager.put_group(name, paths)


def made_up(spec: Any, names: list[str], special: Mapping[str, str]) -> tuple[Argument, ...]:
    """Arguments of a launch on dense tensors whose sizes are not known: see `TritonSpec.launched` for `special`. Their
    strides may be of 64 bits."""

    def one(name: str) -> Argument:
        kind = special.get(name, "")
        if name.endswith("_ptr"):
            return Pointer(_TORCH[kind or spec.dtype], near=False)
        long = 2**32 if name.startswith("stride_") else 0
        return 1 if kind == "1" else long + (3 if kind == "any" else 16)

    return tuple(map(one, names))


_TORCH = {"fp16": "torch.float16", "bf16": "torch.bfloat16", "fp32": "torch.float32", "bf16_emulated": "torch.float32"}
_TORCH |= {"i8": "torch.int8", "i32": "torch.int32", "i64": "torch.int64"}

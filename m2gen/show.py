"""What `m2gen show` prints: the kernel of a problem's best fused plan, as source, as assembly, or as resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2gen.errors import M2GenError
from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.planner.fftconv.problem import FftConvProblem

if TYPE_CHECKING:
    from m2gen.kernels.fftconv import FftConvSpec
    from m2gen.kernels.spec import KernelSpec
    from m2gen.planner.problem import Problem
    from m2gen.runtime.cross_compile import Compiled

VIEWS = ("source", "asm", "ptx", "sass", "resources")
PARTS = ("fwd", "transpose", "dk")  # a C++ kernel does all that is not "fwd" in one


def show(problem: Problem, target: str, view: str = "source", part: str = "fwd") -> str:
    """The kernel of `problem` on `target` as one of VIEWS; "source" needs no compiler."""
    spec, arch = _spec(problem, target, part)
    if view == "source":
        from m2gen.codegen.render import render

        return render(spec).text.rstrip("\n")
    if view == "asm":
        return assembly(spec, arch)
    if isinstance(spec, FftConvCppSpec):
        raise M2GenError(f"{view} of {spec.name}", "it is a C++ kernel", "use --source or --asm")
    compiled = _compile(spec, arch, problem)
    if view == "resources":
        return _resources(spec, compiled)
    if view == "ptx" and "amdgcn" in compiled.texts:
        view = "amdgcn"
    if view not in compiled.texts:
        raise M2GenError(f"{view} for {arch}", "its compiler has no such text", "use --ptx, which shows its assembly")
    return compiled.texts[view].rstrip("\n")


def _spec(problem: Problem, target: str, part: str) -> tuple[FftConvSpec | FftConvCppSpec, str]:
    """The spec of one part of the best plan that is one generated kernel, and the architecture it is for."""
    from m2gen.planner import search
    from m2gen.planner.fftconv.steps import FusedConv, NativeConv
    from m2gen.runtime.planning import limits_of

    ranking = search.rank(problem, limits_of(target))
    best = ranking.best("fused") or ranking.best("native")
    if best is not None and isinstance(best.body, FusedConv):
        return best.body.part(part, FftConvProblem.of(problem)), best.arch
    if best is not None and isinstance(best.body, NativeConv):
        return (best.body.spec if part == "fwd" else best.body.bwd), best.arch
    why = "; ".join(f"{solver}: {reason}" for solver, reason in ranking.rejections if solver in ("fused", "native"))
    raise M2GenError(f"a generated kernel for {problem} on {target}", why, "name another --target, or see m2gen plan")


def assembly(spec: KernelSpec, arch: str) -> str:
    """A C++ kernel's assembly for the CPU `arch`, which need not be this one."""
    if not spec.template.startswith("cpp/"):
        raise M2GenError(f"assembly of {spec.name}", f"it is a GPU kernel, for {arch}", "use --ptx or --sass")
    from m2gen.runtime.cpp_kernel import compile_text

    return compile_text(spec, arch).rstrip("\n")


def _compile(spec: FftConvSpec, arch: str, problem: Problem) -> Compiled:
    from m2gen.runtime.cross_compile import Job, compile_one

    compiled = compile_one(Job(spec, arch, "BLH" if problem.layout == "BLH" else "BHL"))
    if compiled.error:
        raise M2GenError(f"{spec.name} compiled for {arch}", compiled.error, "see the source with --source")
    return compiled


def _resources(spec: FftConvSpec, compiled: Compiled) -> str:
    mma = ", ".join(f"{count} {kind}" for kind, count in compiled.mma if count) or "none"
    rows = (
        ("kernel", compiled.name),
        ("target", compiled.arch),
        ("threads", f"{spec.resources().threads} a block"),
        ("shared memory", f"{compiled.shared_bytes} bytes a block"),
        ("registers", f"{compiled.registers} a thread"),
        ("spills", f"{compiled.spills} instructions, {compiled.stack_bytes} bytes a thread"),
        ("instructions", f"{compiled.instructions} a warp for each tile"),
        ("matrix instructions", mma),
        ("traps", f"{compiled.traps}{' (it would stop at once)' if compiled.traps else ''}"),
        ("compiled in", f"{compiled.seconds:.1f} s"),
    )
    return "\n".join(f"{what:<20} {found}" for what, found in rows)

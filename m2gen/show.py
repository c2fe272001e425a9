"""What `m2gen show` prints: the kernel of a problem's best fused plan, as source, as assembly, or as resources."""

from __future__ import annotations

from typing import TYPE_CHECKING

from m2gen.errors import M2GenError

if TYPE_CHECKING:
    from m2gen.kernels.spec import KernelSpec
    from m2gen.planner.problem import Problem
    from m2gen.runtime.build.cross_compile import Compiled

VIEWS = ("source", "asm", "ptx", "sass", "resources")


def show(
    problem: Problem, target: str, view: str = "source", part: str | None = None, solver: str | None = None
) -> str:
    """The kernel of `problem` on `target` as one of VIEWS; "source" needs no compiler."""
    spec, arch, layout = _spec(problem, target, part, solver)
    if view == "source":
        from m2gen.codegen.render import render

        return render(spec).text.rstrip("\n")
    if view == "asm":
        return assembly(spec, arch)
    if spec.template.startswith("cpp/"):
        raise M2GenError(f"{view} of {spec.name}", "it is a C++ kernel", "use --source or --asm")
    compiled = _compile(spec, arch, layout)
    if view == "resources":
        return _resources(spec, compiled)
    if view == "ptx" and "amdgcn" in compiled.texts:
        view = "amdgcn"
    if view not in compiled.texts:
        raise M2GenError(f"{view} for {arch}", "its compiler has no such text", "use --ptx, which shows its assembly")
    return compiled.texts[view].rstrip("\n")


def _spec(problem: Problem, target: str, part: str | None, solver: str | None) -> tuple[KernelSpec, str, str]:
    """The spec of one part of the best plan, of `solver` if one is named, that has a generated kernel, the
    architecture it is for, and the layout of the tensors it is launched on."""
    from m2gen.planner import search
    from m2gen.runtime.planning import limits_of

    ranking = search.rank(problem, limits_of(target))
    for plan in ranking.plans:
        if solver not in (None, plan.solver):
            continue
        if parts := plan.body.parts(problem):
            part = part or next(iter(parts))
            if part not in parts:
                raise M2GenError(f"part {part!r} of {problem}", "it has no such kernel", f"use {', '.join(parts)}")
            return parts[part], plan.arch, plan.body.layout(problem)
    if solver is not None and solver not in {name for name, _ in ranking.rejections}:
        able = dict.fromkeys(plan.solver for plan in ranking.plans if plan.body.parts(problem))
        names = ", ".join(able) or "none"
        raise M2GenError(f"a kernel of solver {solver!r} for {problem}", "it generates none", f"use one of {names}")
    why = "; ".join(f"{solver}: {reason}" for solver, reason in ranking.rejections)
    raise M2GenError(f"a generated kernel for {problem} on {target}", why, "name another --target, or see m2gen plan")


def assembly(spec: KernelSpec, arch: str) -> str:
    """A C++ kernel's assembly for the CPU `arch`, which need not be this one."""
    if not spec.template.startswith("cpp/"):
        raise M2GenError(f"assembly of {spec.name}", f"it is a GPU kernel, for {arch}", "use --ptx or --sass")
    from m2gen.runtime.build.cpp_kernel import compile_text

    return compile_text(spec, arch).rstrip("\n")


def _compile(spec: KernelSpec, arch: str, layout: str) -> Compiled:
    from m2gen.runtime.build.cross_compile import Job, compile_one

    compiled = compile_one(Job(spec, arch, "BLH" if layout == "BLH" else "BHL"))  # type: ignore[arg-type]
    if compiled.error:
        raise M2GenError(f"{spec.name} compiled for {arch}", compiled.error, "see the source with --source")
    return compiled


def _resources(spec: KernelSpec, compiled: Compiled) -> str:
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

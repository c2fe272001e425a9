"""What `m2gen show` prints: the kernel of a problem's best fused plan, as source, as assembly, or as resources."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from m2gen.errors import M2GenError

if TYPE_CHECKING:
    from m2gen.kernels.fftconv import FftConvSpec
    from m2gen.planner.plan import FusedConv
    from m2gen.planner.problem import Problem
    from m2gen.runtime.cross_compile import Compiled

VIEWS = ("source", "ptx", "sass", "resources")
PARTS = ("fwd", "transpose", "dk")


def show(problem: Problem, target: str, view: str = "source", part: str = "fwd") -> str:
    """The kernel of `problem` on `target` as one of VIEWS; "source" needs no compiler."""
    spec, arch = _spec(problem, target, part)
    if view == "source":
        from m2gen.codegen.render import render

        return render(spec).text.rstrip("\n")
    compiled = _compile(spec, arch, problem)
    if view == "resources":
        return _resources(spec, compiled)
    if view == "ptx" and "amdgcn" in compiled.texts:
        view = "amdgcn"
    if view not in compiled.texts:
        raise M2GenError(f"{view} for {arch}", "its compiler has no such text", "use --ptx, which shows its assembly")
    return compiled.texts[view].rstrip("\n")


def _spec(problem: Problem, target: str, part: str) -> tuple[FftConvSpec, str]:
    """The spec of one part of the best fused plan, and the architecture it is for."""
    from m2gen.planner import search
    from m2gen.planner.plan import FusedConv
    from m2gen.runtime.planning import limits_of

    ranking = search.rank(problem, limits_of(target))
    best = ranking.best("fused")
    if best is None or not isinstance(best.conv, FusedConv):
        why = dict(ranking.rejections).get("fused", "no candidate fits")
        raise M2GenError(
            f"a generated kernel for {problem} on {target}", why, "name a GPU with --target, or see m2gen plan"
        )
    return of_part(best.conv, part, problem), best.arch


def of_part(conv: FusedConv, part: str, problem: Problem) -> FftConvSpec:
    """The kernel that does `part` of a convolution: its forward pass, the gradient of its input, or of its filter."""
    spec = conv.spec
    if part == "dk":
        return replace(conv.dk, pre_gate=problem.pre_gate, post_gate=problem.post_gate, skip=problem.skip)
    if part == "transpose":
        return replace(spec, transpose=True, pre_gate=spec.post_gate, post_gate=spec.pre_gate)
    return spec


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

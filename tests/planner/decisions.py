"""What the planner decides, one line per (problem, target): reviewed as text, so that a change of mind is seen.

python tests/planner/decisions.py > tests/planner/decisions.txt
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from m2gen.device.limits import target
from m2gen.planner.fftconv.steps import Conv, FusedConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.planner.step import duration
from m2gen.testing.corpus import corpus

SIZES = (1, 2, 17, 784, 1000, 4096, 6000, 8191, 65536, 1048576, 4194304)
TARGETS = ("sm90", "sm80", "gfx942", "avx512", "avx2")
COMMITTED = Path(__file__).with_name("decisions.txt")
COMMAND = "python tests/planner/decisions.py > tests/planner/decisions.txt"


def problems() -> Iterator[tuple[str, Problem]]:
    """(name, problem): the ladder of sizes, then the corpus."""
    for n in SIZES:
        yield f"n-{n}", parse(f"fftconv n={n} h=768 b=8 bf16 causal gated")
    for n in (512, 4096):
        yield f"n-{n}-blh", parse(f"fftconv n={n} h=768 b=8 bf16 bidirectional post_gated skip blh")
    for entry in corpus():
        yield entry.name, entry.problem


def decisions() -> Iterator[str]:
    yield "# Written by: " + COMMAND
    for name, problem in problems():
        yield f"\n{name}: {problem}"
        for arch in TARGETS:
            first, *others = rank(problem, target(arch)).plans
            other = next((plan for plan in others if _essence(plan) != _essence(first)), None)
            runner_up = f"; next {_describe(other)}" if other else ""
            yield f"  {arch:7} {_describe(first)}{runner_up}"


def _essence(plan: Plan) -> object:
    """What makes two plans different decisions: warps and stages do not, nor the order of a native kernel's radices."""
    if not isinstance(plan.body, Conv):
        return plan.solver, plan.body.style
    transform, native = plan.body.transform, plan.solver == "native"
    radices = sorted(transform.radices) if native else transform.radices
    return plan.solver, transform.size, tuple(radices), plan.body.fold, plan.body.channels


def _describe(plan: Plan) -> str:
    if not isinstance(plan.body, Conv):
        return f"{plan.solver} {plan.body.style} {duration(plan.estimate.seconds)}"
    transform, conv = plan.body.transform, plan.body
    radices = f" = {'x'.join(map(str, transform.radices))}" if transform.radices else ""
    fold = " fold" if conv.fold else ""
    channels = f"channels {conv.channels}"
    if isinstance(conv, FusedConv):
        channels = f"{conv.spec.ring} w{conv.spec.num_warps} s{conv.spec.num_stages}{' turned' * hasattr(conv, 'turn')}"
    if isinstance(conv, PassesConv):
        channels = f"{conv.outer[0].ring} channels {conv.channels} rows {conv.rows}"
    return (
        f"{plan.solver} order {transform.order} size {transform.size}{radices}{fold} {channels} "
        f"{duration(plan.estimate.seconds)}"
    )


if __name__ == "__main__":
    print("\n".join(decisions()))

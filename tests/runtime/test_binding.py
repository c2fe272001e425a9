"""What is planned can be computed, written as JSON and read: steps stand where they must, families keep their names."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from m2gen.device.limits import LIMITS, target
from m2gen.errors import M2GenError, PlanError
from m2gen.kernels import gate as gates
from m2gen.kernels.gate import GateSpec
from m2gen.planner.gate.solvers import Native
from m2gen.planner.gate.steps import NativeGate
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.registry import OPS
from m2gen.planner.search import rank
from m2gen.planner.step import Body
from m2gen.planner.stored import plan_from_json
from m2gen.runtime.binding import BINDINGS, kernel_of

PROBLEMS = (
    "fftconv n=512 h=8 b=2 fp16 causal gated",
    "fftconv n=40000 h=4 bf16",
    "blockdiag in=96 out=192 blocks=4 rows=64 bf16 gelu glu",
    "monarch in=64 out=64 rows=30 bf16 order=2",
    "monarch in=64 out=64 rows=30",
    "shortconv n=100 h=16 gated",
    "shortconv n=100 h=16 bias",
    "gate n=64 rows=9 gelu",
)


class OtherSpec(GateSpec):
    """The same gate by another template."""


@pytest.mark.parametrize("text", PROBLEMS)
def test_every_step_that_is_planned_stands_in_its_ops_row(text: str) -> None:
    problem = parse(text)
    for arch in LIMITS:
        for plan in rank(problem, target(arch)).plans:
            assert {type(step) for step in plan.steps} <= set(OPS[problem.op].steps)
            assert plan_from_json(plan.to_json()) == plan


def test_every_step_that_gives_a_result_has_a_computation() -> None:
    planned = {step for op in OPS.values() for step in op.steps if issubclass(step, Body)}
    assert planned == set(BINDINGS)


def test_a_family_keeps_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass of a spec stays one in JSON; what is no family of m2gen is refused."""
    monkeypatch.setattr(OtherSpec, "__module__", gates.__name__)
    monkeypatch.setattr(gates, "OtherSpec", OtherSpec, raising=False)
    problem = parse(PROBLEMS[-1])
    (plan,) = Native("other", OtherSpec).candidates(problem, target("avx2"))
    assert type(plan.body.spec) is OtherSpec and plan.solver == "other"
    again = plan_from_json(plan.to_json())
    assert type(again.body.spec) is OtherSpec and again == plan
    (usual,) = Native().candidates(problem, target("avx2"))
    assert usual.body != plan.body
    for name in ("os.PathLike", "m2gen.kernels.gate.erfcx", "m2gen.kernels.none.Spec", "m2gen.kernels.gate.None"):
        with pytest.raises(PlanError, match=r"family|No module"):
            plan_from_json(plan.to_json().replace("m2gen.kernels.gate.OtherSpec", name))


def test_a_step_without_a_computation_says_so() -> None:
    @dataclass(frozen=True, slots=True)
    class Lonely(NativeGate):
        pass

    (plan,) = Native().candidates(parse(PROBLEMS[-1]), target("avx2"))
    body = plan.body
    lonely = Lonely(body.estimate, body.spec, body.together, body.parallel)
    with pytest.raises(M2GenError, match=r"there is none for a Lonely. Add its row to runtime/binding.py"):
        kernel_of(Plan(plan.problem, plan.arch, "lonely", (lonely,)))
    with pytest.raises(PlanError, match="Lonely is no step"):
        plan_from_json(plan.to_json().replace("NativeGate", "Lonely"))


def test_a_template_that_does_not_fit_says_so() -> None:
    from m2gen.codegen.render import render
    from m2gen.errors import CompileError

    class Bare:
        name, template, dtype = "bare", "cpp/gate/fwd.cpp.jinja", "fp32"

    with pytest.raises(CompileError, match=r"the source of bare: templates/cpp/gate/fwd.cpp.jinja does not go with it"):
        render(Bare())  # type: ignore[arg-type]

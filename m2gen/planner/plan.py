"""Plans: what will run, as a value that prints itself, sums its estimates and goes to JSON (and back: stored.py)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from m2gen.errors import PlanError
from m2gen.planner.problem import Problem
from m2gen.planner.step import Body, Estimate, Step

if TYPE_CHECKING:
    from m2gen.device.limits import DeviceLimits


@dataclass(frozen=True, slots=True)
class Plan:
    """How `solver` does `problem` on a device of architecture `arch`: steps in order, the last gives the result.

    `origin` says why this plan and no other, `left_out` what would fit and must not run, or stands behind though it is
    estimated faster; two plans that differ in nothing else are equal.
    """

    problem: Problem
    arch: str
    solver: str
    steps: tuple[Step[Any], ...]
    origin: str = field(default="estimate", compare=False)
    left_out: tuple[str, ...] = field(default=(), compare=False)

    @property
    def estimate(self) -> Estimate:
        """The sum of the steps' estimates."""
        return sum((step.estimate for step in self.steps), Estimate())

    @property
    def seconds(self) -> float:
        """Those of the estimate."""
        total = 0.0
        for step in self.steps:
            total += step.estimate.seconds
        return total

    @property
    def body(self) -> Body[Any]:
        """The last step."""
        last = self.steps[-1]
        if not isinstance(last, Body):
            raise PlanError(str(self.problem), f"the plan ends in {last}", "end it with one that gives the result")
        return last

    @property
    def choice(self) -> str:
        """The plan among the candidates of its problem: `native 8x4x4x4x4x4 channels 1, spectra kept`."""
        return f"{self.solver} {self.body.choice}"

    @property
    def style(self) -> str:
        """How the plan differs from others of its solver, in words that carry over to problems of other sizes."""
        return f"{self.solver} {self.body.style}"

    def expected(self, limits: DeviceLimits) -> float:
        """The seconds that `limits` let one expect of the plan, which may have been made with others."""
        return self.body.expected(self.problem, limits)

    def plainer(self, limits: DeviceLimits) -> Plan | None:
        """The same with fewer generated kernels beside the main one; None where there are none beside it."""
        steps = self.body.plainer(self.problem, limits)
        return None if steps is None else replace(self, steps=steps)

    def __str__(self) -> str:
        return f'(plan "{self.problem}" {self.arch} {self.solver} {" ".join(map(str, self.steps))})'

    def explain(self, limits: DeviceLimits | None = None) -> str:
        """The plan as text: sizes, blocks, every cost formula with the numbers put in. `limits` default to the row."""
        from m2gen.planner.explain import explain  # late: sympy is slow to load

        return explain(self, limits)

    def to_json(self) -> str:
        """The plan as one JSON object; `stored.plan_from_json` gives an equal plan back."""
        head = {"problem": str(self.problem), "arch": self.arch, "solver": self.solver, "origin": self.origin}
        return json.dumps({**head, "left_out": self.left_out, "steps": _written(self.steps)})


def _written(value: Any) -> Any:
    """What JSON takes; a step, in a plan or in another step, says which, and a kernel's spec which family."""
    if is_dataclass(value) and not isinstance(value, type):
        kind = {"step": type(value).__name__} if isinstance(value, Step) else {}
        if hasattr(value, "template"):
            kind = {"family": f"{type(value).__module__}.{type(value).__name__}"}
        return {**kind, **{one.name: _written(getattr(value, one.name)) for one in fields(value)}}
    return [_written(one) for one in value] if isinstance(value, tuple | list) else value

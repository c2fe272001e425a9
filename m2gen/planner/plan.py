"""Plans: what will run, as a value that prints itself, sums its estimates and goes to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from m2gen.errors import PlanError
from m2gen.planner.blockdiag.steps import FusedProduct, LibraryProduct, NativeProduct
from m2gen.planner.fftconv.steps import FilterSpectrum, FusedConv, NativeConv, SpectralConv
from m2gen.planner.monarch.steps import NativeMonarch, StagedMonarch
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.step import Body, Estimate, Step

if TYPE_CHECKING:
    from m2gen.device.limits import DeviceLimits

_OF_FFTCONV = (FilterSpectrum, SpectralConv, FusedConv, NativeConv)
_OF_BLOCKDIAG = (LibraryProduct, FusedProduct, NativeProduct)
_OF_MONARCH = (StagedMonarch, NativeMonarch)
_STEPS: dict[str, type[Step[Any]]] = {kind.__name__: kind for kind in (*_OF_FFTCONV, *_OF_BLOCKDIAG, *_OF_MONARCH)}


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

    def __str__(self) -> str:
        return f'(plan "{self.problem}" {self.arch} {self.solver} {" ".join(map(str, self.steps))})'

    def explain(self, limits: DeviceLimits | None = None) -> str:
        """The plan as text: sizes, blocks, every cost formula with the numbers put in. `limits` default to the row."""
        from m2gen.planner.explain import explain  # late: sympy is slow to load

        return explain(self, limits)

    def to_json(self) -> str:
        """The plan as one JSON object; `from_json` gives an equal plan back."""
        steps = [{"step": type(step).__name__, **asdict(step)} for step in self.steps]
        head = {"problem": str(self.problem), "arch": self.arch, "solver": self.solver, "origin": self.origin}
        return json.dumps({**head, "steps": steps})

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote."""
        try:
            data = json.loads(text)
            steps = tuple(_step(step) for step in data["steps"])
            return cls(parse(data["problem"]), data["arch"], data["solver"], steps, data["origin"])
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                "a plan from JSON", f"not one that to_json wrote ({error!r})", "write it with Plan.to_json"
            ) from error


def _step(data: Mapping[str, Any]) -> Step[Any]:
    fields = dict(data)
    step: Step[Any] = _revived(_STEPS[fields.pop("step")], fields)
    return step


def _revived(kind: Any, value: Any) -> Any:
    """What `asdict` and JSON made of a value of this type, as such a value again."""
    if isinstance(value, dict) and (of := next((one for one in _alternatives(kind) if is_dataclass(one)), None)):
        kinds = get_type_hints(of)
        return of(**{name: _revived(kinds[name], one) for name, one in value.items()})  # type: ignore[operator]
    if isinstance(value, list):
        return tuple(_revived(None, one) for one in value)
    return value


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """A | B as (A, B)."""
    return get_args(kind) or (kind,)

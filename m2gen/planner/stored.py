"""Plans that were written as JSON, as plans again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, get_args, get_origin, get_type_hints

from m2gen.errors import PlanError
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse
from m2gen.planner.registry import OPS
from m2gen.planner.step import Step

_STEPS = {kind.__name__: kind for op in OPS.values() for kind in op.steps}


def plan_from_json(text: str) -> Plan:
    """The plan that `Plan.to_json` wrote. Raises PlanError."""
    try:
        data = json.loads(text)
        steps = tuple(_step(step) for step in data["steps"])
        left_out = tuple(data.get("left_out", ()))
        return Plan(parse(data["problem"]), data["arch"], data["solver"], steps, data["origin"], left_out)
    except (ValueError, KeyError, TypeError, ImportError) as error:
        raise PlanError(
            "a plan from JSON", f"not one that to_json wrote ({error!r})", "write it with Plan.to_json"
        ) from error


def _step(data: Mapping[str, Any]) -> Step[Any]:
    fields = dict(data)
    name = fields.pop("step")
    if name not in _STEPS:
        raise ValueError(f"{name} is no step of an op's row in planner/registry.py")
    step: Step[Any] = _revived(_STEPS[name], fields)
    return step


def _revived(kind: Any, value: Any) -> Any:
    """What `asdict` and JSON made of a value of this type, as such a value again."""
    if isinstance(value, dict) and "step" in value:
        return _step(value)
    if isinstance(value, dict) and "family" in value:
        value = dict(value)
        kind = _family(value.pop("family"))
    if isinstance(value, dict) and (of := next((one for one in _alternatives(kind) if is_dataclass(one)), None)):
        kinds = get_type_hints(of)
        return of(**{name: _revived(kinds[name], one) for name, one in value.items()})  # type: ignore[operator]
    if isinstance(value, list):
        inner = get_args(kind)[0] if get_origin(kind) is tuple else None
        return tuple(_revived(inner, one) for one in value)
    return value


def _family(name: str) -> type[Any]:
    """A spec's class, by its module in `m2gen.kernels` and its name."""
    module, _, kind = name.rpartition(".")
    if not re.fullmatch(r"m2gen\.kernels\.\w+", module, re.ASCII):
        raise ValueError(f"{name} is no family of m2gen.kernels")
    found = getattr(import_module(module), kind, None)
    if not (isinstance(found, type) and is_dataclass(found) and hasattr(found, "template")):
        raise ValueError(f"{name} is no family of kernels")
    return found


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """A | B as (A, B)."""
    return get_args(kind) or (kind,)

"""The constants of a device's row fitted to what was measured: robust least squares of log(estimate / measured).

Each constant is moved by a factor; factors near 1 are preferred a little, so that what no measurement depends on stays
as it was. Iteratively reweighted, Levenberg-Marquardt, the cost model itself being the function that is fitted. A CPU's
measured plans are many, and outliers among them count less (Huber). A GPU's kernels are few, each a kind of its own,
and none is to be estimated much too low or too high: large errors count more (power 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from m2gen.cache.wisdom import Entry
from m2gen.device.row import CURVES, LATENCIES, PAIRS, SCALARS, DeviceLimits
from m2gen.errors import M2GenError
from m2gen.planner import search
from m2gen.planner.choice import by_choice
from m2gen.planner.plan import Plan
from m2gen.planner.problems import parse

_PRIOR = 0.1  # weight of log(factor) beside the errors
_OUTLIER = 0.25  # of a CPU, errors of the logarithm beyond count linearly
_LARGE = 0.2  # of a GPU, those beyond count more than their squares, the others less
# weight of how a plan compares with others of its problem and solver: that is what choices depend on
_ORDER = {"cpu": 3.0, "gpu": 1.0}
_ROUNDS = 60
_STEP = 1e-3

Vector = Any  # numpy's arrays, whose types say nothing here


class Measured(Protocol):
    """Something that was timed, and what the cost model says of it."""

    @property
    def seconds(self) -> float: ...
    @property
    def weight(self) -> float: ...
    @property
    def group(self) -> str:
        """The same for those that stand for one choice."""

    def expected(self, limits: DeviceLimits) -> float: ...


@dataclass(frozen=True)
class Sample:
    """One measured plan; samples of a problem and solver weigh one together."""

    plan: Plan
    seconds: float
    weight: float

    @property
    def group(self) -> str:
        return f"{self.plan.problem} {self.plan.solver}"

    def expected(self, limits: DeviceLimits) -> float:
        return self.plan.expected(limits)


def constants(limits: DeviceLimits) -> tuple[str, ...]:
    """The names of a row's constants that are fitted."""
    return LATENCIES if limits.kind == "gpu" else (*SCALARS, *CURVES, *PAIRS)


def samples(entries: Sequence[Entry], limits: DeviceLimits) -> list[Sample]:
    """Every timed candidate of the entries that is still one."""
    found: list[Sample] = []
    for entry in entries:
        plans = {name: plan for name, plan in _plans(entry, limits).items() if name in entry.seconds}
        count: dict[str, int] = {}
        for plan in plans.values():
            count[plan.solver] = count.get(plan.solver, 0) + 1
        found += [Sample(plan, entry.seconds[name], 1 / count[plan.solver]) for name, plan in plans.items()]
    return found


def _plans(entry: Entry, limits: DeviceLimits) -> dict[str, Plan]:
    """The candidates of an entry's problem, for the sizes that were timed."""
    try:
        timed = parse(entry.measured)
        plans = by_choice(search.rank(parse(entry.key.problem), limits).plans)
    except M2GenError:
        return {}
    return {name: replace(plan, problem=timed) for name, plan in plans.items()}


def fitted(data: Sequence[Measured], limits: DeviceLimits) -> DeviceLimits:
    """The row whose estimates are nearest to the measurements."""
    logs = np.zeros(len(_values(limits)))
    errors, damping = _errors(data, limits, logs), 1e-2
    for _ in range(_ROUNDS):
        root = _weights(data, errors, limits.kind)
        slopes = np.stack(
            [(_errors(data, limits, logs + _STEP * unit) - errors) / _STEP for unit in np.eye(len(logs))], 1
        )
        matrix = np.vstack([slopes * root[:, None], _PRIOR * np.eye(len(logs))])
        target = np.concatenate([errors * root, _PRIOR * logs])
        normal = matrix.T @ matrix
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal)), -matrix.T @ target)
        moved = logs + np.clip(step, -0.5, 0.5)
        after = _errors(data, limits, moved)
        if _loss(after, root, moved) < _loss(errors, root, logs):
            logs, errors, damping = moved, after, damping / 3
        else:
            damping *= 4
        if damping > 1e6 or np.abs(step).max() < 1e-4:
            break
    return _rounded(_with(limits, logs))


def _weights(data: Sequence[Measured], errors: Vector, kind: str) -> Vector:
    """The root of each sample's weight: of a CPU Huber's for outliers, of a GPU more for large errors."""
    own = np.array([sample.weight for sample in data] * 2)
    if kind == "cpu":
        return np.sqrt(own * np.minimum(1.0, _OUTLIER / np.maximum(np.abs(errors), 1e-9)))
    large = np.sqrt(np.abs(errors) / _LARGE)
    large[len(data) :] = 1.0  # the order counts as it is
    return np.sqrt(own * large)


def _loss(errors: Vector, root: Vector, logs: Vector) -> float:
    return float(((errors * root) ** 2).sum() + ((_PRIOR * logs) ** 2).sum())


def _errors(data: Sequence[Measured], limits: DeviceLimits, logs: Vector) -> Vector:
    """log(estimate / measured) of every sample, then how it differs from the mean of its problem and solver."""
    row = _with(limits, logs)
    errors = np.array([math.log(sample.expected(row) / sample.seconds) for sample in data])
    _, group = np.unique([sample.group for sample in data], return_inverse=True)
    means = np.bincount(group, errors) / np.bincount(group)
    return np.concatenate([errors, _ORDER[limits.kind] * (errors - means[group])])


def _values(limits: DeviceLimits) -> list[float]:
    """Every constant that is fitted, in the order of `constants`."""
    flat: list[float] = []
    for name in constants(limits):
        value = getattr(limits, name)
        flat += [one for _, one in value] if name in CURVES else list(value) if name in PAIRS else [value]
    return flat


def _with(limits: DeviceLimits, logs: Vector) -> DeviceLimits:
    """The row with every constant times exp of its logarithm."""
    factors = iter(np.exp(logs).tolist())
    return _changed(limits, lambda value: value * next(factors))


def _rounded(row: DeviceLimits) -> DeviceLimits:
    """Three digits: more would pretend."""
    return _changed(row, lambda value: float(f"{value:.3g}"))


def _changed(row: DeviceLimits, change: Callable[[float], float]) -> DeviceLimits:
    """The row with every constant changed, in the order of `constants`."""
    changed: dict[str, Any] = {}
    for name in constants(row):
        value = getattr(row, name)
        if name in CURVES:
            changed[name] = tuple((at, change(figure)) for at, figure in value)
        else:
            changed[name] = tuple(change(figure) for figure in value) if name in PAIRS else change(value)
    return replace(row, **changed)


# -- how good a row is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """How far estimates are from measurements, and what choosing by them costs."""

    error: float  # exp of the mean |log(estimate / measured)|: 1.2 is 20 % off on average
    regrets: dict[str, float]  # by problem: the chosen plan's seconds over the best that was measured
    unmeasured: tuple[str, ...]  # problems whose choice was not measured; the best estimate that was stands in

    @property
    def mean_regret(self) -> float:
        """The geometric mean."""
        return math.exp(sum(map(math.log, self.regrets.values())) / max(1, len(self.regrets)))

    @property
    def worst_regret(self) -> float:
        return max(self.regrets.values(), default=1.0)


def quality(entries: Sequence[Entry], limits: DeviceLimits) -> Quality:
    """The error and the regret of a row's estimates over the entries."""
    data = samples(entries, limits)
    logs = [abs(math.log(sample.plan.expected(limits) / sample.seconds)) for sample in data]
    weights = [sample.weight for sample in data]
    error = math.exp(sum(a * w for a, w in zip(logs, weights, strict=True)) / sum(weights)) if data else math.nan
    regrets, unmeasured = {}, []
    for entry in entries:
        ranked = by_choice(search.rank(parse(entry.key.problem), limits).plans)
        timed = [name for name in ranked if _alike(name) in {_alike(text) for text in entry.seconds}]
        if timed:
            first = next(iter(ranked))
            unmeasured += [entry.key.problem] * (timed[0] != first)
            seconds = {_alike(name): value for name, value in entry.seconds.items()}
            regrets[entry.key.problem] = seconds[_alike(timed[0])] / min(seconds.values())
    return Quality(error, regrets, tuple(unmeasured))


def _alike(choice: str) -> str:
    """The choice without whether spectra are kept, which was measured apart."""
    return choice.removesuffix(", spectra kept").removesuffix(", spectra made anew")


def printed(limits: DeviceLimits, before: DeviceLimits) -> str:
    """The constants that changed, as lines of device/cpus.py or gpus.py."""
    names = [name for name in constants(limits) if getattr(limits, name) != getattr(before, name)]
    return "\n".join(f"{name}={getattr(limits, name)!r}," for name in names)

"""A plan as text: sizes, blocks, and every cost formula with the numbers put in. The only importer of sympy."""

from __future__ import annotations

from typing import Any, Protocol

import sympy as sp

from m2gen.config import config
from m2gen.device.limits import DeviceLimits, target
from m2gen.dtypes import DTYPES
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.problem import Problem
from m2gen.planner.step import UNTRIED_ARE, Arithmetic, Body, Cost, Estimate, Step, Terms, duration

RADIX = sp.Symbol("r", positive=True)
SYMBOLIC = Arithmetic(sp.ceiling, sp.Max, sp.Min, lambda x: sp.Function("log2")(x))
_UNITS = {"flop": "FLOP", "bytes": "B", "launches": "calls", "working_set": "B", "seconds": "s"}


class Explained(Protocol):
    """What is read of a plan (planner/plan.py, which calls this)."""

    @property
    def problem(self) -> Problem: ...
    @property
    def arch(self) -> str: ...
    @property
    def solver(self) -> str: ...
    @property
    def steps(self) -> tuple[Step[Any], ...]: ...
    @property
    def origin(self) -> str: ...
    @property
    def left_out(self) -> tuple[str, ...]: ...
    @property
    def estimate(self) -> Estimate: ...
    @property
    def body(self) -> Body[Any]: ...


def explain(plan: Explained, limits: DeviceLimits | None = None) -> str:
    """`limits` default to the table's row of the plan's architecture."""
    row = target(plan.arch) if limits is None else limits
    untried = plan.body.untried
    floor = plan.problem.least_bytes / row.dram_bandwidth
    lines = [
        f"problem   {plan.problem}",
        f"device    {row.arch}: {row.description}",
        f"figures   {_figures(row)}",
        f"solver    {plan.solver}",
        f"chosen by {plan.origin}",
        *([] if untried is None else [f"untried   {untried}: {UNTRIED_ARE[config().untried]}"]),
        *plan.body.lines(plan.problem),
        f"estimate  {_amounts(plan.estimate)}",
        f"floor     {duration(floor)} at {row.dram_bandwidth / 1e9:.4g} GB/s, to read what is given and write the "
        "result, once each",
        *_too_large(plan.problem, row),
    ]
    lines += [f"left out  {warning}" for warning in plan.left_out]
    for step in plan.steps:
        lines += ["", *_step_lines(plan, step, row)]
    return "\n".join([*lines, "", f"Symbols: {plan.body.legend}.", plan.body.notes])


def _too_large(problem: Problem, row: DeviceLimits) -> list[str]:
    """A line where what the user holds before and after a call is more than the device has."""
    held = problem.least_bytes
    if isinstance(problem, FftConvProblem):  # the filter, which is read once a channel, is no part of the floor
        both_sides = 2 if problem.mode == "bidirectional" else 1
        held += both_sides * problem.h * problem.taps_given * DTYPES[problem.dtype].bytes
    if held <= row.memory_bytes:
        return []
    return [
        f"memory    it does not fit: the tensors of a call alone, without any scratch, take {held / 1e9:.4g} GB, and "
        f"the device has {row.memory_bytes / 1e9:.4g} GB"
    ]


def _figures(row: DeviceLimits) -> str:
    return (
        f"{row.cores} cores, float32 products {row.matrix32 / 1e9:.4g} GFLOP/s, memory {row.dram_bandwidth / 1e9:.4g} "
        f"GB/s, a call {row.call_seconds * 1e6:.3g} us, chunks of {row.chunk_bytes / 2**20:.0f} MiB"
    )


def symbols(kind: type[Any]) -> Any:
    """The fields of a NamedTuple of numbers, as symbols."""
    return kind(*sp.symbols(" ".join(kind._fields), positive=True))


def _step_lines(plan: Explained, step: Step[Any], limits: DeviceLimits) -> list[str]:
    terms = step.terms(plan.problem, plan.body, limits)
    if terms is None:
        return [f"{step}: {_amounts(step.estimate)}"]
    names = symbols(type(terms.numbers))
    whole = terms.whole(names, SYMBOLIC)
    stage = Cost() if terms.stage is None else terms.stage(names, SYMBOLIC, RADIX)
    used = set().union(*(sp.sympify(e).free_symbols for e in (*whole, *stage)))
    shown = [f"{symbol} = {value:.6g}" for symbol, value in zip(names, terms.numbers, strict=True) if symbol in used]
    lines = [str(step), f"  with {', '.join(shown)}", *_work_lines(terms, names, whole)]
    for quantity, unit in _UNITS.items():
        formula = _formula(getattr(whole, quantity), getattr(stage, quantity))
        value = getattr(step.estimate, quantity)
        lines += [f"  {quantity} = {formula}", f"  {' ' * len(quantity)} = {value:.6g} {unit}"]
    return lines


def _work_lines(terms: Terms, names: Any, whole: Cost) -> list[str]:
    if terms.work is None:
        return []
    symbol, formula, what = terms.work
    if getattr(names, symbol) not in sp.sympify(whole.flop).free_symbols:
        return []
    return [f"  {symbol} = {sp.sstr(formula(names, SYMBOLIC))} with {what}"]


def _formula(whole: sp.Expr, stage: sp.Expr) -> str:
    """The whole, and the stage summed over the radices."""
    return sp.sstr(whole) if stage == 0 else f"{sp.sstr(whole)} + sum over radices of [{sp.sstr(stage)}]"


def _amounts(estimate: Estimate) -> str:
    return (
        f"{duration(estimate.seconds)}, {estimate.flop:.4g} FLOP, {estimate.bytes:.4g} B moved, "
        f"{estimate.launches:.0f} calls, {estimate.working_set / 2**20:.2f} MiB in use"
    )

"""A plan as text: sizes, blocks, and every cost formula with the numbers put in. The only importer of sympy."""

from __future__ import annotations

import sympy as sp

from m2gen.device.limits import DeviceLimits, target
from m2gen.planner import cost, formulas
from m2gen.planner.plan import (
    Estimate,
    FilterSpectrum,
    FusedConv,
    NativeConv,
    Plan,
    SpectralConv,
    Step,
    Transform,
    duration,
)
from m2gen.planner.search import rank

SYMBOLS = formulas.Values(*sp.symbols(" ".join(formulas.Values._fields), positive=True))
RADIX = sp.Symbol("r", positive=True)
SYMBOLIC = formulas.Arithmetic(sp.ceiling, sp.Max, sp.Min, lambda x: sp.Function("log2")(x))
_UNITS = {"flop": "FLOP", "bytes": "B", "launches": "calls", "working_set": "B", "seconds": "s"}
_NOTES = (
    "Every figure is an estimate of the cost model. A block smaller than the matrix unit gets r/U of its rate: the "
    "shape of FlashFFTConv's cost model, remembered and not checked against the paper; its constants are not used. "
    "With equal radices, 8 N sum(r) is four times the 2 p N^(1 + 1/p) of an order-p Monarch matrix of real blocks."
)
LEGEND = (
    "B batch, H channels, n sequence, N transform size, C channels a chunk, e and c bytes of a user's and a computed "
    "number, G gates, K skip, p order, r radix, R2 sum of r^2, T FLOP of a real FFT, F FFT rate, M matrix rate, "
    "U matrix unit, W bandwidth of temporaries, D of the user's tensors, t cost of a call, P passes of the FFT, "
    "n0, n1, n2 a fused kernel's radices, S 1 with an outer stage, R batch rows in a tile, s transforms stacked, "
    "Q bytes of an operand, "
    "X rate of its products, V vector rate, A threads of a block, I instructions that a warp issues for a tile, "
    "l seconds that a tile waits, m multiprocessors, O blocks that each holds at once, "
    "J operations a point of a native transform, X their rate, L 1 where numbers are gathered into rows, Y numbers a "
    "second"
)


def explain(plan: Plan, limits: DeviceLimits | None = None) -> str:
    """`limits` default to the table's row of the plan's architecture."""
    row = target(plan.arch) if limits is None else limits
    lines = [
        f"problem   {plan.problem}",
        f"device    {row.arch}: {row.description}",
        f"figures   {_figures(row)}",
        f"solver    {plan.solver}",
        f"chosen by {plan.origin}",
        *_transform_lines(plan),
        f"estimate  {_amounts(plan.estimate)}",
        f"floor     {duration(cost.memory_floor(plan.problem, row))} to read sequence and gates and write the result",
    ]
    lines += [f"left out  {warning}" for warning in rank(plan.problem, row).warnings]
    for step in plan.steps:
        lines += ["", *_step_lines(plan, step, row)]
    return "\n".join([*lines, "", f"Symbols: {LEGEND}.", _NOTES])


def _figures(row: DeviceLimits) -> str:
    return (
        f"{row.cores} cores, float32 products {row.matrix32 / 1e9:.4g} GFLOP/s, memory {row.dram_bandwidth / 1e9:.4g} "
        f"GB/s, a call {row.call_seconds * 1e6:.3g} us, chunks of {row.chunk_bytes / 2**20:.0f} MiB"
    )


def _transform_lines(plan: Plan) -> list[str]:
    conv, transform = plan.conv, plan.conv.transform
    wraps = plan.problem.mode == "circular" and not conv.fold
    why = "the circle itself" if wraps else f"at least {plan.problem.linear_size} avoids wrap-around"
    native = isinstance(conv, NativeConv)
    places = f"{transform.size} points" + (f" of {2 * transform.size} places" if native else "")
    lines = [
        f"size      {places} ({why}{', tail folded onto the head' if conv.fold else ''})",
        f"chunks    {conv.channels} of {plan.problem.h} channels at a time",
    ]
    if isinstance(conv, FusedConv):
        lines[1] = f"kernel    {conv.spec.name}, {conv.programs} programs, {conv.spec.ring} ring"
    if isinstance(conv, NativeConv):
        lines[1] = f"kernel    {conv.spec.name}, {conv.channels} channels a work item"
    if transform.kind == "monarch":
        radices = " x ".join(map(str, transform.radices))
        blocks = ", ".join(f"{count} x {out} x {into}" for count, out, into in transform.blocks)
        lines += [f"order     {transform.order}, radices {radices}", f"blocks    {blocks}   (nblocks x out x in)"]
    return lines


def _step_lines(plan: Plan, step: Step, limits: DeviceLimits) -> list[str]:
    if not isinstance(step, FilterSpectrum | SpectralConv | FusedConv | NativeConv):
        return [f"{step}: {_amounts(step.estimate)}"]
    name = "filter" if isinstance(step, FilterSpectrum) else "conv"
    stage = formulas.Cost()
    if isinstance(plan.conv, FusedConv):
        numbers = cost.fused_values(plan.problem, plan.conv.spec, limits)
        whole = formulas.FORMULAS["fused", name](SYMBOLS, SYMBOLIC)
    elif isinstance(plan.conv, NativeConv):
        numbers = cost.native_values(plan.problem, plan.conv.spec, plan.conv.channels, limits)
        whole = formulas.FORMULAS["native", name](SYMBOLS, SYMBOLIC)
    else:
        numbers = cost.values(plan.problem, step.transform, plan.conv.channels, limits, name)
        whole = formulas.FORMULAS[step.transform.kind, name](SYMBOLS, SYMBOLIC)
        stage = formulas.monarch_stage(SYMBOLS, SYMBOLIC, RADIX, name) if step.transform.radices else stage
    used = set().union(*(sp.sympify(e).free_symbols for e in (*whole, *stage)))
    shown = [f"{symbol} = {value:.6g}" for symbol, value in zip(SYMBOLS, numbers, strict=True) if symbol in used]
    lines = [str(step), f"  with {', '.join(shown)}", *_work_lines(step.transform, whole)]
    for quantity in formulas.QUANTITIES:
        formula = _formula(getattr(whole, quantity), getattr(stage, quantity))
        value = getattr(step.estimate, quantity)
        lines += [f"  {quantity} = {formula}", f"  {' ' * len(quantity)} = {value:.6g} {_UNITS[quantity]}"]
    return lines


def _work_lines(transform: Transform, whole: formulas.Cost) -> list[str]:
    if SYMBOLS.T not in sp.sympify(whole.flop).free_symbols:
        return []
    case, points = cost.work_case(transform.size)
    where = f"N = {points}" if case != "bluestein" else f"N = {points} inside (Bluestein, for a prime factor above 13)"
    return [f"  T = {sp.sstr(formulas.transform_work(case, SYMBOLS.N, SYMBOLIC))} with {where}"]


def _formula(whole: sp.Expr, stage: sp.Expr) -> str:
    """The whole, and the stage summed over the radices."""
    return sp.sstr(whole) if stage == 0 else f"{sp.sstr(whole)} + sum over radices of [{sp.sstr(stage)}]"


def _amounts(estimate: Estimate) -> str:
    return (
        f"{duration(estimate.seconds)}, {estimate.flop:.4g} FLOP, {estimate.bytes:.4g} B moved, "
        f"{estimate.launches:.0f} calls, {estimate.working_set / 2**20:.2f} MiB in use"
    )

"""What each way of a product launches, forward and backward: bytes that are read and written once, and seconds, by the
formulas of formulas.py and the tiles' estimates. Those of the forward pass alone add up to the estimate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from m2gen.device.limits import DeviceLimits
from m2gen.dtypes import DTYPES
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.blockdiag_mm import BlockdiagMmSpec
from m2gen.planner.blockdiag import cost, tiles
from m2gen.planner.blockdiag.formulas import Values
from m2gen.planner.blockdiag.problem import BlockDiagProblem
from m2gen.planner.gate import cost as gates
from m2gen.planner.gate.problem import GateProblem
from m2gen.planner.step import Launch

_SUM = 4  # bytes of a number of a sum


def of_kernels(
    problem: BlockDiagProblem,
    limits: DeviceLimits,
    specs: tuple[BlockdiagSpec | None, BlockdiagSpec, BlockdiagSpec],
    parts: int,
) -> tuple[Launch, ...]:
    """The gradients by generated Triton kernels for dz, dx and dw; the last two read the first one's result."""
    each, found = DTYPES[problem.dtype].bytes, []
    for part, spec in zip(("dz", "dx", "dw"), specs, strict=True):
        if spec is None:
            continue
        one = tiles.estimated(tiles.sizes_of(problem, part), spec, limits)
        bias = problem.bias * problem.n_out * each if part != "dx" else 0
        adding = _added(problem, limits, parts) if part == "dw" else []  # of the weight's, it is in the estimate
        moved = one.bytes + bias - sum(launch.bytes for launch in adding[:1])
        found.append(Launch(spec.name, moved, one.seconds - limits.call_seconds * bool(adding), problem.flop))
        found += adding
    return backwards(found)


def _added(problem: BlockDiagProblem, limits: DeviceLimits, parts: int) -> list[Launch]:
    """The sums of parts: of the weight's gradient, and of the bias's."""
    numbers = [problem.weights, *[problem.n_out] * problem.bias] if parts > 1 else []
    moved = [n * (_SUM * parts + DTYPES[problem.dtype].bytes) for n in numbers]
    return [Launch("add_parts", one, limits.call_seconds + one / limits.dram_bandwidth) for one in moved]


def of_library(
    problem: BlockDiagProblem, limits: DeviceLimits, native_gate: bool, gradients: bool
) -> tuple[Launch, ...]:
    """PyTorch's products, elementwise operators and the copies that put blocks where they belong."""
    v = cost.library_values(problem, limits)
    result, inputs, weight, users = v.R * v.b * v.n, v.R * v.b * v.k, v.b * v.k * v.n, v.R * v.u
    name = "bmm" if problem.blocks > 1 else "gemm"

    def product(name: str, numbers: float) -> Launch:
        return Launch(name, v.e * numbers, problem.flop / v.M + v.e * numbers / v.D + v.t, problem.flop)

    def elementwise(name: str, numbers: float, beside: float = 0.0) -> Launch:
        """Over numbers that are temporaries, and others that are in memory."""
        return Launch(name, v.e * (numbers + beside), v.e * (numbers / v.W + beside / v.D) + v.t)

    def forward() -> Iterator[Launch]:
        yield product(name, inputs + weight + result)
        if v.c:
            yield elementwise("copy of the result's blocks", 2 * result)
        if problem.bias:
            yield elementwise("bias", 2 * result, v.b * v.n)
        if problem.glu:
            yield elementwise("gate", result + users)
        elif problem.activation is not None:
            yield elementwise(problem.activation, 2 * result)
        if problem.residual:
            yield elementwise("residual", 2 * users, users)

    def backward() -> Iterator[Launch]:
        if problem.glu and native_gate:
            yield elementwise("gradient of the gate", 5 * users)
        elif problem.glu:  # of the value and of what is activated, and both put side by side
            yield elementwise("gradient of the gate's value", 3 * users)
            yield elementwise("gradient of the gate's other half", 3 * users)
            if problem.activation is not None:
                yield elementwise(f"gradient of {problem.activation}", 3 * users)
            yield elementwise("halves side by side", 4 * users)
        elif problem.activation is not None:
            yield elementwise(f"gradient of {problem.activation}", 3 * result)
        yield product(f"{name} of the gradient in x", inputs + weight + result)
        if v.c:
            yield elementwise("copy of the gradient's blocks", 2 * inputs)
        yield product(f"{name} of the gradient in the weight", inputs + weight + result)
        if problem.bias:
            yield elementwise("gradient in the bias", result, v.b * v.n)

    return (*forward(), *(backwards(backward()) if gradients else ()))


def backwards(launches: Iterable[Launch]) -> tuple[Launch, ...]:
    """Those of the gradients."""
    return tuple(replace(one, back=True) for one in launches)


def of_native(
    problem: BlockDiagProblem, limits: DeviceLimits, spec: BlockdiagMmSpec, packed: bool, gradients: bool
) -> tuple[Launch, ...]:
    """Generated C++; where gradients follow, what stands between the product and what follows it is kept."""
    behind = problem.glu or problem.activation is not None
    if not gradients or not behind:
        found = [*_native(problem, limits, spec, packed)]
    else:
        bare = replace(problem, activation=None, glu=False, residual=False)
        found = [*_native(bare, limits, spec, packed), _epilogue(problem, limits, backward=False)]
        v = cost.library_values(problem, limits)
        moved = 3.0 * v.e * v.R * v.u
        found += [Launch("residual", moved, moved / v.W + v.t)] if problem.residual else []
    return (*found, *(backwards(_native_backward(problem, limits, spec, packed)) if gradients else ()))


def _native(problem: BlockDiagProblem, limits: DeviceLimits, spec: BlockdiagMmSpec, packed: bool) -> Iterator[Launch]:
    """The product, and what packs its weight before."""
    whole = cost.native_estimate(problem, spec, packed, limits)
    v = cost.native_values(problem, spec, packed, limits)
    if packed:
        weight = float(v.b * v.k * -(-v.n // v.w) * v.w)
        moved = 2 * weight * max(v.e, v.Z)
        pack = Launch("packing of the weight", moved, moved / v.D + weight / v.N + v.t)
        yield pack
        yield Launch(spec.name, whole.bytes - pack.bytes, whole.seconds - pack.seconds, whole.flop)
    else:
        yield Launch(spec.name, whole.bytes, whole.seconds, whole.flop)


def _epilogue(problem: BlockDiagProblem, limits: DeviceLimits, backward: bool) -> Launch:
    """The gate, a kernel, or the activation, PyTorch's, as a step of its own."""
    v = cost.library_values(problem, limits)
    if problem.glu:
        gate = GateProblem(n=problem.results, rows=problem.rows, dtype=problem.dtype, activation=problem.activation)
        of = gates.estimate(gate, limits, True)
        more = 2.0 * v.e * v.R * v.u * backward  # dy and dz are a half more each than y and z
        seconds = of.seconds + more / gates.values(gate, limits, True).D
        return Launch("gradient of the gate" if backward else "gate", of.bytes + more, seconds, of.flop)
    moved = (3.0 if backward else 2.0) * v.e * v.R * v.u
    return Launch(f"{'gradient of ' * backward}{problem.activation}", moved, moved / v.W + v.t)


def _native_backward(
    problem: BlockDiagProblem, limits: DeviceLimits, spec: BlockdiagMmSpec, packed: bool
) -> Iterator[Launch]:
    bare: BlockDiagProblem = replace(problem, activation=None, glu=False, bias=False, residual=False)
    plain = replace(spec, activation=None, glu=False)
    if problem.glu or problem.activation is not None:
        yield _epilogue(problem, limits, backward=True)
    turned = replace(bare, n_in=problem.n_out, n_out=problem.n_in)
    yield from _native(turned, limits, plain, packed)
    v: Values = cost.native_values(bare, plain, False, limits)
    moved = float(v.e * (v.R * v.b * (v.k + v.n) + v.b * v.k * v.n))
    yield Launch("gradient in the weight", moved, bare.flop / v.M + moved / v.D + v.t, bare.flop)
    if problem.bias:
        moved = float(v.e * (v.R * v.b * v.n + v.b * v.n))
        yield Launch("gradient in the bias", moved, moved / v.D + limits.call_seconds)

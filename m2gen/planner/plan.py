"""Plans: what will run, as a value that prints itself, sums its estimates and goes to JSON and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from m2gen.errors import PlanError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.planner.problem import Problem

if TYPE_CHECKING:
    from m2gen.device.limits import DeviceLimits


@dataclass(frozen=True, slots=True)
class Transform:
    """A discrete Fourier transform of `size` points: by the library (no radices) or by Monarch factors."""

    kind: Literal["fft", "monarch"]
    size: int
    radices: tuple[int, ...]

    @property
    def order(self) -> int:
        """The number of block-diagonal factors, 0 for the library."""
        return len(self.radices)

    @property
    def blocks(self) -> tuple[tuple[int, int, int], ...]:
        """(nblocks, block_out, block_in) of each block-diagonal factor; their product of permutations is the DFT."""
        return tuple((self.size // radix, radix, radix) for radix in self.radices)

    def __str__(self) -> str:
        if self.kind == "fft":
            return f"(fft {self.size})"
        return f"(monarch {self.size} (radices {' '.join(map(str, self.radices))}))"


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the cost model expects of a step on its device. Estimated, never measured."""

    flop: float = 0.0  # floating-point operations, a multiply-add counts two
    bytes: float = 0.0  # bytes moved between memory (or cache) and the units
    launches: float = 0.0  # library calls or kernel launches
    working_set: float = 0.0  # bytes in use at once
    seconds: float = 0.0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.flop + other.flop,
            self.bytes + other.bytes,
            self.launches + other.launches,
            max(self.working_set, other.working_set),
            self.seconds + other.seconds,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do, with what it should cost."""

    estimate: Estimate


@dataclass(frozen=True, slots=True)
class FilterSpectrum(Step):
    """Transform every channel's filter; done once for a filter, not once a row."""

    transform: Transform

    def __str__(self) -> str:
        return f"(filter-spectrum {self.transform})"


@dataclass(frozen=True, slots=True)
class SpectralConv(Step):
    """Transform, multiply by the filter's spectrum, transform back; gates and skip at the ends.

    `channels` are done at a time, over the whole batch. `fold`: the problem is circular and the transform is longer
    than n, so the tail of the linear result is added onto its head.
    """

    transform: Transform
    channels: int
    fold: bool = False

    def __str__(self) -> str:
        return f"(spectral-conv {self.transform} (channels {self.channels}){' (fold)' if self.fold else ''})"


@dataclass(frozen=True, slots=True)
class FusedConv(Step):
    """One generated kernel that does the whole convolution, run by `programs` programs.

    `dk` is the kernel of the filter's gradient, on the same ring.
    """

    transform: Transform
    spec: FftConvSpec
    dk: FftConvSpec
    programs: int

    @property
    def channels(self) -> int:
        """Channels a program: one."""
        return 1

    @property
    def fold(self) -> bool:
        """Whether a tail is folded onto the head: a wrapped kernel reads the circle periodically instead."""
        return False

    def __str__(self) -> str:
        return f"(fused-conv {self.transform} {self.spec.ring} (programs {self.programs}) {self.spec.name})"


@dataclass(frozen=True, slots=True)
class NativeConv(Step):
    """One generated C++ kernel that does the whole convolution, the filter's transform included, row by row.

    `channels` are done together, where channels are neighbours in memory. `bwd` is the kernel of all gradients, which
    does at most a vector of them. `keep`: spectra of filters that do not change are kept from call to call, few enough
    to stay in cache.
    """

    transform: Transform
    spec: FftConvCppSpec
    bwd: FftConvCppSpec
    channels: int
    fold: bool = False
    keep: bool = True

    def kernels(self, gradients: bool = True) -> tuple[FftConvCppSpec, ...]:
        """Every kernel that calls may load; with `gradients`, those of training too."""
        kept = (replace(self.spec, kept=True), replace(self.spec, part="spectrum")) if self.keep else ()
        return (self.spec, *kept, *((self.bwd,) if gradients else ()))

    def __str__(self) -> str:
        return f"(native-conv {self.transform} (channels {self.channels}){' (fold)' * self.fold} {self.spec.name})"


_STEPS: dict[str, type[Step]] = {kind.__name__: kind for kind in (FilterSpectrum, SpectralConv, FusedConv, NativeConv)}


@dataclass(frozen=True, slots=True)
class Plan:
    """How `solver` does `problem` on a device of architecture `arch`: steps in order, the convolution last.

    `origin` says why this plan and no other; two plans that differ in nothing else are equal.
    """

    problem: Problem
    arch: str
    solver: str
    steps: tuple[Step, ...]
    origin: str = field(default="estimate", compare=False)

    @property
    def estimate(self) -> Estimate:
        """The sum of the steps' estimates."""
        return sum((step.estimate for step in self.steps), Estimate())

    @property
    def conv(self) -> SpectralConv | FusedConv | NativeConv:
        """The last step."""
        last = self.steps[-1]
        if not isinstance(last, SpectralConv | FusedConv | NativeConv):
            raise PlanError(str(self.problem), f"the plan ends in {last}", "end a plan with a convolution")
        return last

    def __str__(self) -> str:
        return f'(plan "{self.problem}" {self.arch} {self.solver} {" ".join(map(str, self.steps))})'

    def explain(self, limits: DeviceLimits | None = None) -> str:
        """The plan as text: sizes, blocks, every cost formula with the numbers put in. `limits` default to the row."""
        from m2gen.planner.explain import explain  # late: it loads sympy

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
            return cls(Problem.parse(data["problem"]), data["arch"], data["solver"], steps, data["origin"])
        except (ValueError, KeyError, TypeError) as error:
            raise PlanError(
                "a plan from JSON", f"not one that to_json wrote ({error!r})", "write it with Plan.to_json"
            ) from error


def _step(data: Mapping[str, Any]) -> Step:
    transform = Transform(**{**data["transform"], "radices": tuple(data["transform"]["radices"])})
    fields = {**data, "estimate": Estimate(**data["estimate"]), "transform": transform}
    if "dk" in data:
        fields |= {name: FftConvSpec(**data[name]) for name in ("spec", "dk")}
    if "bwd" in data:
        specs = {name: {**data[name], "radices": tuple(data[name]["radices"])} for name in ("spec", "bwd")}
        fields |= {name: FftConvCppSpec(**spec) for name, spec in specs.items()}
    return _STEPS[fields.pop("step")](**fields)


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    if seconds >= 100:
        return f"{seconds:.0f} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"

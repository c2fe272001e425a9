"""What a plan is made of, whatever the op: steps that know their cost, their kernels and how they are told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.spec import KernelSpec
from m2gen.planner.problem import Problem

P = TypeVar("P", bound=Problem)


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


class Cost(NamedTuple):
    """A value, or an expression, for each quantity of an `Estimate`."""

    flop: Any = 0
    bytes: Any = 0
    launches: Any = 0
    working_set: Any = 0
    seconds: Any = 0

    def plus(self, other: Cost, count: Any = 1) -> Cost:
        return Cost(
            self.flop + count * other.flop,
            self.bytes + count * other.bytes,
            self.launches + count * other.launches,
            self.working_set + count * other.working_set,
            self.seconds + count * other.seconds,
        )


@dataclass(frozen=True)
class Arithmetic:
    """The functions of a formula beyond + - * /."""

    ceiling: Callable[[Any], Any]
    maximum: Callable[[Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    log2: Callable[[Any], Any]


NUMBERS = Arithmetic(math.ceil, max, min, math.log2)


@dataclass(frozen=True)
class Terms:
    """A step's cost as `explain` prints it: a formula, and the numbers that were put in."""

    numbers: Any  # a NamedTuple, whose fields are the symbols
    whole: Callable[[Any, Arithmetic], Cost]
    stage: Callable[[Any, Arithmetic, Any], Cost] | None = None  # with a radix, summed over those of the transform
    work: tuple[str, Callable[[Any, Arithmetic], Any], str] | None = None  # (symbol, its formula, what is put in)


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel, or one call of a library, of those that a step makes. Estimated, never measured."""

    name: str
    bytes: float  # read from memory and written to it, each number once
    seconds: float
    flop: float = 0.0
    back: bool = False  # of the gradients


class Reluctance(NamedTuple):
    """Where plans are ordered, an estimate counts `factor` times, for a reason."""

    factor: float
    why: str


UNTRIED = "compiled and interpreted, not yet run on a device"  # of kernels
# what becomes of them, by M2GEN_UNTRIED
UNTRIED_ARE = {
    "check": "checked once on its device before its first use",
    "trust": "used without a check, as M2GEN_UNTRIED=trust asks",
    "avoid": "behind all others, as M2GEN_UNTRIED=avoid asks; m2gen tune may choose it",
}


@dataclass(frozen=True, slots=True)
class Step(Generic[P]):
    """One thing to do, with what it should cost."""

    estimate: Estimate

    def terms(self, problem: P, body: Body[P], limits: DeviceLimits) -> Terms | None:
        """Where the estimate comes from; None where no formula is printed. `body` is the plan's."""
        return None


@dataclass(frozen=True, slots=True)
class Body(Step[P]):
    """A plan's last step, which gives the result: it tells the plan from others."""

    legend: ClassVar[str]  # the symbols of the formulas
    notes: ClassVar[str]  # on the figures

    @property
    def choice(self) -> str:
        """What tells it from the other candidates of its problem and solver, in a few words."""
        raise NotImplementedError

    @property
    def style(self) -> str:
        """How it differs from others of its solver, in words that mean the same for a problem of other sizes."""
        raise NotImplementedError

    @property
    def arithmetic(self) -> Hashable:
        """What a result's bits depend on: for problems done together it is that of one alone. None where no two plans
        are to agree."""
        return None

    @property
    def reluctance(self) -> Reluctance | None:
        """Why it stands behind plans that are estimated a little slower; None where it does not."""
        return None

    @property
    def untried(self) -> str | None:
        """Why its kernels are to be checked on a device before their first use there; None where they are not."""
        return None

    @property
    def what(self) -> str:
        """What is done, in a few words."""
        raise NotImplementedError

    @property
    def row(self) -> tuple[str, ...]:
        """The cells of `m2gen plan`'s table, under the titles of its problem's class."""
        raise NotImplementedError

    @property
    def kept_otherwise(self) -> Body[P] | None:
        """The step that keeps from call to call what this one makes anew, or the other way; None without one."""
        return None

    def plainer(self, problem: P, limits: DeviceLimits) -> tuple[Step[P], ...] | None:
        """The steps of a plan that leaves out generated kernels which are not its main one, for where those are wrong
        or not to be used; None without any."""
        return None

    def lines(self, problem: P) -> list[str]:
        """Sizes and blocks, for `explain`."""
        raise NotImplementedError

    def kernels(self, problem: P, gradients: bool = True) -> tuple[KernelSpec, ...]:
        """Every generated kernel that calls may load, with `gradients` those of training too."""
        return ()

    def parts(self, problem: P) -> Mapping[str, KernelSpec]:
        """The generated kernels by what they do, "fwd" the first: what `m2gen show` can print."""
        return {}

    def launches(self, problem: P, limits: DeviceLimits, gradients: bool) -> tuple[Launch, ...]:
        """What a call launches, one after the other; with `gradients` the forward pass as it is where they follow, and
        then all of them, where the body can tell. Else the forward pass is one, by its estimate."""
        of = self.estimate
        return (Launch(self.choice, of.bytes, of.seconds, of.flop),)

    def layout(self, problem: P) -> str:
        """That of the tensors which its kernels are launched on."""
        return problem.layout

    def expected(self, problem: P, limits: DeviceLimits) -> float:
        """The seconds that `limits` let one expect, of a plan that may have been made with others."""
        raise NotImplementedError


def duration(seconds: float) -> str:
    """A time with three digits and its unit."""
    if seconds >= 100:
        return f"{seconds:.0f} s"
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"

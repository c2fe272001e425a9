"""Three ways of multiplying by a Monarch matrix."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import ClassVar

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.blockdiag import BlockdiagSpec
from m2gen.kernels.monarch import MonarchSpec
from m2gen.kernels.monarch_cpp import MonarchCppSpec
from m2gen.kernels.spec import KernelSpec
from m2gen.planner.blockdiag.steps import Product
from m2gen.planner.monarch import cost
from m2gen.planner.monarch.formulas import LEGEND, NOTES, native, staged
from m2gen.planner.monarch.problem import MonarchProblem, Shape, parameters, stage_problems, turned
from m2gen.planner.monarch.run import MonarchRun
from m2gen.planner.step import UNTRIED, Body, Terms


@dataclass(frozen=True, slots=True)
class MonarchStep(Body[MonarchProblem]):
    """The product with these `factors`, the first one first."""

    legend: ClassVar = LEGEND
    notes: ClassVar = NOTES

    factors: tuple[Shape, ...]

    @property
    def choice(self) -> str:
        return ",".join("x".join(map(str, shape)) for shape in self.factors)

    @property
    def style(self) -> str:
        return f"order {len(self.factors)}"

    @property
    def what(self) -> str:
        return f"order {len(self.factors)}"

    @property
    def row(self) -> tuple[str, ...]:
        numbers = parameters(self.factors)
        return str(len(self.factors)), self._shown, f"{numbers}", f"{2 * numbers}"

    @property
    def _shown(self) -> str:
        """Equal neighbours written once."""
        runs = [("{} x {} x {}".format(*shape), len(list(same))) for shape, same in groupby(self.factors)]
        return ", ".join(text if count == 1 else f"{text} times {count}" for text, count in runs)

    def lines(self, problem: MonarchProblem) -> list[str]:
        numbers, dense = parameters(self.factors), problem.n_in * problem.n_out
        return [
            f"order     {len(self.factors)}",
            f"factors   {self._shown}   (nblocks x out x in, the first one first)",
            f"numbers   {numbers}, of a dense matrix's {dense}: one in {dense / numbers:.3g}",
            self._who(),
            *self._use(problem),
        ]

    def _use(self, problem: MonarchProblem) -> list[str]:
        """How to have these factors."""
        if problem.factors:
            return []
        counts, order = [count for count, _, _ in self.factors], len(self.factors)
        nblocks = counts[0] if len(set(counts)) == 1 else counts
        given = ",".join("x".join(map(str, shape)) for shape in self.factors)
        words = f"monarch in={problem.n_in} out={problem.n_out} rows={problem.rows} {problem.dtype} factors={given}"
        return [
            f"layer     MonarchLinear({problem.n_in}, {problem.n_out}, nblocks={nblocks}, order={order})",
            f"to time   m2gen tune {words}",
        ]

    def _who(self) -> str:
        """The line that says what computes."""
        raise NotImplementedError

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        raise NotImplementedError

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StagedMonarch(MonarchStep):
    """A product for each factor, planned as a problem of its own, and permutations that are copies between them:
    `stages`, and `back` for the gradients behind them, both the first factor's first."""

    stages: tuple[Product, ...]
    back: tuple[Product, ...]

    @property
    def arithmetic(self) -> Hashable:
        return "rounded between stages"

    @property
    def untried(self) -> str | None:
        return next((stage.untried for stage in (*self.stages, *self.back) if stage.untried), None)

    def _who(self) -> str:
        return f"stages    {', '.join(stage.choice for stage in self.stages)}; permutations between are copies"

    def kernels(self, problem: MonarchProblem, gradients: bool = True) -> tuple[KernelSpec, ...]:
        # what is behind the products needs no gradients of its own
        ways = [(self.factors, self.stages, gradients)] + [(turned(self.factors), self.back, False)] * gradients
        return tuple(
            dict.fromkeys(
                spec
                for shapes, stages, weights in ways
                for of, stage in zip(stage_problems(problem, shapes), stages, strict=True)
                for spec in stage.kernels(of, weights)
            )
        )

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.staged_values(problem, self.factors, self.stages, limits), staged)

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        return cost.staged_estimate(problem, self.factors, self.stages, limits).seconds

    def __str__(self) -> str:
        return f"(staged-monarch {self.choice})"


@dataclass(frozen=True, slots=True)
class NativeMonarch(MonarchStep):
    """One generated C++ kernel for all stages, and one for all gradients: how each is run over the rows, `of_x` where
    no weight's gradient is wanted, `of_all` where one is."""

    spec: MonarchCppSpec
    forward: MonarchRun
    of_x: MonarchRun
    of_all: MonarchRun

    @property
    def arithmetic(self) -> Hashable:
        return "rounded once"

    @property
    def choice(self) -> str:
        return f"{super(NativeMonarch, self).choice}, {self.forward.lanes} rows at once"

    @property
    def style(self) -> str:
        return f"order {len(self.factors)}, {self.forward.lanes // self.spec.vector} vectors at once"

    def _who(self) -> str:
        return f"kernel    {self.spec.name}, all stages of {self.forward.lanes} rows at once"

    def parts(self, problem: MonarchProblem) -> dict[str, MonarchCppSpec]:
        """The product "fwd", its gradients "bwd", and the "sum" of weights' gradients of parts of the rows."""
        return {
            "fwd": self.spec,
            "bwd": replace(self.spec, part="bwd"),
            "sum": replace(self.spec, part="sum"),
        }

    def kernels(self, problem: MonarchProblem, gradients: bool = True) -> tuple[MonarchCppSpec, ...]:
        return tuple(self.parts(problem).values()) if gradients else (self.spec,)

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        return Terms(cost.native_values(problem, self.factors, self.spec, self.forward, limits), native)

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        return cost.native_estimate(problem, self.factors, self.spec, self.forward, limits).seconds

    def __str__(self) -> str:
        return f"(native-monarch {self.choice} {self.spec.name})"


@dataclass(frozen=True, slots=True)
class FusedMonarch(MonarchStep):
    """Generated Triton kernels: for each factor `stages`, `back` for the gradient behind it, and `dw` for that of its
    weight, over `parts_of_rows` parts that are added in their order; permutations are strides. `whole` does both of two
    factors at once, and `whole_back` the gradient in x; None where their tiles do not fit. Its estimate is that of its
    tiles (planner/monarch/fused.py)."""

    stages: tuple[BlockdiagSpec, ...]
    back: tuple[BlockdiagSpec, ...]
    dw: tuple[BlockdiagSpec, ...]
    parts_of_rows: tuple[int, ...]
    whole: MonarchSpec | None
    whole_back: MonarchSpec | None

    @property
    def untried(self) -> str:
        return UNTRIED

    @property
    def choice(self) -> str:
        return f"{super(FusedMonarch, self).choice}, {'stage by stage' if self.whole is None else self.whole.name}"

    @property
    def style(self) -> str:
        return f"order {len(self.factors)}, {'stage by stage' if self.whole is None else 'one kernel'}"

    def _who(self) -> str:
        if self.whole is not None:
            return f"kernel    {self.whole.name}, both stages"
        return f"kernels   {', '.join(dict.fromkeys(spec.name for spec in self.stages))}; permutations are strides"

    def parts(self, problem: MonarchProblem) -> Mapping[str, BlockdiagSpec | MonarchSpec]:
        """The product "fwd", or that of the first stage, the gradient in x "dx", and that of the first factor "dw"."""
        whole = self.whole_back or self.back[0]
        return {"fwd": self.whole or self.stages[0], "dx": whole, "dw": self.dw[0]}

    def kernels(self, problem: MonarchProblem, gradients: bool = True) -> tuple[BlockdiagSpec | MonarchSpec, ...]:
        forward = self.stages if self.whole is None else (self.whole,)
        if not gradients:
            return tuple(dict.fromkeys(forward))
        of_x = self.back if self.whole_back is None else (self.whole_back,)
        return tuple(dict.fromkeys((*forward, *self.stages[:-1], *of_x, *self.back, *self.dw)))

    def expected(self, problem: MonarchProblem, limits: DeviceLimits) -> float:
        return self.estimate.seconds

    def terms(self, problem: MonarchProblem, body: Body[MonarchProblem], limits: DeviceLimits) -> Terms | None:
        return None

    def __str__(self) -> str:
        return f"(fused-monarch {self.choice})"

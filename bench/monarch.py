"""Monarch matrices on a CPU: all stages in one kernel, beside a product for each factor and the dense product."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F

from bench.timing import interleaved, ratios, rounded, summary
from m2gen.ops.monarch_matmul import monarch_matmul
from m2gen.planner import search
from m2gen.runtime import executor, posed
from m2gen.runtime.binding import kernel_of
from m2gen.runtime.build.limits import live

ROWS = (1, 64, 1024, 8192)
SIZES = {  # n: (nblocks, block_out, block_in) of every factor, and the order
    "256": ((16, 16, 16), 2),
    "1024": ((32, 32, 32), 2),
    "4096": ((64, 64, 64), 2),
    "4096 order 3": ((256, 16, 16), 3),
    "768 in 4 blocks": ((4, 192, 192), 2),
}
Calls = dict[str, Callable[[], Any]]


def forward(rows: int, shape: tuple[int, int, int], order: int) -> Calls:
    x, factors = _operands(rows, shape, order)
    dense = torch.randn(x.shape[1], x.shape[1])
    return {
        "chain": _chained(lambda: monarch_matmul(x, factors)),
        "dense": lambda: F.linear(x, dense),
        "m2gen": lambda: monarch_matmul(x, factors),
    }


def both(rows: int, shape: tuple[int, int, int], order: int) -> Calls:
    """Forward, and backward with all gradients."""
    x, factors = _operands(rows, shape, order)
    dense, dy = torch.randn(x.shape[1], x.shape[1]), torch.randn_like(x)
    leaves = [t.clone().requires_grad_() for t in (x, *factors, dense)]

    def ours() -> Any:
        return torch.autograd.grad(monarch_matmul(leaves[0], leaves[1:-1]), leaves[:-1], dy)

    return {
        "chain": _chained(ours),
        "dense": lambda: torch.autograd.grad(F.linear(leaves[0], leaves[-1]), (leaves[0], leaves[-1]), dy),
        "m2gen": ours,
    }


def _chained(call: Callable[[], Any]) -> Callable[[], Any]:
    """The operator as it is where there are no kernels for whole Monarchs."""

    def staged(x: torch.Tensor, factors: Any) -> Any:
        shapes = tuple(tuple(factor.shape) for factor in factors)
        problem = posed.monarch_problem(shapes, x.numel() // x.shape[-1], x.dtype)
        plan = search.rank(problem, live(x.device)).best("staged")
        return None if plan is None else kernel_of(plan)

    def chained() -> Any:
        planned = executor._of_monarch
        executor._of_monarch = staged
        try:
            return call()
        finally:
            executor._of_monarch = planned

    return chained


def _operands(rows: int, shape: tuple[int, int, int], order: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.randn(rows, shape[0] * shape[2]), [torch.randn(shape) / shape[2] ** 0.5 for _ in range(order)]


def results(rounds: int, only: str) -> list[dict[str, Any]]:
    found = []
    kinds = {"forward": forward, "forward and backward": both}
    for (name, (shape, order)), rows, (what, calls) in product(SIZES.items(), ROWS, kinds.items()):
        if only not in f"monarch {name} {what}":
            continue
        times = interleaved(calls(rows, shape, order), rounds)
        ms = {who: summary(values) for who, values in times.items()}
        gains = {who: ratios(times["chain"], times[who]) for who in ("dense", "m2gen")}
        # a product forward; dw and dx of every stage, and all stages but the last once more
        products = order if what == "forward" else order + 2 * order + order - 1
        rate = 2 * rows * products * shape[0] * shape[1] * shape[2] / ms["m2gen"]["median"] / 1e6
        row = {"group": f"monarch {what}", "problem": f"monarch {name}, {rows} rows", "ms": ms, "ratio": gains}
        found.append(row | {"gflops": rate, "times": rounded(times)})
        _tell(f"monarch {name}, {rows} rows", what, ms, [gains["m2gen"], ratios(times["dense"], times["m2gen"])], rate)
    return found


def _tell(problem: str, what: str, ms: dict[str, Any], gains: list[dict[str, float]], rate: float) -> None:
    medians = ", ".join(f"{who} {one['median']:.3f}" for who, one in ms.items())
    by_chain, by_dense = (f"{one['median']:.1f} ({one['q1']:.1f} .. {one['q3']:.1f})" for one in gains)
    print(f"{problem:28} {what:20} ms: {medians}: chain {by_chain}, dense {by_dense}; {rate:.0f} GFLOP/s", flush=True)

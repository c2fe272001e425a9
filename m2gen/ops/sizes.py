"""What the planner says of a layer's sizes, for the device at hand."""

from __future__ import annotations

import math

from m2gen.errors import PlanError
from m2gen.planner.factor import divisors
from m2gen.planner.monarch.steps import MonarchStep
from m2gen.runtime.planning import ranking

_ROWS = 4096  # of float32 that layers are planned for


def planned_factors(n_in: int, n_out: int) -> list[tuple[int, int, int]]:
    """The factors of the plan that is estimated fastest."""
    first = ranking(f"monarch in={n_in} out={n_out} rows={_ROWS}").plans[0].body
    if not isinstance(first, MonarchStep):
        raise PlanError(f"a Monarch of {n_out} x {n_in}", f"its plan is {first}", "give an order and nblocks")
    return list(first.factors)


def fewest_blocks(n_in: int, n_out: int) -> int:
    """The least number of blocks that is estimated to cost at most a tenth more than the fastest."""
    seconds = {
        blocks: ranking(f"blockdiag in={n_in} out={n_out} blocks={blocks} rows={_ROWS}").plans[0].estimate.seconds
        for blocks in divisors(math.gcd(n_in, n_out))
    }
    return min(blocks for blocks, one in seconds.items() if one <= 1.1 * min(seconds.values()))

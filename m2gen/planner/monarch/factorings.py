"""The Monarch factorings of a size: every order, equal and unequal blocks.

Between the factors the vector has m = min(n_in, n_out) entries. Radices r_1 .. r_p with product m give factor i
m / r_i blocks: of r_i x r_i, but that the first takes all of n_in and the last gives all of n_out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import islice

from m2gen.errors import ProblemError
from m2gen.planner.factor import divisors, max_order
from m2gen.planner.monarch.problem import MonarchProblem, Shape, inner_widths, parameters

_MOST = 64  # of an order: sizes with many divisors have thousands


def factorings(problem: MonarchProblem) -> Iterator[tuple[Shape, ...]]:
    """Those that meet the problem's constraints; its own factors alone, where they are given. Order 1 is dense.

    Of the orders of unequal radices the rising and the falling one: what a product costs depends little on it.
    """
    if problem.factors:
        yield problem.factors
        return
    small = min(problem.n_in, problem.n_out)
    orders = [problem.order] if problem.order else range(1, max_order(small) + 1)
    for order in orders:
        for radices in _best_splits(small, order):
            for one in dict.fromkeys((radices, radices[::-1])):
                shapes = _shapes(problem, one)
                if shapes is not None and _allowed(problem, shapes):
                    yield shapes


@lru_cache(maxsize=4096)
def _best_splits(n: int, order: int) -> tuple[tuple[int, ...], ...]:
    """Those of `_splits`, the largest radix first; of very many those of the least largest radices."""
    return tuple(sorted(islice(_splits(n, order, n), _MOST), reverse=True))


def _splits(n: int, order: int, largest: int) -> Iterator[tuple[int, ...]]:
    """The ways of writing n as a product of `order` numbers from 2 on, non-increasing, none above `largest`."""
    if order == 1:
        if n <= largest:
            yield (n,)
        return
    for first in divisors(n):
        if first > largest or n // first < 2 ** (order - 1):
            return
        if first > 1 and first**order >= n:
            for rest in _splits(n // first, order - 1, first):
                yield (first, *rest)


def _shapes(problem: MonarchProblem, radices: tuple[int, ...]) -> tuple[Shape, ...] | None:
    """The factors; None where blocks do not divide the first size or the last, or do not interleave."""
    small, order = min(problem.n_in, problem.n_out), len(radices)
    sizes = [problem.n_in, *[small] * (order - 1), problem.n_out]
    counts = [small // radix for radix in radices] if order > 1 else [1]
    if sizes[0] % counts[0] or sizes[-1] % counts[-1]:
        return None
    shapes = tuple((c, into // c, size // c) for c, size, into in zip(counts, sizes, sizes[1:], strict=False))
    try:
        inner_widths(shapes)
    except ProblemError:
        return None
    return shapes


def _allowed(problem: MonarchProblem, shapes: tuple[Shape, ...]) -> bool:
    if problem.params and parameters(shapes) > problem.params:
        return False
    return problem.block is None or all(shape[1:] == problem.block for shape in shapes)


def why_none(problem: MonarchProblem) -> str:
    """Why there is no factoring."""
    small = min(problem.n_in, problem.n_out)
    most = max_order(small)
    if problem.order > most:
        return f"{small} has {most} prime factors, so no Monarch of order {problem.order}"
    asked = [f"order={problem.order}"] * bool(problem.order)
    asked += [f"blocks={problem.block[0]}x{problem.block[1]}"] if problem.block else []
    asked += [f"params<={problem.params}"] * bool(problem.params)
    if problem.params:
        open_ = replace(problem, params=0)
        least = min((parameters(shapes) for shapes in factorings(open_)), default=0)
        if least:
            return f"the least such factors have {least} numbers, more than {problem.params}"
    between = f", with {small} numbers between them" if problem.order != 1 else ""
    return f"no factors of {problem.n_out} x {problem.n_in} meet {', '.join(asked) or 'these sizes'}{between}"

"""How a size splits: ordered factorisations, balanced radices, padded sizes. Whole numbers only, any n >= 1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod


@lru_cache(maxsize=4096)
def prime_factors(n: int) -> tuple[int, ...]:
    """The prime factors of `n` with multiplicity, ascending; empty for 1."""
    if n < 1:
        raise ValueError(f"prime_factors: n is at least 1, not {n}")
    found: list[int] = []
    divisor = 2
    while divisor * divisor <= n:
        while n % divisor == 0:
            found.append(divisor)
            n //= divisor
        divisor += 1 if divisor == 2 else 2
    return (*found, n) if n > 1 else tuple(found)


def largest_prime(n: int) -> int:
    """The largest prime factor of `n`, 1 for n = 1."""
    return max(prime_factors(n), default=1)


def max_order(n: int) -> int:
    """The longest factorisation into integers >= 2: the number of prime factors with multiplicity, 1 for n = 1."""
    return max(1, len(prime_factors(n)))


@lru_cache(maxsize=65536)
def divisors(n: int) -> tuple[int, ...]:
    """All divisors of `n`, ascending."""
    found = {1}
    for prime in prime_factors(n):
        found |= {prime * divisor for divisor in found}
    return tuple(sorted(found))


def ordered_factorisations(n: int, order: int) -> Iterator[tuple[int, ...]]:
    """Every tuple of `order` integers >= 2 with product `n`, in lexicographic order; order 1 gives `(n,)`, 1 too."""
    if order == 1:
        yield (n,)
    elif order > 1:
        for first in divisors(n):
            if first > 1 and max_order(n // first) >= order - 1 and n // first > 1:
                for rest in ordered_factorisations(n // first, order - 1):
                    yield (first, *rest)


@lru_cache(maxsize=4096)
def balanced(n: int, order: int) -> tuple[int, ...]:
    """The factorisation of `n` into `order` radices with the least sum, non-increasing; of equals, the flattest.

    The sum of the radices is what a Monarch transform costs (cost.py), hence "balanced". Multisets are searched in
    non-increasing order with a bound (the sum of m radices of product q is at least m q^(1/m)), which visits a few
    hundred nodes where the compositions of 2^23 number millions.
    """
    if not 1 <= order <= max_order(n):
        raise ValueError(f"balanced: n={n} has orders 1 to {max_order(n)}, not {order}")
    return _least_sum(n, order, n)


@lru_cache(maxsize=65536)
def _least_sum(n: int, order: int, largest: int) -> tuple[int, ...]:
    """The least-sum radices, none above `largest`; empty where there are none. Ties go to the least first radix."""
    if order == 1:
        return (n,) if n <= largest else ()
    best: tuple[int, ...] = ()
    least_first = _ceil_root(n, order)  # the first radix is the largest, so at least the order-th root
    for first in divisors(n):
        if not max(2, least_first) <= first <= largest or len(prime_factors(n // first)) < order - 1:
            continue
        if best and first + _least_possible(n // first, order - 1) >= sum(best):
            break  # the bound grows with `first` from the root on
        rest = _least_sum(n // first, order - 1, first)
        if rest and (not best or first + sum(rest) < sum(best)):
            best = (first, *rest)
    return best


def _least_possible(n: int, order: int) -> float:
    """A lower bound of the sum: m equal real radices (arithmetic and geometric means), a hair less for rounding."""
    root: float = float(n) ** (1.0 / order)
    return order * root * (1.0 - 1e-12)


def _ceil_root(n: int, order: int) -> int:
    """The least r with r**order >= n."""
    root = max(1, int(float(n) ** (1.0 / order)) - 1)
    while root**order < n:
        root += 1
    return root


@lru_cache(maxsize=4096)
def padded_sizes(least: int) -> tuple[int, ...]:
    """Transform sizes worth trying, each >= `least`, ascending.

    `least` itself, the next power of two, 3 and 5 times a power of two, the next 7-smooth size, the next even one.
    """
    power = _next_power(least)
    return tuple(
        sorted(
            {
                least,
                power,
                3 * _next_power(-(-least // 3)),
                5 * _next_power(-(-least // 5)),
                next_smooth(least),
                2 * next_smooth(-(-least // 2)),
            }
        )
    )


def _next_power(least: int) -> int:
    """The least power of two >= `least`."""
    return 1 << max(0, least - 1).bit_length()


@lru_cache(maxsize=4096)
def next_smooth(least: int) -> int:
    """The least number >= `least` whose prime factors are at most 7."""
    best = _next_power(least)
    for sevens in _powers(7, best):
        for fives in _powers(5, best // sevens):
            for threes in _powers(3, best // (sevens * fives)):
                odd = prod((sevens, fives, threes))
                best = min(best, odd * _next_power(-(-least // odd)))
    return best


def _powers(base: int, limit: int) -> Iterator[int]:
    power = 1
    while power <= limit:
        yield power
        power *= base

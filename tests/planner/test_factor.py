from __future__ import annotations

from itertools import product
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m2gen.planner import factor


def compositions(n, order):
    """All tuples by brute force."""
    if order == 1:
        return {(n,)}
    return {radices for radices in product(range(2, n + 1), repeat=order) if prod(radices) == n}


@pytest.mark.parametrize("n", range(1, 37))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ordered_factorisations_are_complete(n, order):
    found = list(factor.ordered_factorisations(n, order))
    assert len(found) == len(set(found))
    assert set(found) == compositions(n, order)


@given(st.integers(1, 100_000))
def test_prime_factors(n):
    primes = factor.prime_factors(n)
    assert prod(primes) == n
    assert all(all(p % d for d in range(2, int(p**0.5) + 1)) for p in set(primes))
    assert factor.max_order(n) == max(1, len(primes))
    assert factor.largest_prime(n) == max(primes, default=1)
    assert not list(factor.ordered_factorisations(n, factor.max_order(n) + 1))


def least_sum(n, order, least=2):
    """The least sum of `order` radices with product n, by trying every divisor."""
    if order == 1:
        return n
    sums = [
        first + least_sum(n // first, order - 1, first)
        for first in range(least, round(n ** (1 / order)) + 1)
        if n % first == 0
    ]
    return min(sums, default=float("inf"))


def test_balanced_is_optimal_for_every_small_size():
    for n in range(1, 2001):
        for order in range(1, factor.max_order(n) + 1):
            radices = factor.balanced(n, order)
            assert len(radices) == order
            assert prod(radices) == n
            assert list(radices) == sorted(radices, reverse=True)
            assert sum(radices) == least_sum(n, order), (n, order)


def test_balanced_of_large_sizes():
    assert factor.balanced(2**23, 1) == (2**23,)
    assert factor.balanced(2**23, 2) == (4096, 2048)
    assert factor.balanced(2**23, 23) == (2,) * 23
    assert factor.balanced(8191, 1) == (8191,)
    assert factor.balanced(6000, 3) == (20, 20, 15)


@pytest.mark.parametrize(("n", "order"), [(8191, 2), (8, 4), (8, 0), (1, 2)])
def test_balanced_refuses_orders_that_do_not_exist(n, order):
    with pytest.raises(ValueError, match="orders 1 to"):
        factor.balanced(n, order)


def smooth(n):
    for prime in (2, 3, 5, 7):
        while n % prime == 0:
            n //= prime
    return n == 1


@given(st.integers(1, 2**24))
def test_padded_sizes(least):
    sizes = factor.padded_sizes(least)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] == least
    assert 1 <= len(sizes) <= 6
    assert max(sizes) <= max(5, 2 * least)
    for base in (1, 3, 5):
        assert any(size % base == 0 and (size // base).bit_count() == 1 for size in sizes)
    assert any(smooth(size) and size % 2 == 0 for size in sizes)


@pytest.mark.parametrize("least", [1, 2, 3, 11, 13, 17, 121, 127, 481, 1001, 1999])
def test_next_smooth_is_the_next(least):
    found = factor.next_smooth(least)
    assert smooth(found)
    assert not any(smooth(size) for size in range(least, found))


def test_factors_of_nothing():
    with pytest.raises(ValueError, match="at least 1"):
        factor.prime_factors(0)

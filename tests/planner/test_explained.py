"""What a plan's text says of memory, for every op."""

from __future__ import annotations

import pytest

from m2gen.device.limits import target
from m2gen.planner.problems import parse
from m2gen.planner.search import plan

H100 = target("sm90")
FITS = {  # and with which size they do not
    "fftconv n=8192 h=768 b=64 bf16 causal gated add": ("b=64", "b=4096"),
    "blockdiag in=4096 out=4096 blocks=4 rows=8192 bf16": ("rows=8192", "rows=16777216"),
    "monarch in=4096 out=4096 rows=8192 fp32": ("rows=8192", "rows=16777216"),
    "shortconv n=4096 h=768 b=8 bf16 gated": ("b=8", "b=65536"),
    "gate n=3072 rows=4096 gelu": ("rows=4096", "rows=16777216"),
    "turn n=4096 h=768 b=8 bf16": ("b=8", "b=65536"),
}


def explained(problem: str) -> list[str]:
    return plan(parse(problem), H100).explain(H100).splitlines()


@pytest.mark.parametrize("problem", FITS)
def test_what_does_not_fit_the_device_is_told_with_both_figures(problem: str) -> None:
    (line,) = (one for one in explained(problem.replace(*FITS[problem])) if one.startswith("memory "))
    assert "it does not fit" in line and " GB, and the device has 80 GB" in line
    assert not any(line.startswith("memory ") for line in explained(problem))


def test_a_filter_counts() -> None:
    """Of one row of a long convolution: u, its result and a filter of 16 GiB each, and two of them both ways."""
    found = explained("fftconv n=1048576 h=8192 b=1 bf16 bidirectional")
    assert not any(line.startswith("memory ") for line in found)
    (line,) = (line for line in explained("fftconv n=1048576 h=16384 b=1 bf16 bidirectional") if line[:7] == "memory ")
    assert f"take {4 * 2 * 2**34 / 1e9:.4g} GB" in line


def test_the_floor_says_its_bandwidth() -> None:
    (floor,) = (line for line in explained(next(iter(FITS))) if line.startswith("floor"))
    assert " at 3350 GB/s, " in floor

"""The transpose of a square of vectors in registers, as every C++ kernel that turns its data has it."""

from __future__ import annotations


def levels(vector: int) -> list[tuple[int, str, str]]:
    """At each step s, vectors i and i + s become these lanes of both; after the last one the square is transposed."""
    lanes = range(vector)
    found = []
    for step in (2**i for i in range(vector.bit_length() - 1)):
        low = [j if not j & step else vector + j - step for j in lanes]
        high = [j + step if not j & step else vector + j for j in lanes]
        found.append((step, ", ".join(map(str, low)), ", ".join(map(str, high))))
    return found

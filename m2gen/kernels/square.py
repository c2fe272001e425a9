"""The transpose of a square of vectors in registers, as every C++ kernel that turns its data has it."""

from __future__ import annotations

Level = list[tuple[int, int, str]]


def levels(vector: int, real_bytes: int) -> list[Level]:
    """Two-operand shuffles: at each level every vector becomes `lanes` of the vectors (a, b) there were.

    Inside parts of 128 bits numbers of four bytes are interleaved twice, which is one instruction each on x86; what is
    left are exchanges of a vector's parts with those of its neighbour `step` vectors on.
    """
    found, step = [], 1
    if real_bytes == 4:
        parts, step = range(0, vector, 4), 4
        low = [at + lane for part in parts for at in (part, part + 1) for lane in (0, vector)]
        found.append([(i & ~1, i | 1, _text(low, 2 * (i & 1))) for i in range(vector)])
        low = [at + lane for part in parts for lane in (0, vector) for at in (part, part + 1)]
        first = [i // 4 * 4 + i % 4 // 2 for i in range(vector)]
        found.append([(a, a + 2, _text(low, 2 * (i & 1))) for i, a in enumerate(first)])
    while step < vector:
        low = [j if not j & step else vector + j - step for j in range(vector)]
        found.append([(i & ~step, i | step, _text(low, i & step)) for i in range(vector)])
        step *= 2
    return found


def _text(lanes: list[int], shift: int) -> str:
    return ", ".join(str(lane + shift) for lane in lanes)

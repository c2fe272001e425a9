"""What compiled code says of itself: registers, spills, and the instructions of a tile."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from typing import NamedTuple


class Usage(NamedTuple):
    """Counts for one thread, and for one warp in the case of instructions."""

    registers: int
    stack_bytes: int  # what was spilled, and arrays indexed at run time (there are none)
    spills: int  # instructions that write or read spilled registers
    instructions: int  # issued for each tile


class Code(NamedTuple):
    """Instructions in order, and the loops among them as (first, last)."""

    instructions: list[str]
    loops: list[tuple[int, int]]


_SASS = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
_SASS_BRANCH = re.compile(r"\bBRA\S*\s+(?:!?U?P\d+,\s*)*0x([0-9a-f]+)")
_AMD_BRANCH = re.compile(r"s_c?branch\S*\s+(\.\S+)")


def cuda(cubin: bytes, trips: Sequence[int]) -> tuple[Usage, str]:
    """Usage and SASS of a cubin whose tile has loops that turn `trips` times."""
    resources = cuobjdump(cubin, "--dump-resource-usage")
    counts = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", resources)}
    sass = cuobjdump(cubin, "-sass")
    code = _sass(sass)
    spills = sum(bool(re.search(r"\b(STL|LDL)\b", one)) for one in code.instructions)
    stack = counts["STACK"] + counts["LOCAL"]
    return Usage(counts["REG"], stack, spills, issued(code, trips)), sass


def amd(assembly: str, trips: Sequence[int]) -> Usage:
    """Usage of a kernel in AMD's assembly; vector registers count the accumulators'."""
    counts = {k: int(v) for k, v in re.findall(r"\.(vgpr_count|private_segment_fixed_size):\s*(\d+)", assembly)}
    code = _amdgcn(assembly)
    spills = sum(one.startswith(("scratch_store", "scratch_load")) for one in code.instructions)
    return Usage(counts["vgpr_count"], counts["private_segment_fixed_size"], spills, issued(code, trips))


def cuobjdump(cubin: bytes, option: str) -> str:
    """The dump of a cubin by the tool in Triton's wheel."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def issued(code: Code, trips: Sequence[int]) -> int:
    """Instructions for one tile: those of the loop over tiles, with the loops inside it `trips` times.

    The innermost loops are those passes over a tile, in their order; where the compiler unrolled some, the first and
    the last, which are the shortest, are taken to be gone. Without `trips` the loop over tiles is innermost itself.
    """
    outer = {loop for loop in code.loops for other in code.loops if loop != other and _contains(loop, other)}
    inner = sorted(set(code.loops) - outer)
    if not trips or not inner:
        return max((last - first + 1 for first, last in code.loops), default=len(code.instructions))
    around = [loop for loop in outer if all(_contains(loop, one) for one in inner)]
    first, last = min(around, key=lambda loop: loop[1] - loop[0], default=(0, len(code.instructions) - 1))
    turns = list(trips) if len(inner) >= len(trips) else [max(trips)] * len(inner)
    return last - first + 1 + sum((n - 1) * (end - at + 1) for n, (at, end) in zip(turns, inner, strict=False))


def _contains(outer: tuple[int, int], inner: tuple[int, int]) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _sass(text: str) -> Code:
    found = [(int(at, 16), what) for at, what in _SASS.findall(text)]
    place = {at: n for n, (at, _) in enumerate(found)}
    branches = [(n, match[1]) for n, (_, what) in enumerate(found) if (match := _SASS_BRANCH.search(what))]
    targets = [(place.get(int(to, 16), n), n) for n, to in branches]
    return Code([what for _, what in found], [(to, at) for to, at in targets if to < at])


def _amdgcn(text: str) -> Code:
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        label = re.match(r"(\.L\S+):", line)
        if label:
            labels[label[1]] = len(instructions)
        elif re.match(r"\t[a-z]\w+", line):
            branch = _AMD_BRANCH.search(line)
            if branch and branch[1] in labels:
                loops.append((labels[branch[1]], len(instructions)))
            instructions.append(line.strip())
    return Code(instructions, _products(instructions, loops))


def _products(instructions: list[str], loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The loops with matrix products in them, each header's longest: branches back from blocks that the compiler moved
    behind the end look like loops too."""
    longest: dict[int, int] = {}
    for first, last in loops:
        if any("mfma" in one for one in instructions[first:last]):
            longest[first] = max(last, longest.get(first, 0))
    found: list[tuple[int, int]] = []
    for loop in sorted(longest.items()):
        if all(_contains(other, loop) or other[1] < loop[0] for other in found):
            found.append(loop)
    return found

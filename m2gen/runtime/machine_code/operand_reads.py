"""Whether a Hopper kernel's matrix instructions read the shared memory that they should.

A wgmma takes operands in shared memory by descriptors: a start, two strides and a swizzle. Triton writes them down in
PTX as sums of constants; the assembler keeps them in registers. Two things are held here: what PTX asks for lies within
the block's shared memory, whole rows of the swizzle counted, and the machine code asks for the same. Two warps of each
group of four are looked at: descriptors differ from group to group only, and what is not one and the same for the
group's first two is not a descriptor.

ptxas 12.8 (in Triton 3.6 and 3.7) breaks the second: it kept a descriptor's start in a register that it had
overwritten before the descriptor's last use, so that a wgmma read where a number of the data pointed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from m2gen.runtime.machine_code import dataflow, ptx, sass

BASE = 1024  # where a block's own shared memory begins on Hopper; what is before belongs to the driver
_WIDTH = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a swizzled row, by the descriptor's mode
Descriptors = tuple[frozenset[int] | None, ...]  # of A, where it lies in shared memory, and of B


class Product(NamedTuple):
    """One matrix instruction."""

    columns: int
    bytes_each: int
    turned: tuple[bool, ...]  # whether rows of the operand lie along its rows or columns, not along the sum
    descriptors: Descriptors


def misread(assembly: str, code: str, shared_bytes: int, warps: int) -> str | None:
    """Why a kernel must not run: PTX, SASS, the bytes of shared memory and warps of a block. None where each product
    reads what it should; so also for kernels without wgmma."""
    if "wgmma.mma_async" not in assembly:
        return None
    source, machine = ptx.parse(assembly), sass.parse(code)
    for warp in (warp for warp in range(warps) if warp % 4 < 2):
        asked = _asked(source, 32 * warp)
        if asked is None:
            return "its PTX cannot be followed"
        for product in asked:
            if why := _outside(product, shared_bytes):
                return f"warp {warp}: {why}"
        done = _done(machine, 32 * warp)
        if done is None:
            return "its machine code cannot be followed"
        if why := _unlike([product.descriptors for product in asked], done):
            return f"warp {warp}: {why}"
    return None


def _asked(program: list[dataflow.Instruction], thread: int) -> list[Product] | None:
    machine, found = ptx.Ptx(thread, BASE), []

    def see(n: int, state: dataflow.State) -> None:
        found.append(_product(program[n], machine, state))

    wanted = partial(_is, "wgmma.mma_async")
    return found if dataflow.visit(program, machine, wanted, see) else None


def _product(one: dataflow.Instruction, machine: ptx.Ptx, state: dataflow.State) -> Product:
    _, first, second, *rest = one.operands
    columns, depth = map(int, re.findall(r"m64n(\d+)k(\d+)", one.op)[0])
    flags = [flag != "0" for flag in rest[3:]]  # after the scale of the sum and the signs of A and B
    bytes_each = 32 // depth
    operands = [second] if first.startswith("{") else [first, second]
    turned = (*flags, *[False] * 2)[: len(operands)] if flags else (False,) * len(operands)
    return Product(columns, bytes_each, turned, tuple(machine.values(x, state) for x in operands))


def _done(program: list[dataflow.Instruction], thread: int) -> list[Descriptors] | None:
    machine, found = sass.Sass(thread, BASE), []

    def see(n: int, state: dataflow.State) -> None:
        found.append(tuple(_descriptors(program[n], machine, state)))

    return found if dataflow.visit(program, machine, partial(_is, "HGMMA"), see) else None


def _is(op: str, one: dataflow.Instruction) -> bool:
    return one.op.startswith(op)


def _descriptors(
    one: dataflow.Instruction, machine: sass.Sass, state: dataflow.State
) -> Iterator[frozenset[int] | None]:
    for n, operand in enumerate(one.operands[1:3]):
        if place := re.match(r"gdesc\[(UR\d+)\]", operand):
            if n == 0:
                yield machine.pair(place[1], state)
            yield machine.pair(sass.after(place[1], 2), state)
            return


def _unlike(asked: list[Descriptors], done: list[Descriptors]) -> str | None:
    """How the machine code's products differ from PTX's."""
    for n, descriptors in enumerate(done):
        if None in descriptors or not descriptors:
            return f"product {n} of the machine code reads where data or an unknown register points"
        if descriptors not in asked:
            where = ", ".join(_starts(one) for one in descriptors)
            return f"product {n} of the machine code reads from {where}, which PTX nowhere asks for"
    if missing := [one for one in asked if one not in done]:
        return f"the machine code lacks {len(missing)} products of PTX"
    return None


def _starts(values: frozenset[int] | None) -> str:
    return "anywhere" if values is None else " or ".join(str((one & 0x3FFF) * 16 - BASE) for one in sorted(values))


def _outside(product: Product, shared_bytes: int) -> str | None:
    """Whether an operand ends behind the block's shared memory."""
    rows = (64, product.columns)[-len(product.descriptors) :]
    for values, count, turned in zip(product.descriptors, rows, product.turned, strict=True):
        if values is None:
            return "PTX has a descriptor that cannot be followed"
        for one in values:
            end = _end(one, count, product.bytes_each, turned) - BASE
            start = (one & 0x3FFF) * 16 - BASE
            if start < 0 or end > shared_bytes:
                return f"PTX asks for bytes {start} to {end} of {shared_bytes}"
    return None


def _end(descriptor: int, rows: int, bytes_each: int, turned: bool) -> int:
    """The byte behind an operand of `rows` rows and 32 bytes of each, in whole rows of the swizzle."""
    start, leading, stride = (((descriptor >> at) & 0x3FFF) * 16 for at in (0, 16, 32))
    width = _WIDTH[descriptor >> 62]
    start -= start % width
    if not turned:  # rows of the operand lie one below another, eight to a group
        more = leading if width == 16 else 0
        return start + (rows // 8 - 1) * stride + more + 8 * width
    along = max(1, rows * bytes_each // width)  # blocks of `width` bytes beside one another
    groups = 32 // bytes_each // 8  # of eight steps of the sum
    if width == 16:
        leading, stride = stride, leading
    return start + (along - 1) * leading + (groups - 1) * stride + 8 * width

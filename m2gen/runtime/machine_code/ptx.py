"""PTX as a program whose registers can be followed: enough of it for addresses of shared memory."""

from __future__ import annotations

import re
from collections.abc import Callable

from m2gen.runtime.machine_code.dataflow import (
    Condition,
    Instruction,
    Known,
    Machine,
    State,
    chosen,
    combine,
    put,
    signed,
)

_LINE = re.compile(r"^\s*(?:\{\s*)?(?:(@!?%p\d+)\s+)?([a-z][\w.:]*)\s*(.*?);")
_LABEL = re.compile(r"^\s*(\$\w+):")
_REGISTER = re.compile(r"%[a-z]+\d+")
_NO_RESULT = ("st.", "bra", "bar.", "red.", "ret", "exit", "fence", "wgmma.fence", "wgmma.commit", "wgmma.wait", "cp.")
COMPARE: dict[str, Callable[[int, int], bool]] = {
    "gt": lambda x, y: x > y,
    "lt": lambda x, y: x < y,
    "ge": lambda x, y: x >= y,
    "le": lambda x, y: x <= y,
    "ne": lambda x, y: x != y,
    "eq": lambda x, y: x == y,
}
_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "shl": lambda x, n: x << min(n, 64),
}


def split(text: str) -> tuple[str, ...]:
    """Operands between commas that stand in no bracket."""
    return tuple(part.strip() for part in re.split(r",(?![^{\[(]*[}\])])", text) if part.strip())


def parse(text: str) -> list[Instruction]:
    """The instructions of a kernel; a label stands with the instruction after it."""
    program: list[Instruction] = []
    labels: list[str] = []
    for line in text.splitlines():
        if named := _LABEL.match(line):
            labels.append(named[1])
        elif (found := _LINE.match(line)) and not found[2].startswith(("mov.pred", "//")):
            guard, op, rest = found.groups()
            program += [Instruction(label, "", "nop", ()) for label in labels[:-1]]  # each label a place of its own
            program.append(Instruction(labels[-1] if labels else "", guard or "", op, split(rest)))
            labels = []
    return program


class Ptx(Machine):
    """One thread's view; shared memory begins at byte `shared`."""

    def __init__(self, thread: int, shared: int) -> None:
        self.special = {"%tid.x": thread, "global_smem": shared}

    def writes(self, one: Instruction) -> list[str]:
        if one.op.startswith(_NO_RESULT) or not one.operands:
            return []
        return _REGISTER.findall(one.operands[0])

    def reads(self, one: Instruction) -> list[str]:
        skipped = 0 if one.op.startswith(_NO_RESULT) else 1
        return _REGISTER.findall(" ".join((one.guard, *one.operands[skipped:], one.operands[0] if one.guard else "")))

    def jump(self, one: Instruction) -> str | None:
        return one.operands[0] if one.op.startswith("bra") else None

    def ends(self, one: Instruction) -> bool:
        return one.op.startswith(("bra", "ret", "exit")) and not one.guard

    def execute(self, one: Instruction, state: State, name: object) -> None:
        if one.op.startswith(_NO_RESULT) or one.op == "nop" or not one.operands:
            return
        kind, *suffixes = one.op.split(".")
        bits = 64 if suffixes and suffixes[-1].endswith("64") else 32
        target = one.operands[0]
        if kind == "setp" and len(one.operands) == 3:
            self._compare(one, suffixes, bits, state)
            return
        values = self._result(kind, suffixes, one, state, bits) if re.fullmatch(r"%\w+(\|%p\d+)?", target) else None
        for register in _REGISTER.findall(target):
            old = state.get(register)
            put(state, register, None if register.startswith("%p") else values, name)
            if one.guard:
                new = state.pop(register, None)
                if isinstance(new, Known) and isinstance(old, Known):
                    put(state, register, new.values | old.values, name)

    def values(self, operand: str, state: State, bits: int = 64) -> frozenset[int] | None:
        """What an operand may be."""
        if operand in self.special:
            return frozenset([self.special[operand]])
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)", operand):
            return frozenset([int(operand, 0) & (2**bits - 1)])
        held = state.get(operand)
        return held.values if isinstance(held, Known) else None

    def _held(self, operand: str, state: State, bits: int) -> Known | None:
        values, held = self.values(operand, state, bits), state.get(operand)
        return held if isinstance(held, Known) else None if values is None else Known(values)

    def _result(
        self, kind: str, suffixes: list[str], one: Instruction, state: State, bits: int
    ) -> frozenset[int] | None:
        inputs = one.operands[1:]
        known = [self.values(operand, state, bits) for operand in inputs]
        if kind in _BINARY and len(known) == 2:
            return combine(_BINARY[kind], *known, bits=bits)
        if kind == "shr" and len(known) == 2:
            arithmetic = suffixes[-1].startswith("s")
            return combine(lambda x, n: (signed(x, bits) if arithmetic else x) >> n, *known, bits=bits)
        if kind in ("mov", "cvta"):
            return known[0]
        if kind == "cvt":
            wide = suffixes[-1].startswith("s") and bits == 32 and "64" in suffixes[-2]
            return combine(lambda x: signed(x) if wide else x, known[0], bits=64 if "64" in suffixes[-2] else 32)
        if kind == "bfe":
            return combine(lambda x, at, n: (x >> at) & ((1 << n) - 1), *known, bits=bits)
        if kind == "mul" and "lo" in suffixes:
            return combine(lambda x, y: x * y, *known, bits=bits)
        if kind == "mad" and "lo" in suffixes:
            return combine(lambda x, y, z: x * y + z, *known, bits=bits)
        if kind == "shfl" and "idx" in suffixes and known[1] == frozenset([0]):
            return known[0]  # of the warp's first thread, which is the one that is followed
        if kind == "selp":
            condition = state.get(inputs[2])
            first, second = (self._held(operand, state, bits) for operand in inputs[:2])
            return chosen(condition if isinstance(condition, Condition) else None, False, first, second)
        return None

    def _compare(self, one: Instruction, suffixes: list[str], bits: int, state: State) -> None:
        target, left, right = one.operands
        state.pop(target, None)
        first, second = self.values(left, state, bits), self.values(right, state, bits)
        compare = COMPARE.get(suffixes[0])
        if compare is None or second is None:
            return
        number = (lambda x: signed(x, bits)) if suffixes[-1].startswith("s") else (lambda x: x)
        values = (
            frozenset((True, False))
            if first is None
            else frozenset(compare(number(x), number(y)) for x in first for y in second)
        )
        held = state.get(left)
        if len(second) == 1 and isinstance(held, Known):
            (limit,) = second
            state[target] = Condition(values, held.name, lambda x: compare(number(x), number(limit)))
        else:
            state[target] = Condition(values)

"""SASS, NVIDIA's machine code, as a program whose registers can be followed: enough for addresses of shared memory.

What the instructions do is read off their names and checked against PTX whose meaning is documented; there is no
manual. What is not known here lets its result be anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product

from m2gen.runtime.machine_code.dataflow import (
    Condition,
    Instruction,
    Known,
    Machine,
    State,
    chosen,
    combine,
    forget,
    put,
    signed,
)
from m2gen.runtime.machine_code.ptx import COMPARE, split

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[0-9T]+)\s+)?([A-Z0-9_.x]+)\s*(.*?)\s*;")
_REGISTER = re.compile(r"U?R\d+")
_PREDICATE = re.compile(r"!?U?P[\dT]")
_NO_RESULT = {
    *("BRA", "EXIT", "NOP", "BAR", "MEMBAR", "WARPGROUP", "FENCE", "DEPBAR", "STS", "STG", "STSM", "LDGSTS"),
    *("LDGDEPBAR", "WARPSYNC", "BSYNC", "BSSY", "YIELD", "ERRBAR", "CCTL", "RED", "ST", "BREAK", "KILL", "BPT"),
}
_ONE_RESULT = {
    *(
        "MOV",
        "UMOV",
        "R2UR",
        "IMAD",
        "UIMAD",
        "IADD3",
        "UIADD3",
        "VIADD",
        "LOP3",
        "ULOP3",
        "SHF",
        "USHF",
        "LEA",
        "ULEA",
    ),
    *("SGXT", "USGXT", "SEL", "USEL", "PRMT", "UPRMT", "FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "F2FP"),
    *("MUFU", "I2F", "F2I", "I2I", "F2F", "I2FP", "IABS", "LDG", "LDS", "LDC", "ULDC", "LDL", "S2R", "S2UR", "SHFL"),
    *("P2R", "UP2UR", "FSEL", "FMNMX", "VIMNMX", "IMNMX", "POPC", "FLO", "BREV", "BMSK", "UBMSK", "FRND"),
}
_APART = 256  # instructions within which the three that exchange two registers are looked for
_ARITHMETIC: dict[str, Callable[..., int]] = {
    "IADD3": lambda x, y, z: x + y + z,
    "VIADD": lambda x, y: x + y,
    "IMAD": lambda x, y, z: x * y + z,
    "SGXT": lambda x, n: x & ((1 << n) - 1),
    "LEA": lambda x, y, n: (x << n) + y,
}


def parse(text: str) -> list[Instruction]:
    """The instructions of a disassembly, each at its address."""
    found = (_LINE.match(line) for line in text.splitlines())
    program = [
        Instruction(one[1].lstrip("0") or "0", one[2] or "", one[3], split(one[4].replace(".reuse", "")))
        for one in found
        if one
    ]
    return _swaps(program)


def _swaps(program: list[Instruction]) -> list[Instruction]:
    """Two registers exchanged by three exclusive ors, a ^= b, b ^= a, a ^= b, as one instruction SWAP a, b in the place
    of the last: value by value the two would not be known to belong together."""
    ors = {
        n: one.operands[:3]
        for n, one in enumerate(program)
        if one.op in ("LOP3.LUT", "ULOP3.LUT")
        and not one.guard
        and one.operands[3:5] in (("RZ", "0x3c"), ("URZ", "0x3c"))
    }
    reached = {one.operands[-1].removeprefix("0x").lstrip("0") or "0" for one in program if one.op.startswith("BRA")}
    for first, (a, same, b) in ors.items():
        near = range(first + 1, min(first + _APART, len(program)))
        second = next((n for n in near if ors.get(n) in ((b, a, b), (b, b, a))), None)
        third = next((n for n in near if second is not None and n > second and ors.get(n) == (a, same, b)), None)
        between = [program[n] for n in near if third is not None and n < third and n != second]
        told = any(x in one.operands for one in between for x in (a, b))
        # all three are done, or none
        whole = third is not None and not any(
            program[n].op.startswith(("BRA", "EXIT")) or program[n].at in reached for n in range(first + 1, third + 1)
        )
        if same == a and third is not None and whole and not told:
            for n in (first, second):
                program[n or 0] = program[n or 0]._replace(op="NOP", operands=())
            program[third] = program[third]._replace(op="SWAP", operands=(a, b))
    return program


class Sass(Machine):
    """One thread's view; shared memory begins at byte `shared`."""

    def __init__(self, thread: int, shared: int) -> None:
        self.special = {"SR_TID.X": thread, "SR_CgaCtaId": 0, "SRZ": 0}
        self.shared = shared  # the code has it as a number

    def writes(self, one: Instruction) -> list[str]:
        base = one.op.split(".")[0]
        if base == "STL":
            return _slots(one.operands[0], _width(one))
        if base == "SWAP":
            return list(one.operands)
        if base in _NO_RESULT or not one.operands:
            return []
        flags = [x for x in one.operands[:3] if _PREDICATE.fullmatch(x)]
        first = next((x for x in one.operands[:2] if _REGISTER.fullmatch(x)), None)
        return flags + ([after(first, n) for n in range(_width(one))] if first else [])

    def reads(self, one: Instruction) -> list[str]:
        text = " ".join((one.guard, *one.operands[one.op not in ("SWAP",) and one.op[:3] != "STL" and not one.guard :]))
        if "gdesc" in text:  # what it multiplies is of no interest
            return [after(x, n) for x in re.findall(r"gdesc\[(UR\d+)", text) for n in range(4)]
        pairs = [
            after(x, n) for x in re.findall(r"U?R\d+", text) for n in range(_width(one) if one.op[:3] == "STL" else 2)
        ]
        slots = _slots(one.operands[1], _width(one)) if one.op.startswith("LDL") else []
        return [*pairs, *slots, *re.findall(r"U?P\d", text)]

    def jump(self, one: Instruction) -> str | None:
        if not one.op.startswith("BRA"):
            return None
        return one.operands[-1].removeprefix("0x").lstrip("0") or "0"

    def ends(self, one: Instruction) -> bool:
        return one.op.startswith(("BRA", "EXIT")) and not one.guard and len(one.operands) < 2

    def execute(self, one: Instruction, state: State, name: object) -> None:
        base = one.op.split(".")[0]
        if base == "STL":
            self._spill(one, state)
        if base in _NO_RESULT or base == "STL" or not one.operands:
            return
        if base == "SWAP":
            held = {place: state.pop(place, None) for place in one.operands}
            state |= {place: value for place, value in zip(held, reversed(held.values()), strict=True) if value}
            return
        if base in ("ISETP", "UISETP"):
            self._compare(one, state)
            return
        target, *inputs = one.operands
        carries = self._carry(base, one, state)
        for operand in one.operands[:3]:  # a predicate that is read only is forgotten too
            if _PREDICATE.fullmatch(operand) and not (base in ("SEL", "USEL") or operand in inputs[-2:]):
                state.pop(operand, None)
        if _PREDICATE.fullmatch(target) and inputs:
            target, *inputs = inputs
        if not _REGISTER.fullmatch(target):
            return
        results = self._results(base, one, target, inputs, state)
        if one.guard:
            results = {register: _either(values, state.get(register)) for register, values in results.items()}
        for register, values in results.items():
            put(state, register, values, name)
        state.update(carries)

    def values(self, operand: str, state: State) -> frozenset[int] | None:
        """What an operand may be."""
        if operand.startswith("~"):
            return combine(lambda x: ~x, self.values(operand[1:], state))
        if operand.startswith("-"):
            return combine(lambda x: -x, self.values(operand[1:], state))
        if operand in ("RZ", "URZ"):
            return frozenset([0])
        if operand in self.special:
            return frozenset([self.special[operand]])
        if re.fullmatch(r"0x[0-9a-f]+|\d+", operand):
            return frozenset([int(operand, 0)])
        held = state.get(operand)
        return held.values if isinstance(held, Known) else None

    def pair(self, low: str, state: State) -> frozenset[int] | None:
        """What a pair of registers, or a number, may be as 64 bits."""
        if low.startswith("-U"):
            return combine(lambda x: -x, self.pair(low[1:], state), bits=64)
        if not _REGISTER.fullmatch(low):
            return frozenset([int(low, 0)]) if re.fullmatch(r"-?0x[0-9a-f]+", low) else self.values(low, state)
        parts = self.values(low, state), self.values(after(low), state)
        return combine(lambda x, y: x | y << 32, *parts, bits=64)

    def _results(
        self, base: str, one: Instruction, target: str, inputs: list[str], state: State
    ) -> dict[str, frozenset[int] | None]:
        """What each register that is written may be."""
        if one.op == "UIADD3.64":
            total = combine(lambda *x: sum(x), *(self.pair(x, state) for x in inputs), bits=64)
            return {
                target: combine(lambda x: x, total),
                after(target): combine(lambda x: x >> 32, total),
            }
        if base == "CS2R" and inputs == ["SRZ"]:
            return {after(target, n): frozenset([0]) for n in range(_width(one))}
        if base == "LDL" and (slots := _slots(inputs[0], _width(one))):
            return {after(target, n): self.values(slot, state) for n, slot in enumerate(slots)}
        written: dict[str, frozenset[int] | None] = {after(target, n): None for n in range(_width(one))}
        return {**written, target: self._result(base, one, inputs, state)} if len(written) == 1 else written

    def _result(self, base: str, one: Instruction, inputs: list[str], state: State) -> frozenset[int] | None:
        plain = [x for x in inputs if not _PREDICATE.fullmatch(x)]
        known = [self.values(x, state) for x in plain]
        words = one.op.split(".")[1:]
        if base in ("MOV", "UMOV", "R2UR", "S2R", "S2UR") and known:
            return known[-1] if base == "R2UR" else known[0]
        if base in ("SEL", "USEL"):
            condition = state.get(inputs[2].lstrip("!"))
            first, second = (self._held(x, state) for x in inputs[:2])
            told = condition if isinstance(condition, Condition) else None
            return chosen(told, inputs[2].startswith("!"), first, second)
        if base in ("LOP3", "ULOP3") and len(known) >= 4 and (table := known[3]) is not None:
            return combine(lambda x, y, z, lut: _logic(x, y, z, lut), *known[:3], table)
        if base in ("SHF", "USHF") and "U64" not in words:
            return _shift(words, known)
        if base == "SHFL" and "IDX" in words and known[1] == frozenset([0]):
            return known[0]  # of the warp's first thread, which is the one that is followed
        if "X" in words:  # with a carry in
            if base not in ("IMAD", "IADD3", "UIADD3"):
                return None
            flags = [self._flag(x, state) for x in inputs if _PREDICATE.fullmatch(x)]
            product = base == "IMAD"
            return combine(lambda x, y, z, *c: (x * y if product else x + y) + z + sum(c), *known[:3], *flags)
        if base in ("LEA", "ULEA") and words == ["HI"] and len(known) == 4:
            return combine(lambda x, y, high, n: (((high << 32 | x) << n) >> 32) + y, *known)
        if {"WIDE", "HI", "64", "S32"} & set(words) or (base == "SGXT" and words != ["U32"]):
            return None
        do = _ARITHMETIC.get(base.removeprefix("U"))
        arity = 2 if base.removeprefix("U") in ("VIADD", "SGXT") else 3
        if base == "IMAD" and len(known) == 3 and frozenset([0]) in known[:2]:
            return known[2]
        return combine(do, *known) if do and len(known) == arity else None

    def _held(self, operand: str, state: State) -> Known | None:
        held, values = state.get(operand), self.values(operand, state)
        return held if isinstance(held, Known) else None if values is None else Known(values)

    def _flag(self, operand: str, state: State) -> frozenset[int] | None:
        negated, operand = operand.startswith("!"), operand.lstrip("!")
        if operand in ("PT", "UPT"):
            return frozenset([int(not negated)])
        told = state.get(operand)
        return frozenset(int(x != negated) for x in told.values) if isinstance(told, Condition) else None

    def _carry(self, base: str, one: Instruction, state: State) -> State:
        """The predicate that an addition of two numbers leaves: whether it passed 32 bits."""
        if base not in ("IADD3", "UIADD3") or ".X" in one.op or len(one.operands) != 5:
            return {}
        flag, *numbers = one.operands[1:]
        known = [self.values(x, state) for x in numbers]
        if one.guard or not {"RZ", "URZ"} & set(numbers) or any(re.match("-[UR]", x) for x in numbers):
            return {}
        over = combine(lambda *x: int(sum(x) >= 1 << 32), *known)
        return {} if over is None else {flag: Condition(frozenset(map(bool, over)))}

    def _compare(self, one: Instruction, state: State) -> None:
        target, other, left, right, *rest = one.operands
        forget(state, [target, other])
        words = one.op.split(".")[1:]
        compare = COMPARE.get(words[0].lower())
        second = self.values(right, state)
        if compare is None or second is None or one.guard or words[-1] != "AND" or rest not in (["PT"], ["UPT"]):
            return
        number = (lambda x: x) if "U32" in words else signed
        held = self._held(left, state)
        first = None if held is None else held.values
        values = (
            frozenset((True, False))
            if first is None
            else frozenset(compare(number(x), number(y)) for x, y in product(first, second))
        )
        if len(second) == 1 and held is not None:
            (limit,) = second
            state[target] = Condition(values, held.name, lambda x: compare(number(x), number(limit)))
        else:
            state[target] = Condition(values)

    def _spill(self, one: Instruction, state: State) -> None:
        slots = _slots(one.operands[0], _width(one))
        for n, slot in enumerate(slots):
            put(state, slot, self.values(after(one.operands[1], n), state), slot)


def after(register: str, places: int = 1) -> str:
    """The register some places on; RZ stays."""
    found = re.fullmatch(r"(U?R)(\d+)", register)
    return f"{found[1]}{int(found[2]) + places}" if found else register


def _width(one: Instruction) -> int:
    """Registers that an instruction writes, or more."""
    base = one.op.split(".")[0]
    if base in ("HGMMA", "IGMMA", "QGMMA"):
        shape = re.search(r"64x(\d+)x", one.op)
        return int(shape[1]) // 2 if shape else 128
    if base == "HMMA":  # 16 x 8 sums of a warp
        return 4
    if base == "LDSM":
        return int(one.op[-1]) if one.op[-1].isdecimal() else 1
    if base not in _ONE_RESULT and base not in ("STL", "CS2R"):
        return 8
    if ".128" in one.op:
        return 4
    wide = ".WIDE" in one.op or ".64" in one.op or (base == "CS2R" and ".32" not in one.op)
    converted = base in ("F2F", "I2F", "F2I") and "64" in one.op
    return 2 if (wide and ".U64" not in one.op) or converted else 1


def _slots(address: str, width: int) -> list[str]:
    """The places on the stack that an access means: the stack pointer R1 stays what it is after the beginning."""
    found = re.fullmatch(r"\[R1(?:\+(0x[0-9a-f]+))?\]", address)
    return [f"[{int(found[1] or '0', 0) + 4 * n}]" for n in range(width)] if found else []


def _either(values: frozenset[int] | None, held: Known | Condition | None) -> frozenset[int] | None:
    return None if values is None or not isinstance(held, Known) else values | held.values


def _logic(x: int, y: int, z: int, table: int) -> int:
    """Bit by bit what `table` says of three bits."""
    found = 0
    for row in range(8):
        if table >> row & 1:
            found |= (x if row & 4 else ~x) & (y if row & 2 else ~y) & (z if row & 1 else ~z)
    return found


def _shift(words: list[str], known: list[frozenset[int] | None]) -> frozenset[int] | None:
    low, count, high = known[:3]
    if "L" in words and "HI" not in words:
        return combine(lambda x, n: x << min(n, 32), low, count)
    if "R" in words and "HI" in words:
        arithmetic = "S32" in words
        return combine(lambda n, x: (signed(x) if arithmetic else x) >> min(n, 32), count, high)
    return None

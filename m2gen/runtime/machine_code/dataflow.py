"""Which values the registers of a compiled kernel may hold, instruction by instruction.

Constants are propagated through the program until nothing changes: a register holds a small set of integers, or
anything. That is enough to follow what a compiler makes of addresses that depend on nothing but the thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import product
from typing import NamedTuple

MOST = 8  # values of one register; beyond that it may hold anything
_MOST_TURNS = 200  # of one block
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Known:
    """One of `values`; two registers with the same `name` hold the same one."""

    values: frozenset[int]
    name: object = None


@dataclass(frozen=True, slots=True)
class Condition:
    """A predicate: what it may be, and that it says `holds` of the register's value called `name`."""

    values: frozenset[bool]
    name: object = None
    holds: Callable[[int], bool] | None = None


State = dict[str, Known | Condition]  # what is not in it may be anything


class Instruction(NamedTuple):
    """`at` is the place that branches name; `guard` "@P0", "@!P0" or nothing."""

    at: str
    guard: str
    op: str
    operands: tuple[str, ...]


class Machine:
    """What instructions do; one for each language."""

    def execute(self, one: Instruction, state: State, name: object) -> None:
        """Change `state` as the instruction does; values that it makes are called `name`."""
        raise NotImplementedError

    def writes(self, one: Instruction) -> Iterable[str]:
        """Every register that `execute` may change."""
        raise NotImplementedError

    def reads(self, one: Instruction) -> Iterable[str]:
        """Every register that decides what `execute` does, or more."""
        raise NotImplementedError

    def jump(self, one: Instruction) -> str | None:
        """Where the instruction may branch to."""
        raise NotImplementedError

    def ends(self, one: Instruction) -> bool:
        """Whether what follows is not reached from here."""
        raise NotImplementedError


def combine(do: Callable[..., int], *operands: frozenset[int] | None, bits: int = 32) -> frozenset[int] | None:
    """`do` of every choice of the operands' values."""
    count = 1
    for one in operands:
        if one is None:
            return None
        count *= len(one)
    if count > MOST**3:
        return None
    found = frozenset(do(*values) & (2**bits - 1) for values in product(*(one for one in operands if one is not None)))
    return found if len(found) <= MOST else None


def signed(value: int, bits: int = 32) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def chosen(condition: Condition | None, negated: bool, yes: Known | None, no: Known | None) -> frozenset[int] | None:
    """What a selection gives: where the condition is about one of the two, only values that agree with it."""

    def agreeing(one: Known | None, wanted: bool) -> frozenset[int] | None:
        if one is None:
            return None
        if condition is None:
            return one.values
        if wanted not in condition.values:
            return frozenset()
        if condition.holds is None or condition.name is None or condition.name != one.name:
            return one.values
        return frozenset(value for value in one.values if condition.holds(value) == wanted)

    first, second = agreeing(yes, not negated), agreeing(no, negated)
    return None if first is None or second is None else first | second


def visit(
    program: list[Instruction],
    machine: Machine,
    wanted: Callable[[Instruction], bool],
    see: Callable[[int, State], None],
) -> bool:
    """Call `see` with the index of every reachable instruction that is `wanted` and the state before it, once nothing
    changes any more. False where that took too long: then nothing was seen."""
    place = {one.at: n for n, one in enumerate(program) if one.at}
    program = _needed(program, machine, wanted)
    starts = _blocks(program, machine, place)
    ends = dict(zip(starts, [*starts[1:], len(program)], strict=True))
    before: dict[int, State] = {0: {}}
    turns = dict.fromkeys(starts, 0)
    waiting = [0]

    def last(n: int, state: State) -> None:
        if wanted(program[n]):
            see(n, state)

    while waiting:
        block = heappop(waiting)
        turns[block] += 1
        if turns[block] > _MOST_TURNS:
            return False
        for successor, state in _run(program, machine, place, before[block], block, ends[block], lambda n, state: None):
            merged = _merge(before.get(successor), state, successor)
            if successor not in before or _differ(merged, before[successor]):
                before[successor] = merged
                if successor not in waiting:
                    heappush(waiting, successor)
    for block in starts:
        if block in before:
            _run(program, machine, place, before[block], block, ends[block], last)
    return True


def _needed(program: list[Instruction], machine: Machine, wanted: Callable[[Instruction], bool]) -> list[Instruction]:
    """The program with only those instructions that what is wanted depends on, the others done away with; branches
    stay, and both ways are gone."""
    written = [frozenset(machine.writes(one)) for one in program]
    read = [frozenset(machine.reads(one)) for one in program]
    needed = {n for n, one in enumerate(program) if wanted(one)}
    registers = frozenset[str]().union(*(read[n] for n in needed))
    while True:
        more = {n for n, registers_ in enumerate(written) if registers_ & registers} - needed
        if not more:
            break
        needed |= more
        registers |= frozenset[str]().union(*(read[n] for n in more))
    return [
        one if n in needed or machine.jump(one) is not None or machine.ends(one) else Instruction(one.at, "", "", ())
        for n, one in enumerate(program)
    ]


def _blocks(program: list[Instruction], machine: Machine, place: Mapping[str, int]) -> list[int]:
    starts = {0}
    for n, one in enumerate(program):
        to = machine.jump(one)
        if to is not None:
            starts |= {place[to], n + 1}
    return sorted(n for n in starts if n < len(program))


def _run(
    program: list[Instruction],
    machine: Machine,
    place: Mapping[str, int],
    entry: State,
    first: int,
    end: int,
    see: Callable[[int, State], None],
) -> list[tuple[int, State]]:
    """The states that a block hands on, by the block that gets them."""
    state, found, falls = dict(entry), [], True
    for n in range(first, end):
        one = program[n]
        if not one.op:
            continue
        see(n, state)
        machine.execute(one, state, n)
        to = machine.jump(one)
        if to is not None:
            found.append((place[to], dict(state)))
        falls = not machine.ends(one)
    if falls and end < len(program):
        found.append((end, state))
    return found


def _merge(old: State | None, new: State, block: int) -> State:
    if old is None:
        return dict(new)
    merged: State = {}
    for register in old.keys() & new.keys():
        one, other = old[register], new[register]
        if one == other:
            merged[register] = one
        elif isinstance(one, Known) and isinstance(other, Known):
            values = one.values | other.values
            if len(values) <= MOST:
                merged[register] = Known(values, one.name if one.name == other.name else (block, register))
        elif isinstance(one, Condition) and isinstance(other, Condition):
            merged[register] = Condition(one.values | other.values)
    return merged


def _differ(one: State, other: State) -> bool:
    return one.keys() != other.keys() or any(one[key].values != other[key].values for key in one)


def put(state: State, register: str, values: frozenset[int] | None, name: object) -> None:
    """Let `register` hold one of `values`, or anything."""
    if values is None:
        state.pop(register, None)
    else:
        state[register] = Known(values, (name, register))


def forget(state: State, registers: Iterable[str]) -> None:
    """These may hold anything from now on."""
    for register in registers:
        state.pop(register, None)

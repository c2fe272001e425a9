"""What a convolution in passes launches, one after the other: bytes and seconds by the cost model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.planner.fftconv.passes_cost import SLOWER, PassValues
from m2gen.planner.step import Estimate, Launch


class Chunk:
    """The launches on one of `count` chunks of channels and rows of the batch."""

    def __init__(self, numbers: PassValues, outer: tuple[OuterSpec, ...], rows: Launch) -> None:
        self._v, self._outer, self._rows, self.count = numbers, outer, rows, int(numbers.c)
        each = numbers.w / 2 or numbers.e  # of turned ones the mean of input and result
        self.tensor = numbers.B * numbers.H * numbers.n * each / numbers.c  # bytes of a sequence, of scratch
        self.scratch = 2 * numbers.T * numbers.H * numbers.N * numbers.Q / numbers.c

    def one(self, spec: OuterSpec, moved: float) -> Launch:
        """A pass that moves so many bytes."""
        v = self._v
        flop = 8 * v.T * v.H * v.N * spec.n0 / v.c
        return Launch(spec.name, moved, max(SLOWER[spec.n0] * moved / v.D, flop / v.X) + v.t, flop)

    def largest(self, spec: LargestSpec) -> Launch:
        """What comes backward, read as a whole."""
        moved = (1 + spec.gate) * self.tensor
        return Launch(spec.name, moved, moved / self._v.D + self._v.t)

    def reading(self, spec: OuterSpec) -> Iterator[Launch]:
        """All analyses."""
        sources = 1 + spec.gate + spec.pair + spec.pair_gate
        scratches = 1 + spec.pair
        yield self.one(spec, sources * self.tensor + scratches * self.scratch)
        for one in self._outer[1:] * scratches:
            yield self.one(one, 2 * self.scratch)

    def convolving(self) -> Iterator[Launch]:
        yield self._rows

    def writing(self, spec: OuterSpec) -> Iterator[Launch]:
        """All syntheses."""
        for one in reversed(self._outer[1:]):
            yield self.one(replace(one, part="synthesis"), 2 * self.scratch)
        yield self.one(spec, (1 + spec.gate + spec.add + 2 * spec.second) * self.tensor + self.scratch)


def launch(name: str, of: Estimate, chunks: int, call: float) -> Launch:
    """One chunk's share of an estimate that has one call."""
    return Launch(name, of.bytes / chunks, (of.seconds - call) / chunks + call, of.flop / chunks)

"""Convolutions on large rings: outer stages in passes over memory, and a generated kernel for the rows between them.

Scratch (2 T, C, N) holds T complex rows, real and imaginary parts one after the other; every stage works in place, so
the rows k0 of all stages are channels of the kernel on chip, which does their convolutions in place, too. Backward

    d u = pre * C'(dy * post)    d pre = u * C'(dy * post)    d post = dy * C(u * pre)

the first two from one reading of scratch, and the filter's gradient is the sum over the batch of conj(DFT(u * pre))
DFT(dy * post), row by row, from both scratches before they are convolved.

Compiled and interpreted, not yet run on a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from m2gen.config import config
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.kernels.outer import OuterSpec
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.runtime.bindings import kept_spectra
from m2gen.runtime.bindings.constants import left_matrix, pass_twiddles, right_matrix, ring_twiddles
from m2gen.runtime.bindings.large_filter import LargeFilters, LibraryLargeFilters
from m2gen.runtime.bindings.large_filter_triton import GeneratedLargeFilters
from m2gen.runtime.bindings.largest import largest_of
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.build.triton_kernel import DTYPES, interned, launch

_TORCH = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "bf16_emulated": torch.float32}
_PER_PROGRAM = 4  # blocks of columns that a program of a pass does, at least, where there are programs enough


@dataclass(frozen=True)
class Spectrum:
    """kf (H, K, 2, M) of some channels in the kernels' order, and the powers of two (H,) it was divided by."""

    kf: Tensor
    scale: Tensor


@dataclass
class Sums:
    """What the gradients of a chunk's filters are made of: dkf (H K, 2, M), and those of the skip (H,)."""

    dkf: Tensor | None = None
    radices: tuple[int, ...] = ()  # of the rows on chip, whose order the sums are in
    skip: Tensor | None = None

    def add(self, dkf: Tensor, spec: FftConvSpec) -> None:
        self.radices = spec.radices
        self.dkf = dkf if self.dkf is None else self.dkf.add_(dkf)


class PassesKernel:
    """One planned convolution, forward and backward."""

    def __init__(self, problem: FftConvProblem, step: PassesConv) -> None:
        self.step = step = _emulated(step)
        self.spec, self.transpose = interned(step.spec), interned(replace(step.spec, transpose=True))
        self.dk = interned(step.dk)
        self._several: dict[tuple[str, ...], FftConvSpec] = {}
        self.ring = Ring(problem, step.transform.size)
        self.shift = problem.taps[1] if step.outer[0].wrap else 0
        self.filters = _filters(self.ring, step)
        self.back = None if step.back is None else PassesKernel(problem, step.back)
        self._tables: dict[tuple[object, int], list[Tensor]] = {}

    def forward(self, x: Operands) -> Tensor:
        y = torch.empty_like(x.u)
        self.convolve(x, y)
        return y

    def convolve(self, x: Operands, y: Tensor) -> None:
        """Fill y, of any dtype."""
        step, way = self.step, self.step.way()
        reading = step.reading(way, x.pre_gate is not None)
        writing = step.writing(way, x.post_gate is not None, x.add is not None)
        for channels, rows in self._chunks(x.u):
            found = self._spectrum(x, channels)
            for some in rows:
                of = (some, channels)
                s = self._scratch(x.u[of])
                self._read(reading, [s], _those(of, x.u, x.pre_gate))
                self._convolve(self.spec, s, found.kf)
                self._write(writing, s, found.scale, _those(of, x.post_gate, x.add, y))
                del s
            del found

    def backward(self, dy: Tensor, x: Operands, out: Gradients) -> None:
        """Fill the wanted gradients; the forward's intermediates are computed again."""
        if self.back is not None and (out.filter or out.skip is not None):
            self.back.backward(dy, x, out)
            return
        for channels, rows in self._chunks(x.u):
            needed = out.input or out.post_gate is not None
            found = self._spectrum(x, channels) if needed else None
            sums = Sums()
            for some in rows:
                self._one_backward((some, channels), dy, x, out, found, sums)
            del found
            self._write_filter(sums, channels, out)

    def _one_backward(
        self,
        of: tuple[slice, slice],
        dy: Tensor,
        x: Operands,
        out: Gradients,
        found: Spectrum | None,
        sums: Sums,
    ) -> None:
        """The gradients of one chunk; what the filter's are made of is added to `sums`."""
        step, z, d = self.step, None, None
        done: tuple[str, ...] = ()
        largest = self._largest(of, dy, x) if out.filter or out.skip is not None or out.input else []
        if out.filter or out.skip is not None:
            d, z = self._read_both(of, dy, x, sums, out.skip is not None, largest)
            done = self._together(z, d, out, found, sums, largest)
            if out.filter and "dk" not in done:
                self._sum(z, d, sums, largest)
        elif out.input:
            d = self._scratch(x.u[of])
            reading = step.reading(step.way(True), x.post_gate is not None, True)
            self._read(reading, [d], _those(of, dy, x.post_gate), largest)
        if out.input and d is not None and found is not None:
            if "du" not in done:
                self._convolve(self.transpose, d, found.kf)
            self._write_input(d, found.scale, of, x, out, largest)
        del d
        if out.post_gate is not None and found is not None:
            if z is None or step.way() != "plain":
                del z
                z = self._scratch(x.u[of])
                reading = step.reading(step.way(), x.pre_gate is not None)
                self._read(reading, [z], _those(of, x.u, x.pre_gate))
            if "conv" not in done:
                self._convolve(self.spec, z, found.kf)
            self._write_conv(z, found.scale, of, dy, out.post_gate)

    def _write_conv(self, z: Tensor, scale: Tensor, of: tuple[slice, slice], dy: Tensor, into: Tensor) -> None:
        """dy C(u * pre), the gradient of the second gate."""
        self._write(self.step.writing(self.step.way(), True), z, scale, _those(of, dy, into))

    def _largest(self, of: tuple[slice, slice], dy: Tensor, x: Operands) -> list[Tensor]:
        """The largest |dy post| of each complex row (T, C), if what comes backward is brought into range by it."""
        if not self.step.ranged:
            return []
        spec = LargestSpec(dtype=DTYPES[dy.dtype], rows=self.step.outer[0].rows)
        gate = None if x.post_gate is None else x.post_gate[of]
        return [largest_of(dy[of], gate, spec, self.step.programs)]

    def _read_both(
        self, of: tuple[slice, slice], dy: Tensor, x: Operands, sums: Sums, skip: bool, largest: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """dy * post and u * pre in scratch, and the sums of their products for the gradient of the skip."""
        d, z = self._scratch(x.u[of]), self._scratch(x.u[of])
        spec = self.step.reading_both(x.post_gate is not None, x.pre_gate is not None, skip)
        parts = d.new_empty((*self._grid(spec, d),), dtype=torch.float32) if skip else None
        self._read(spec, [d, z], _those(of, dy, x.post_gate, x.u, x.pre_gate), largest, parts)
        if parts is not None:
            total = parts.sum((0, 2))
            sums.skip = total if sums.skip is None else sums.skip.add_(total)
        return d, z

    def _write_input(
        self, d: Tensor, scale: Tensor, of: tuple[slice, slice], x: Operands, out: Gradients, largest: list[Tensor]
    ) -> None:
        """The gradients of u and of its gate, both from one reading."""
        two = out.u is not None and out.pre_gate is not None
        gate = x.pre_gate if out.u is not None else x.u
        spec = self.step.writing(self.step.way(True), gate is not None, second=two, ranged=True)
        results = (out.u, out.pre_gate) if two else (out.u if out.pre_gate is None else out.pre_gate,)
        self._write(spec, d, scale, _those(of, gate, x.u if two else None, *results), largest)

    # -- the filter ----------------------------------------------------------------------------------------------------

    def _spectrum(self, x: Operands, channels: slice) -> Spectrum:
        """That of some channels; of a filter that is kept, of all, it is made once."""
        kept = kept_spectra.of(x)
        if kept is None:
            return Spectrum(*self._transformed(x, channels))
        spec, ring = self.spec, self.ring
        how = ("passes", self.step.outer[0].ring, self.step.transform.radices, spec.compute)
        kf, scale = kept.get((*how, ring.lo, ring.hi, ring.centre), lambda: self._whole(x))
        return Spectrum(kf[channels], scale[channels])

    def _transformed(self, x: Operands, channels: slice) -> tuple[Tensor, Tensor]:
        return self.filters.spectrum(x, channels)

    def _whole(self, x: Operands) -> tuple[Tensor, Tensor]:
        """That of all channels, made in chunks."""
        found = [self._transformed(x, channels) for channels in _slices(x.k.shape[0], self.step.channels)]
        kf, scale = (torch.cat(parts) for parts in zip(*found, strict=True))
        return kf, scale

    def _sum(self, z: Tensor, d: Tensor, sums: Sums, largest: list[Tensor]) -> None:
        """The sums over the batch of conj(Z) D, bin by bin, added to those of earlier rows of the batch."""
        z, d = self._inner(z), self._inner(d)
        rows, channels, _ = z.shape
        dkf = z.new_empty((channels, 2, self.dk.size), dtype=torch.float32)
        tiles, programs = rows // self.dk.batch_rows, min(channels, self.step.programs)
        work = (tiles, channels, programs, *self._inner_rows)
        launch(self.dk, programs, z, d, dkf, *self._constants(self.dk, z), *largest, *work, *z.stride()[:2])
        sums.add(dkf, self.dk)

    @property
    def _inner_rows(self) -> tuple[int, ...]:
        """What kernels that know the largest of a complex row find it by."""
        return (self.step.inner_rows,) if self.step.ranged else ()

    def _together(
        self, z: Tensor, d: Tensor, out: Gradients, found: Spectrum | None, sums: Sums, largest: list[Tensor]
    ) -> tuple[str, ...]:
        """Launch the kernel of several gradients, each written over the scratch it is made of, if the filter's and
        another of its results are wanted; which those are."""
        bwd = self.step.bwd
        if bwd is None or found is None or not out.filter:
            return ()
        wanted = {"du": out.input, "conv": out.post_gate is not None, "dk": True}
        results = tuple(one for one in bwd.spec.results if wanted[one])
        if len(results) < 2:
            return ()
        spec = self._several.setdefault(results, interned(replace(bwd.spec, results=results)))
        z, d = self._inner(z), self._inner(d)
        rows, channels, _ = z.shape
        dkf = z.new_empty((channels, 2, spec.size), dtype=torch.float32)
        programs = min(channels, bwd.programs)
        work = (rows // spec.batch_rows, channels, programs, *self._inner_rows)
        constants = self._constants(spec, z)
        launch(spec, programs, z, d, dkf, found.kf, *constants, *largest, *work, *z.stride()[:2])
        sums.add(dkf, spec)
        return results

    def _write_filter(self, sums: Sums, channels: slice, out: Gradients) -> None:
        """The gradients of taps and skip from their sums, which are dropped."""
        if out.skip is not None and sums.skip is not None:
            out.skip[channels] = sums.skip
        dkf, sums.dkf = sums.dkf, None
        if dkf is not None:
            self.filters.write(dkf, channels, out, sums.radices)

    # -- passes --------------------------------------------------------------------------------------------------------

    def _chunks(self, u: Tensor) -> Iterator[tuple[slice, list[slice]]]:
        """Channels, and for each some of them the rows of the batch."""
        rows = _slices(u.shape[0], self.step.rows)
        for channels in _slices(u.shape[1], self.step.channels):
            yield channels, rows

    def _scratch(self, u: Tensor) -> Tensor:
        """Complex rings for some rows and channels (2 T, C, N)."""
        tiles = -(-u.shape[0] // self.step.outer[0].rows)
        return u.new_empty((2 * tiles, u.shape[1], self.ring.size), dtype=_TORCH[self.spec.compute])

    def _read(
        self,
        spec: OuterSpec,
        scratch: list[Tensor],
        sequences: list[Tensor],
        largest: Sequence[Tensor] = (),
        parts: Tensor | None = None,
    ) -> None:
        """All analyses: of (u, gate) to scratch, or of two such pairs to two, and the nested ones in place."""
        more = [*([] if parts is None else [parts]), *(largest if spec.ranged else ())]
        self._pass(spec, scratch[0], [*sequences, *scratch, *more], sequences)
        for level, one in enumerate(self.step.outer[1:], 1):
            for s in scratch:
                rows = self._level(s, level)
                self._pass(one, rows, [rows, rows], [rows])

    def _write(
        self, spec: OuterSpec, s: Tensor, scale: Tensor, sequences: list[Tensor], largest: Sequence[Tensor] = ()
    ) -> None:
        """All syntheses: the nested ones in place, and to the results; `sequences` are in the order of the kernel's."""
        for level, one in reversed(list(enumerate(self.step.outer))[1:]):
            rows = self._level(s, level)
            self._pass(replace(one, part="synthesis"), rows, [rows, rows], [rows])
        self._pass(spec, s, [s, *sequences, scale, *(largest if spec.ranged else ())], sequences)

    def _pass(self, spec: OuterSpec, s: Tensor, pointers: list[Tensor], sequences: list[Tensor]) -> None:
        """Launch one pass between `sequences` (B, C, L) and scratch s (2 T, C, rows' points)."""
        spec = interned(spec)
        batch, channels, length = sequences[0].shape
        inner, (tiles, _, splits) = s.shape[2] // spec.n0, self._grid(spec, s)
        strides = [stride for tensor in sequences for stride in tensor.stride()]
        own = [s.stride(0), s.stride(1)]
        strides = [*strides, *own] if spec.part == "analysis" else [*own, *strides]
        constants = self._pass_constants(spec, inner, s)
        work = (batch, length, self.shift, channels, inner, splits)
        launch(spec, channels * tiles * splits, *pointers, *constants, *work, *strides)

    def _grid(self, spec: OuterSpec, s: Tensor) -> tuple[int, int, int]:
        """Programs of a pass: complex rows, channels, and splits of a row's columns."""
        tiles, channels = s.shape[0] // 2, s.shape[1]
        blocks = s.shape[2] // (spec.n0 * spec.columns)
        return tiles, channels, max(1, min(blocks // _PER_PROGRAM, self.step.programs // max(1, channels * tiles)))

    def _level(self, s: Tensor, level: int) -> Tensor:
        """Scratch as the rows that are left inside the first `level` stages: (2 T, C k0 .., M)."""
        rows = 1
        for one in self.step.outer[:level]:
            rows *= one.n0
        return s.view(s.shape[0], s.shape[1] * rows, s.shape[2] // rows)

    def _inner(self, s: Tensor) -> Tensor:
        return self._level(s, len(self.step.outer))

    def _convolve(self, spec: FftConvSpec, s: Tensor, kf: Tensor) -> None:
        """The rows' convolutions, in place: a tile is read whole before it is written."""
        s = self._inner(s)
        rows, channels, _ = s.shape
        tiles = rows // spec.batch_rows
        programs = min(channels * tiles, self.step.programs)
        launch(spec, programs, s, kf, *self._constants(spec, s), tiles, channels * tiles, programs, *s.stride()[:2])

    def _constants(self, spec: FftConvSpec, s: Tensor) -> list[Tensor]:
        """Matrices and twiddles of a kernel on chip."""
        key = spec.radices, s.get_device()
        found = self._tables.get(key)
        if found is None:
            dtype = _TORCH[spec.compute]
            found = self._tables[key] = [
                left_matrix("cyclic", spec.n1, spec.n2, dtype, s.device, spec.stack),
                right_matrix(spec.n2, dtype, s.device),
                ring_twiddles("cyclic", spec.n1, spec.n2, s.device),
            ]
        return found

    def _pass_constants(self, spec: OuterSpec, inner: int, s: Tensor) -> list[Tensor]:
        """Matrix and twiddles of a pass over rows of `inner` points."""
        key = (spec.ring, spec.n0, inner), s.get_device()
        found = self._tables.get(key)
        if found is None:
            matrix = left_matrix(spec.ring, spec.n0, inner, _TORCH[spec.compute], s.device)
            tables = pass_twiddles(spec.ring, spec.n0, inner, spec.columns, s.device)
            found = self._tables[key] = [matrix, *tables]
        return found


def _filters(ring: Ring, step: PassesConv) -> LargeFilters:
    """What makes the filter's spectra."""
    if step.filters.forward:
        return GeneratedLargeFilters(ring, step.filters, step.spec.compute)
    outer = tuple(one.n0 for one in step.outer)
    dtype = _TORCH[step.spec.compute]
    return LibraryLargeFilters(ring, step.outer[0].ring, (*outer, step.spec.n1, step.spec.n2), dtype)


def _emulated(step: PassesConv) -> PassesConv:
    """The step as Triton's interpreter can do it, whose bfloat16 arithmetic is wrong."""
    if not config().triton_interpret:
        return step
    compute = {"bf16": "bf16_emulated"}.get(step.spec.compute, step.spec.compute)
    outer = tuple(replace(one, compute=compute, emulated=one.dtype == "bf16") for one in step.outer)
    spec, dk = (replace(one, compute=compute) for one in (step.spec, step.dk))
    bwd = step.bwd and replace(step.bwd, spec=replace(step.bwd.spec, compute=compute))
    return replace(step, outer=outer, spec=spec, dk=dk, bwd=bwd)


def _slices(size: int, at_once: int) -> list[slice]:
    return [slice(start, min(start + at_once, size)) for start in range(0, size, at_once)]


def _those(of: tuple[slice, slice], *tensors: Tensor | None) -> list[Tensor]:
    """A chunk of each tensor that is there."""
    return [tensor[of] for tensor in tensors if tensor is not None]

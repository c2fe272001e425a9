"""The fused convolution: launches of generated kernels for the forward pass and every gradient.

The transpose of a convolution is the same kernel with the conjugate spectrum, so every gradient but the filter's may be
one launch of the forward kernel with other gates:

    y     = post * C(u * pre) + add    d post = dy   * C(u * pre)
    d u   = pre  * C'(dy * post)       d pre  = u    * C'(dy * post)

A plan's kernel of several gradients (`FusedConv.bwd`) gives those of them that are wanted, if they are two or more. A
plan may have another step for the gradients (`FusedConv.back`), which does all that are wanted with the filter's.

The skip is part of the filter's spectrum (an impulse at lag 0); its gradient is summed in float32 by the kernel of the
filter's gradient, which has both factors at hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from m2gen.config import config
from m2gen.errors import M2GenError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.largest import LargestSpec
from m2gen.planner.fftconv.backward import assigned, of_call
from m2gen.planner.fftconv.filters import FilterKernels
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.fftconv.steps_passes import PassesConv
from m2gen.runtime.bindings import kept_spectra
from m2gen.runtime.bindings.constants import left_matrix, right_matrix, ring_twiddles
from m2gen.runtime.bindings.filters import TORCH, Filters, LibraryFilters
from m2gen.runtime.bindings.largest import largest_of
from m2gen.runtime.bindings.passes import PassesKernel
from m2gen.runtime.bindings.ring import Ring
from m2gen.runtime.bindings.spectral import Gradients, Operands
from m2gen.runtime.bindings.spectrum_triton import FusedFilters
from m2gen.runtime.build.triton_kernel import DTYPES, interned, launch


class FusedKernel:
    """One planned fused convolution, forward and backward."""

    def __init__(self, problem: FftConvProblem, step: FusedConv) -> None:
        emulated = config().triton_interpret and step.spec.compute == "bf16"
        self.spec, self.dk = (
            interned(replace(s, compute="bf16_emulated") if emulated else s) for s in (step.spec, step.dk)
        )
        self.bwd = [replace(one, spec=replace(one.spec, compute=self.spec.compute)) for one in step.bwd]
        self._bwd_specs: dict[tuple[Any, ...], FftConvSpec] = {}
        self._specs: dict[tuple[bool, bool, bool], FftConvSpec] = {}
        self._dk_specs: dict[tuple[bool, bool, bool], FftConvSpec] = {}
        self._tables: dict[tuple[Any, ...], list[Tensor]] = {}
        self.programs = step.programs
        self.ring = Ring(problem, step.spec.size)
        self.filters = _filters(self.ring, self.spec, step.filters)
        self.shift = problem.taps[1] if step.spec.wrap else 0
        self.back = PassesKernel(problem, step.back) if isinstance(step.back, PassesConv) else None

    def forward(self, x: Operands) -> Tensor:
        y = torch.empty_like(x.u)
        self._convolve(self.spec, x.u, x.pre_gate, x.post_gate, y, self._spectrum(x), x.add)
        return y

    def backward(self, dy: Tensor, x: Operands, out: Gradients) -> None:
        """Fill the wanted gradients; the forward's intermediates are computed again."""
        if self.back is not None and (out.filter or out.skip is not None):
            self.back.backward(dy, x, out)
            return
        pre, post = x.pre_gate is not None, x.post_gate is not None
        spectrum = self._spectrum(x) if out.input or out.post_gate is not None else None
        needed = out.input or out.filter or out.skip is not None
        largest = self._largest(dy, x.post_gate) if needed else None
        tensors = {"u": x.u, "pre": x.pre_gate, "post": x.post_gate, "dy": dy}
        tensors |= {"du": out.u, "dpre": out.pre_gate, "dpost": out.post_gate}
        left = self._together(tensors, (pre, post), out, spectrum)
        if out.u is not None and "du" in left and spectrum is not None:
            spec = self._variant(True, post, pre)
            self._convolve(spec, dy, x.post_gate, x.pre_gate, out.u, spectrum, largest=largest)
        if out.pre_gate is not None and "dpre" in left and spectrum is not None:
            spec = self._variant(True, post, True)
            self._convolve(spec, dy, x.post_gate, x.u, out.pre_gate, spectrum, largest=largest)
        if out.post_gate is not None and "dpost" in left and spectrum is not None:
            self._convolve(self._variant(False, pre, True), x.u, x.pre_gate, dy, out.post_gate, spectrum)
        if "dk" in left:
            self._filter_gradient(dy, x, out, largest)

    def _together(
        self,
        tensors: dict[str, Tensor | None],
        gates: tuple[bool, bool],
        out: Gradients,
        spectrum: tuple[Tensor, Tensor] | None,
    ) -> set[str]:
        """Launch the kernels of several gradients; what is left for those of one. `tensors` has operands and results by
        the kernels' names, those of the filter aside."""
        results = ("du", "dpre", "dpost", "conv")
        wanted = {name for name in results if tensors.get(name) is not None}
        wanted |= {"dk"} if out.filter or out.skip is not None else set()
        given, left = assigned(self.bwd if spectrum is not None else (), wanted)
        for kernel, those in given:
            spec = self._variant_of_bwd(kernel.spec, those, *gates, out.skip is not None)
            sequences = tuple(one for name in spec.sequences if (one := tensors[name]) is not None)
            channels = sequences[0].shape[1]
            splits = max(1, kernel.programs // channels)  # as in _splits
            sums = self._sums(spec, sequences[0], splits) if "dk" in those else ()
            read = (*sums[: 1 + spec.skip], *(spectrum or ()))
            self._launch(spec, splits * channels, sequences, read)
            if sums:
                self.filters.gradients(*sums, spec, out)
        return left

    def _variant_of_bwd(
        self, spec: FftConvSpec, results: tuple[str, ...], pre: bool, post: bool, skip: bool
    ) -> FftConvSpec:
        """The kernel of some of several gradients."""
        key = id(spec), results, pre, post, skip
        found = self._bwd_specs.get(key)
        if found is None:
            found = self._bwd_specs[key] = interned(of_call(spec, results, pre, post, skip))
        return found

    def _largest(self, d: Tensor, gate: Tensor | None) -> Tensor | None:
        """The largest |d gate| of each tile, where a kernel with an outer stage scales by it: it meets none as a
        whole."""
        if not self.dk.scales or not (self.spec.staged or self.dk.staged):
            return None
        return largest_of(d, gate, LargestSpec(dtype=DTYPES[d.dtype], rows=self.dk.rows), self.programs)

    def _variant_of_dk(self, pre: bool, post: bool, skip: bool) -> FftConvSpec:
        """The kernel of the filter's gradient with other gates, or the skip's gradient."""
        found = self._dk_specs.get((pre, post, skip))
        if found is None:
            wanted = replace(self.dk, pre_gate=pre, post_gate=post, skip=skip)
            found = self._dk_specs[pre, post, skip] = interned(wanted)
        return found

    def _variant(self, transpose: bool, pre: bool, post: bool) -> FftConvSpec:
        """The kernel with other gates, or of the transpose."""
        found = self._specs.get((transpose, pre, post))
        if found is None:
            wanted = replace(self.spec, transpose=transpose, pre_gate=pre, post_gate=post, add=False)
            found = self._specs[transpose, pre, post] = interned(wanted)
        return found

    def _spectrum(self, x: Operands) -> tuple[Tensor, Tensor]:
        """The filter's spectrum; of a filter that is kept it is made once."""
        spec = self.spec
        how = ("fused", spec.ring, spec.radices, spec.compute, self.ring.lo, self.ring.hi, self.ring.centre)
        kept = kept_spectra.of(x)
        return self._transformed(x) if kept is None else kept.get(how, lambda: self._transformed(x))

    def _transformed(self, x: Operands) -> tuple[Tensor, Tensor]:
        """The spectrum made anew, and the powers of two it was divided by."""
        return self.filters.spectrum(x)

    def _convolve(
        self,
        spec: FftConvSpec,
        u: Tensor,
        pre: Tensor | None,
        post: Tensor | None,
        y: Tensor,
        spectrum: tuple[Tensor, Tensor],
        add: Tensor | None = None,
        largest: Tensor | None = None,
    ) -> None:
        gates = (u if pre is None else pre, u if post is None else post)
        programs = self.programs if spec.staged else self._splits(u.shape[1]) * u.shape[1]
        self._launch(spec, programs, (u, *gates, y, *([] if add is None else [add])), spectrum, largest)

    def _splits(self, channels: int) -> int:
        """Programs of a channel: all do as many, also where the plan was made for another number of channels."""
        return max(1, self.programs // channels)

    def _filter_gradient(self, dy: Tensor, x: Operands, out: Gradients, largest: Tensor | None) -> None:
        """Fill the gradients of taps and skip."""
        pre, post = x.pre_gate is not None, x.post_gate is not None
        spec = self._variant_of_dk(pre, post, out.skip is not None)
        channels = x.u.shape[1]
        sums = 1 if spec.staged or self.spec.staged else self._splits(channels)
        programs = min(self.programs, channels) if spec.staged else sums * channels
        dkf, dskip = self._sums(spec, x.u, sums)
        gates = (x.u if x.pre_gate is None else x.pre_gate, dy if x.post_gate is None else x.post_gate)
        self._launch(spec, programs, (x.u, *gates, dy), (dkf, dskip), largest)
        self.filters.gradients(dkf, dskip, spec, out)

    def _sums(self, spec: FftConvSpec, u: Tensor, sums: int) -> tuple[Tensor, Tensor]:
        """Room for a channel's `sums` partial sums of the spectrum of the filter's gradient, and of the skip's."""
        stack = 1 if spec.staged else spec.stack  # with an outer stage, what is stacked are different bins
        made = u.new_zeros if spec.staged else u.new_empty  # there sums are added to what is in memory
        dkf = made((u.shape[1], sums, 2, stack, spec.n0, spec.n1, spec.n2), dtype=torch.float32)
        return dkf, dkf.new_empty((u.shape[1], sums))

    def _launch(
        self,
        spec: FftConvSpec,
        programs: int,
        sequences: tuple[Tensor, ...],
        spectra: tuple[Tensor, ...],
        largest: Tensor | None = None,
    ) -> None:
        """Launch with the kernel's sequences in its order and their strides; `spectra` are what
        the part reads or writes, `largest` are those of the gradient which comes in."""
        u = sequences[0]
        batch, channels, length = u.shape
        if spec.full and not spec.fills(length, batch):
            raise M2GenError(
                f"{spec.name}, which masks nothing",
                f"sequences of {length} samples, {batch} of a channel, which leave places of its tiles empty",
                "run the plan on the sizes that it was made for",
            )
        pointers = [*sequences, *spectra, *self._constants(spec, u)]  # in the order of the kernels' arguments
        if spec.staged and spec.scales and largest is not None:
            pointers.append(largest)
        if spec.staged:
            pointers.append(u.new_empty((programs, spec.scratch_bytes), dtype=torch.uint8).view(TORCH[spec.compute]))
        work = (channels, programs) if spec.staged else (programs // channels,)
        strides = [stride for tensor in sequences for stride in tensor.stride()]
        launch(spec, programs, *pointers, batch, length, self.shift, *work, *strides)

    def _constants(self, spec: FftConvSpec, u: Tensor) -> list[Tensor]:
        """Matrices and twiddles on u's device."""
        key = spec.radices, spec.stack, u.get_device()
        found = self._tables.get(key)
        if found is None:
            found = self._tables[key] = _constants(spec, u.device)
        return found


def _filters(ring: Ring, spec: FftConvSpec, of: FilterKernels) -> Filters:
    return FusedFilters(ring, spec, of.forward, of.back) if of.forward else LibraryFilters(ring, spec)


def _constants(spec: FftConvSpec, device: torch.device) -> list[Tensor]:
    """A1, B2 and twiddles of what is on chip, and A0 and twiddles of an outer stage."""
    dtype, inner = TORCH[spec.compute], "cyclic" if spec.staged else spec.ring
    found = [
        left_matrix(inner, spec.n1, spec.n2, dtype, device, spec.stack),
        right_matrix(spec.n2, dtype, device),
        ring_twiddles(inner, spec.n1, spec.n2, device),
    ]
    if spec.staged:
        rest = spec.n1 * spec.n2
        found += [left_matrix(spec.ring, spec.n0, rest, dtype, device), ring_twiddles(spec.ring, spec.n0, rest, device)]
    return found

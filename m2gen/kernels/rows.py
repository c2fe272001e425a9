"""The convolutions of a large ring's rows between its passes (kernels/outer.py), in place, by few programs.

Each row has bins of its own, and where the batch is small there are few complex rows to the same bins: a program of the
kernel on chip would read the matrices for each. This one does all rows in turn. Compiled and interpreted, not yet run
on a device.
"""

from __future__ import annotations

from dataclasses import dataclass

from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.spec import Resources


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsSpec(FftConvSpec):
    """The parts "fwd", "dk" and "bwd" (of du, conv and dk) of FftConvSpec on the cyclic ring, `full`, without gates;
    all in `compute`.

    ranged  of what sums the filter's gradient: each tile of D was divided by a power of two of its largest number
    """

    ranged: bool = False

    @property
    def name(self) -> str:
        """For example rows_fwd_n4096_r64x64_cyclic_fp16_fp16_full_w4_s2."""
        own = super(RowsSpec, self).name.replace("fftconv", "rows")  # a dataclass with slots is made anew
        return own.replace("_full", "_full_ranged") if self.ranged else own

    @property
    def template(self) -> str:
        return f"triton/outer/rows{'' if self.part == 'fwd' else '_' + self.part}.py.jinja"

    @property
    def surveyed(self) -> str:
        """Several gradients have entries of their own: two tiles are on their way, and bins of others each time."""
        named = super(RowsSpec, self).surveyed
        return f"rows {named}" if self.part == "bwd" else named

    @property
    def reload_spectrum(self) -> bool:
        """For each tile there are other bins."""
        return True

    @property
    def reloads(self) -> bool:
        """Twiddles are kept, as all else that is read in the loop would be fetched ahead."""
        return False

    def resources(self, arch: str | None = None) -> Resources:
        """With two stages the bins of the next tile are read ahead, too; on gfx942 both tiles of "dk" are laid out."""
        found = super(RowsSpec, self).resources(arch)
        ahead = 2 * self.size * COMPUTE_BYTES[self.compute] if self.num_stages > 1 and self.part == "fwd" else 0
        times = 2 if arch == "gfx942" and self.part == "dk" else 1
        return Resources(shared_bytes=times * found.shared_bytes + ahead, threads=found.threads)

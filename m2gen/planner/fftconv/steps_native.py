"""A long convolution by one generated C++ kernel."""

from __future__ import annotations

from dataclasses import dataclass, replace

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv_cpp import FftConvCppSpec
from m2gen.planner.fftconv import cost
from m2gen.planner.fftconv.formulas import FORMULAS
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import Conv, Part
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.step import Estimate, Reluctance, Terms

_LEAST_THREE = 384  # points of a ring; below, 2^k alone: a call's fixed cost is most of it
# times that another ring has to be faster: short sequences are those of many lengths, and compiling takes the same
_SHORT, _OFF_LADDER_SHORT = 2048, 1.4
_LONG, _OFF_LADDER = 65536, 1.1


@dataclass(frozen=True, slots=True)
class NativeConv(Conv):
    """One generated C++ kernel that does the whole convolution, the filter's transform included, row by row.

    `channels` are done together, where channels are neighbours in memory. `bwd` is the kernel of all gradients, which
    does at most a vector of them. `keep`: spectra of filters that do not change are kept from call to call, few enough
    to stay in cache.
    """

    spec: FftConvCppSpec
    bwd: FftConvCppSpec
    keep: bool

    @property
    def choice(self) -> str:
        how = "x".join(map(str, self.transform.radices)) or str(self.transform.size)
        lanes = ", a channel a lane" if self.spec.wide else ""
        folded = ", folded" if self.fold else ""
        return f"{how} channels {self.channels}{lanes}{folded}, spectra {'kept' if self.keep else 'made anew'}"

    @property
    def style(self) -> str:
        vectors = self.channels // self.spec.vector
        together = "a vector" if self.channels <= self.spec.vector else f"{vectors} vectors"
        lanes = ", a channel a lane" if self.spec.wide else ""
        return f"{_order(self.spec)}, {together}{lanes}, {'kept' if self.keep else 'made anew'}"

    @property
    def arithmetic(self) -> tuple[object, ...]:
        """The order of the sums: that of a sequence alone, in any batch."""
        return self.transform, self.fold, self.spec.wide

    @property
    def reluctance(self) -> Reluctance | None:
        """Rings of 2^k and of 3 2^k points are the ladder. Any other has to be estimated clearly faster: a data loader
        of random lengths would have a kernel compiled for each of them."""
        size = self.transform.size
        power = size // 3 if size % 3 == 0 and size >= _LEAST_THREE else size
        if power.bit_count() == 1 or size > _LONG:
            return None
        return Reluctance(_OFF_LADDER_SHORT if size <= _SHORT else _OFF_LADDER, "few other lengths share its kernels")

    @property
    def kept_otherwise(self) -> NativeConv:
        return replace(self, keep=not self.keep)

    @property
    def _places(self) -> str:
        return f"{self.transform.size} points of {2 * self.transform.size} places"

    def _who(self, problem: FftConvProblem) -> str:
        return f"kernel    {self.spec.name}, {self.channels} channels a work item"

    def parts(self, problem: FftConvProblem) -> dict[str, FftConvCppSpec]:
        """All that is not "fwd" is done by one kernel."""
        return {"fwd": self.spec, "transpose": self.bwd, "dk": self.bwd}

    def kernels(self, problem: FftConvProblem, gradients: bool = True) -> tuple[FftConvCppSpec, ...]:
        kept = (replace(self.spec, kept=True), self.spec.of_filters) if self.keep else ()
        return (self.spec, *kept, *((self.bwd,) if gradients else ()))

    def terms_of(self, part: Part, problem: FftConvProblem, transform: Transform, limits: DeviceLimits) -> Terms:
        return Terms(cost.native_values(problem, self.spec, self.channels, limits), FORMULAS["native", part])

    def estimates(self, problem: FftConvProblem, limits: DeviceLimits) -> tuple[Estimate, Estimate]:
        return cost.native_estimates(problem, self.spec, self.channels, limits)

    def __str__(self) -> str:
        return f"(native-conv {self.transform} (channels {self.channels}){' (fold)' * self.fold} {self.spec.name})"


def _order(spec: FftConvCppSpec) -> str:
    """Where odd radices and eights stand among the passes."""
    radices = [radix for radix in spec.radices if radix > 1]
    twos = [radix for radix in radices if radix % 2 == 0]
    words = []
    if twos and radices[0] % 2:
        words.append("odd first")
    if twos and radices[0] % 2 == 0 and radices[-1] % 2:
        words.append("odd last")
    falls = twos == sorted(twos, reverse=True)
    words.append("no eights" if 8 not in twos else "twos last" if twos[-1] == 2 else "falling" if falls else "rising")
    return " ".join(words)

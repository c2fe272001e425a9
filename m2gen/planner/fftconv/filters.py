"""What makes a fused convolution's filter its spectrum, and takes its gradient back to taps: generated kernels, one
launch each to 4096 points and two beyond, or PyTorch's FFT with the copies around it, about ten."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from m2gen.device.limits import DeviceLimits
from m2gen.kernels.fftconv import COMPUTE_BYTES, FftConvSpec
from m2gen.kernels.spectrum import SpectrumSpec
from m2gen.kernels.survey import FAMILIES
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.transform import Transform
from m2gen.planner.step import NUMBERS, Arithmetic, Cost, Estimate, Terms

PRECISION = {"wgmma": "tf32x3", "tcgen05": "tf32x3", "mma": "tf32x3", "mfma": "ieee"}  # of float32 products
# points that one block transforms at once, and the largest outer radix, by the survey's ways of laying data out: with
# mma.sync both operands of a product stand in registers, in two TF32 halves, and those of 64 x 64 spill by thousands
_AT_ONCE = {"wgmma": (4096, 64), "tcgen05": (4096, 64), "mfma": (4096, 64), "mma": (2048, 32)}
_OWN = {  # (n0, n1, n2) where the consumer's do not do
    4096: (16, 16, 16),
    8192: (32, 16, 16),
    16384: (32, 32, 16),
    32768: (32, 32, 32),
    65536: (32, 64, 32),
}
_ROOM = 1024  # bytes that the driver keeps of each block's shared memory
# seconds of a program, and more for each point that a thread holds; registers likewise, to 255. From kernels compiled
# for sm90 (900 instructions and 75 a point, at about 1 ns), and from no measurement.
_PROGRAM, _POINT = 4e-6, 75e-9
_REGISTERS, _MORE, _MOST = 96, 8, 255


@dataclass(frozen=True, slots=True)
class FilterKernels:
    """The generated kernels, in the order of their launches; or none and `why`."""

    forward: tuple[SpectrumSpec, ...] = ()
    back: tuple[SpectrumSpec, ...] = ()
    why: str = ""

    def transform(self, spec: FftConvSpec) -> Transform:
        """That of the filters for a convolution by `spec`."""
        if self.forward:
            return Transform("monarch", self.forward[0].size, self.forward[0].radices)
        return Transform("fft", spec.size, ())

    @property
    def parts(self) -> dict[str, SpectrumSpec]:
        """By their names in `m2gen show --part`."""
        names = {"fwd": "spectrum", "inverse": "taps"}
        return {names.get(one.part, one.part): one for one in (*self.forward, *self.back)}

    def estimates(
        self, problem: FftConvProblem, limits: DeviceLimits, otherwise: tuple[Estimate, Estimate]
    ) -> tuple[Estimate, Estimate]:
        """Of the spectrum and the convolution, `otherwise` by PyTorch's FFT."""
        return (estimate(self.forward, problem, limits), otherwise[1]) if self.forward else otherwise

    def terms(self, part: str, problem: FftConvProblem, limits: DeviceLimits) -> Terms | None:
        """Of the spectrum; None of another part, and where it is PyTorch's."""
        if part != "filter" or not self.forward:
            return None
        return Terms(filter_values(self.forward, problem, limits), filter_cost)

    @property
    def line(self) -> str:
        """For `explain`."""
        names = ", ".join(one.name for one in self.forward)
        return f"filter    its spectrum by {names or f'PyTorch: {self.why}'}"


def kernels(problem: FftConvProblem, spec: FftConvSpec, dk: FftConvSpec, limits: DeviceLimits) -> FilterKernels:
    """Those for the spectrum that `spec` reads and the sums that `dk` writes, with warps for the device."""
    found = FilterKernels(_forward(problem, spec, limits), _back(problem, dk, limits))
    for one in (*found.forward, *found.back):
        needed = one.resources(limits.arch).shared_bytes
        if needed > limits.shared_bytes:
            return FilterKernels(
                why=f"{one.name} takes {needed / 1024:.0f} KiB of {limits.shared_bytes / 1024:.0f} KiB shared memory"
            )
    return found


def _forward(problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits) -> tuple[SpectrumSpec, ...]:
    whole = replace(_whole("fwd", problem, spec, limits), compute=spec.compute)
    if whole.n0 == 1:
        return (with_warps(whole, limits),)
    outer = replace(whole, part="fwd_outer", order=(), compute="fp32")
    inner = replace(whole, part="fwd_inner", ring="cyclic", two_sided=False, skip=False)
    return with_warps(outer, limits), with_warps(inner, limits)


def _back(problem: FftConvProblem, dk: FftConvSpec, limits: DeviceLimits) -> tuple[SpectrumSpec, ...]:
    stack = 1 if dk.staged else dk.stack  # with an outer stage, what is stacked are different bins
    whole = replace(_whole("inverse", problem, dk, limits), stack=stack)
    if whole.n0 == 1:
        return (with_warps(whole, limits),)
    inner = replace(whole, part="inverse_inner", ring="cyclic", two_sided=False, skip=False)
    outer = replace(whole, part="inverse_outer", order=(), stack=1)
    return with_warps(inner, limits), with_warps(outer, limits)


def _whole(
    part: Literal["fwd", "inverse"], problem: FftConvProblem, of: FftConvSpec, limits: DeviceLimits
) -> SpectrumSpec:
    """One launch for the whole ring, there or back, beside the kernel `of` that reads its bins or writes their sums."""
    n0, n1, n2 = radices_of(of, limits)
    return SpectrumSpec(
        part=part,
        ring=of.ring,
        order=of.radices,
        two_sided=problem.taps[0] > 0,
        skip=problem.skip,
        precision=PRECISION[FAMILIES[limits.arch]],
        n0=n0,
        n1=n1,
        n2=n2,
    )


def radices_of(consumer: FftConvSpec, limits: DeviceLimits) -> tuple[int, int, int]:
    """(n0, n1, n2): the consumer's own, so that bins are stored as they lie, where its products are small enough."""
    most, outermost = _AT_ONCE[FAMILIES[limits.arch]]
    fits = consumer.n0 <= outermost if consumer.staged else consumer.size <= most
    if fits and max(consumer.radices) <= 64:
        return consumer.n0, consumer.n1, consumer.n2
    return _OWN[consumer.size]


def with_warps(spec: SpectrumSpec, limits: DeviceLimits) -> SpectrumSpec:
    """As many as keep a tile in registers (seen in the compiled kernels of every size)."""
    points = spec.n1 * spec.n2
    if spec.part.endswith("outer"):
        warps = 8
    elif points <= 512:
        warps = max(1, points // 256)
    elif FAMILIES[limits.arch] in ("wgmma", "tcgen05"):
        warps = 2 if points <= 1024 else 4
    else:
        warps = 8 if FAMILIES[limits.arch] == "mma" and points > 1024 else 4
    return replace(spec, num_warps=warps)


# -- what they cost ----------------------------------------------------------------------------------------------------


class FilterValues(NamedTuple):
    """Numbers, or symbols, of a filter's kernels."""

    H: Any
    N: Any
    r: Any  # sum of the radices
    Q: Any  # bytes of a number of the consumer's
    S: Any  # 1 with an outer stage, else 0
    X: Any  # rate of float32 products
    W: Any  # bandwidth of what is written and read again
    t: Any
    l: Any  # seconds that programs take which one multiprocessor does one after another  # noqa: E741


def filter_cost(v: FilterValues, a: Arithmetic) -> Cost:
    """Taps read and bins written, and between two launches float32 rows written and read; complex products of a
    matrix with real and imaginary parts, 8 N r FLOP for each radix r."""
    moved = v.H * v.N * (4 + 2 * v.Q + 16 * v.S)
    flop = 8 * v.H * v.N * v.r
    return Cost(
        flop=flop,
        bytes=moved,
        launches=1 + v.S,
        working_set=v.H * v.N * (4 + 2 * v.Q + 8 * v.S),
        seconds=a.maximum(a.maximum(moved / v.W, flop / v.X), v.l) + (1 + v.S) * v.t,
    )


def filter_values(of: tuple[SpectrumSpec, ...], problem: FftConvProblem, limits: DeviceLimits) -> FilterValues:
    """The numbers of the launches `of`, of a spectrum or of a gradient, whose sums are float32."""
    last = of[-1]
    numbers = 8 + 2 * COMPUTE_BYTES[last.compute]
    return FilterValues(
        H=problem.h,
        N=last.size,
        r=sum(last.radices),
        Q=COMPUTE_BYTES[last.compute],
        S=len(of) - 1,
        X=limits.matrix16 / 6,
        W=limits.bandwidth(problem.h * last.size * numbers),
        t=limits.call_seconds,
        l=sum(_alone(one, problem.h, limits) for one in of),
    )


def _alone(spec: SpectrumSpec, channels: int, limits: DeviceLimits) -> float:
    """Seconds of a launch whose programs wait for their own products alone."""
    needs, outer = spec.resources(limits.arch), spec.part.endswith("outer")
    points = (spec.n0 * spec.columns if outer else spec.n1 * spec.n2) / (32 * spec.num_warps)
    by_registers = limits.registers // int(min(_MOST, _REGISTERS + _MORE * points) * needs.threads)
    held = max(1, min(by_registers, (limits.shared_bytes + _ROOM) // (needs.shared_bytes + _ROOM)))
    return -(-channels * spec.programs // (limits.cores * held)) * (_PROGRAM + _POINT * points)


def estimate(of: tuple[SpectrumSpec, ...], problem: FftConvProblem, limits: DeviceLimits) -> Estimate:
    """Of a spectrum, or of taps from sums of spectra."""
    return Estimate(*map(float, filter_cost(filter_values(of, problem, limits), NUMBERS)))

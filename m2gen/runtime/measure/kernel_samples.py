"""Measured kernels of a GPU, read from results of `python -m bench gpu` and its kin (bench/results/*gpu*.json).

A row "gpu kernels" is one launch: a forward kernel alone. Part "dk" is the whole gradient of a filter, as it was
when that was measured (2026-11-26): the kernel, and behind it about ten launches of torch's own that sum, transform
back and place, over some 26 times the bytes of the spectra. Kernel by kernel ("gpu profile") it took 0.179 of
0.257 ms at 1024 points, 1.56 of 1.73 at 4096, 6.68 of 7.15 at 8192 and 6.94 of 8.70 at 32768: that tail is in its
estimate.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from m2gen.device.limits import DeviceLimits
from m2gen.errors import M2GenError, WisdomError
from m2gen.kernels.fftconv import FftConvSpec
from m2gen.kernels.named import named
from m2gen.kernels.survey import found
from m2gen.planner.fftconv.cost import fused_seconds
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.programs import programs
from m2gen.planner.problems import parse
from m2gen.runtime.measure.fit import fitted

LEAST = 12  # kernels that a fit needs: there are seven constants
_TAIL_CALLS, _TAIL_BYTES = 10, 26  # launches behind the kernel of a filter's gradient; bytes over those of its spectra
_DO = "give files of python -m bench gpu, such as bench/results/2026-11-26-gpu-kernels-h100.json"


@dataclass(frozen=True, slots=True)
class KernelSample:
    """One measured launch, or one filter's gradient (`whole`)."""

    problem: FftConvProblem
    spec: FftConvSpec
    count: int  # programs
    seconds: float
    whole: bool = False
    weight: float = 1.0

    @property
    def group(self) -> str:
        """What it is compared with: others of its problem and part."""
        return f"{self.problem}, {self.spec.part}{' and what follows' if self.whole else ''}"

    def expected(self, limits: DeviceLimits) -> float:
        """The seconds that a row's constants let one expect."""
        launch = fused_seconds(self.problem, self.spec, limits, self.count)
        return launch + (self._tail(limits) if self.whole else 0.0)

    def _tail(self, limits: DeviceLimits) -> float:
        spectra = 8 * self.problem.h * self.spec.size
        return _TAIL_CALLS * limits.call_seconds + _TAIL_BYTES * spectra / limits.bandwidth(2 * spectra)


def read(paths: Sequence[str], limits: DeviceLimits) -> list[KernelSample]:
    """Every measured kernel of the files. Raises WisdomError where a file is no such result or of another device."""
    data = [sample for path in paths for sample in _of_file(Path(path), limits)]
    if len(data) < LEAST:
        raise WisdomError(
            f"a fit of {limits.arch} to {', '.join(paths)}",
            f"{len(data)} measured kernels of fused convolutions are in there, and a fit needs {LEAST}",
            "measure more problems, or give further files",
        )
    return data


def _of_file(path: Path, limits: DeviceLimits) -> Iterator[KernelSample]:
    asked = f"measured kernels in {path}"
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WisdomError(asked, f"it cannot be read as JSON ({error})", _DO) from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), list):
        raise WisdomError(asked, "there are no results of a benchmark in it", _DO)
    _check_device(asked, data.get("provenance"), limits)
    try:
        for row in data["results"]:
            yield from _samples(row, limits)
    except (AttributeError, KeyError, TypeError, ValueError, M2GenError) as error:
        raise WisdomError(asked, f"a row is malformed ({type(error).__name__}: {error})", _DO) from error


def _check_device(asked: str, provenance: Any, limits: DeviceLimits) -> None:
    """The card's name has to be that of the row's product, or the row's architecture has to be told."""
    told = provenance if isinstance(provenance, dict) else {}
    card, arch = str(told.get("gpu", "")), str(told.get("capability", ""))
    model = next((word for word in limits.description.split() if any(map(str.isdigit, word))), limits.description)
    if arch and f"sm{arch.replace('.', '')}" != limits.arch:
        raise WisdomError(asked, f"they were measured on sm{arch.replace('.', '')}", f"fit that row, not {limits.arch}")
    if not arch and model.lower() not in card.lower():
        found = f"they were measured on {card or 'a card that is not named'}"
        raise WisdomError(asked, found, f"fit its own row; {limits.arch} is {limits.description}")


def _samples(row: Mapping[str, Any], limits: DeviceLimits) -> Iterator[KernelSample]:
    """Those of one row: one, the kernels of a profile, or none of a row that is about something else."""
    if row["group"] == "gpu kernels":
        kernels = [(row["kernel"], 1, 1e-3 * row["ms"]["m2gen"]["median"])]
    elif row["group"] == "gpu profile":
        kernels = [(name, count, 1e-6 * microseconds) for name, count, microseconds in row["kernels"]]
    else:
        return
    problem = parse(row["problem"])
    if not isinstance(problem, FftConvProblem):
        return
    for name, count, seconds in kernels:
        spec = named(name)
        if spec is None or found(spec, limits.arch) is None:
            continue
        if not (math.isfinite(seconds) and seconds > 0 and count > 0):
            raise ValueError(f"{name} took {seconds} s in {count} launches")
        whole = spec.part == "dk" and row["group"] == "gpu kernels"
        yield _sample(problem, spec, limits, row.get("programs"), seconds / count, whole)


def _sample(
    problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits, count: Any, seconds: float, whole: bool
) -> KernelSample:
    """`count` programs are those of the forward kernel that it was measured with; None: as it is planned today."""
    if spec.part == "dk":  # its gates are the problem's, named or not
        spec = replace(spec, pre_gate=problem.pre_gate, post_gate=problem.post_gate, skip=problem.skip)
    launched = programs(problem, limits, spec) if count is None else int(count)
    if spec.part == "dk" and spec.staged:
        launched = min(launched, problem.h)
    return KernelSample(problem, spec, launched, seconds, whole)


# -- how good a row is -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KernelQuality:
    """How far estimates are from measured kernels, and what choosing by them among the measured would cost."""

    errors: tuple[float, ...]  # |estimate / measured - 1|
    regrets: Mapping[str, float]  # by group of two or more

    @property
    def median(self) -> float:
        return statistics.median(self.errors)

    @property
    def worst(self) -> float:
        return max(self.errors)

    @property
    def worst_regret(self) -> float:
        return max(self.regrets.values(), default=1.0)

    def __str__(self) -> str:
        return (
            f"estimates off by {100 * self.median:.1f} % (median), {100 * self.worst:.1f} % at worst; regret of the "
            f"choice among the measured {self.worst_regret:.3f} at worst, over {len(self.regrets)} choices"
        )


def quality(data: Sequence[KernelSample], limits: DeviceLimits) -> KernelQuality:
    """That of a row over all samples."""
    return _quality(data, [sample.expected(limits) for sample in data])


def quality_left_out(data: Sequence[KernelSample], limits: DeviceLimits) -> KernelQuality:
    """The same where each problem is estimated by a row that was fitted to the other problems only."""
    expected = [0.0] * len(data)
    for problem in {sample.problem for sample in data}:
        row = fitted([sample for sample in data if sample.problem != problem], limits)
        for i, sample in enumerate(data):
            if sample.problem == problem:
                expected[i] = sample.expected(row)
    return _quality(data, expected)


def _quality(data: Sequence[KernelSample], expected: Sequence[float]) -> KernelQuality:
    errors = tuple(abs(seconds / sample.seconds - 1) for sample, seconds in zip(data, expected, strict=True))
    groups: dict[str, list[tuple[float, float]]] = {}
    for sample, seconds in zip(data, expected, strict=True):
        groups.setdefault(sample.group, []).append((seconds, sample.seconds))
    regrets = {name: min(rows)[1] / min(t for _, t in rows) for name, rows in groups.items() if len(rows) > 1}
    return KernelQuality(errors, regrets)

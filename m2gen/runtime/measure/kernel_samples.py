"""Measured kernels of a GPU, read from results of `python -m bench gpu` and its kin (bench/results/*gpu*.json).

A row "gpu kernels" is one launch: a forward kernel alone. Part "dk" is the whole gradient of a filter, as it was
when that was measured (2026-11-26): the kernel, and behind it about ten launches of torch's own that sum, transform
back and place, over some 26 times the bytes of the spectra. Kernel by kernel ("gpu profile") it took 0.179 of
0.257 ms at 1024 points, 1.56 of 1.73 at 4096, 6.68 of 7.15 at 8192 and 6.94 of 8.70 at 32768: that tail is in its
estimate.
"""

from __future__ import annotations

import json
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
LAUNCH_SECONDS = (1e-7, 100.0)  # less than the shortest launch takes, more than any that somebody waits for
_DO_ROW = "mend that row, or take it out"
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


@dataclass(frozen=True, slots=True)
class Measured:
    """What files of results have of a GPU's kernels."""

    samples: list[KernelSample]
    cards: tuple[str, ...]  # on which they were measured
    others: int  # kernels that are of no fused convolution, or of none that the row's table knows


def read(paths: Sequence[str], limits: DeviceLimits) -> list[KernelSample]:
    """Every measured kernel of the files. Raises WisdomError where a file is no such result or of another device."""
    return measured(paths, limits).samples


def measured(paths: Sequence[str], limits: DeviceLimits) -> Measured:
    """The same, with the cards, and how many kernels are passed over. Raises WisdomError."""
    files = [_file(Path(path)) for path in paths]
    if limits.kind != "gpu":
        raise WisdomError(
            f"a fit of {limits.arch} to measured kernels", "they are a GPU's", "name its row, such as --target sm90"
        )
    samples: list[KernelSample] = []
    others = 0
    for asked, provenance, rows in files:
        _check_device(asked, provenance, limits)
        for number, row in enumerate(rows, start=1):
            found = _of_row(f"{asked}, row {number} of its results", row, limits)
            samples += [one for one in found if one is not None]
            others += sum(one is None for one in found)
    if len(samples) < LEAST:
        raise WisdomError(
            f"a fit of {limits.arch} to {', '.join(paths)}",
            f"{len(samples)} measured kernels of fused convolutions are in there, and a fit needs {LEAST}",
            "measure more problems, or give further files",
        )
    return Measured(samples, tuple(dict.fromkeys(_card(provenance) for _, provenance, _ in files)), others)


def _file(path: Path) -> tuple[str, Mapping[str, Any], list[Any]]:
    """What is asked, for errors, the provenance and the rows of a file, which is a GPU's. Raises WisdomError."""
    asked = f"measured kernels in {path}"
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise WisdomError(asked, "there is no such file", _DO) from error
    except OSError as error:
        raise WisdomError(asked, f"it cannot be read ({error.strerror})", _DO) from error
    except ValueError as error:
        raise WisdomError(asked, f"it is no JSON ({error})", _DO) from error
    if not isinstance(data, dict) or not isinstance(data.get("results"), list):
        raise WisdomError(asked, "there are no results of a benchmark in it", _DO)
    provenance = data.get("provenance")
    told: Mapping[str, Any] = provenance if isinstance(provenance, dict) else {}
    if "gpu" not in told and "processor" in told:
        raise WisdomError(asked, f"these are a CPU's results ({told['processor']}), whatever the --target", _DO)
    return asked, told, data["results"]


def _card(provenance: Mapping[str, Any]) -> str:
    return str(provenance.get("gpu") or "a card that is not named")


def _check_device(asked: str, provenance: Mapping[str, Any], limits: DeviceLimits) -> None:
    """The card's name has to be that of the row's product, or the row's architecture has to be told."""
    nvidia = limits.arch.startswith("sm")  # PyTorch tells AMD's architectures by a number that is not theirs
    card, arch = _card(provenance), str(provenance.get("capability", "")) if nvidia else ""
    model = next((word for word in limits.description.split() if any(map(str.isdigit, word))), limits.description)
    if arch and f"sm{arch.replace('.', '')}" != limits.arch:
        found = f"they were measured on sm{arch.replace('.', '')}, {card}"
        raise WisdomError(asked, found, f"fit that row, not {limits.arch}")
    if not arch and model.lower() not in card.lower():
        found = f"they were measured on {card}"
        raise WisdomError(asked, found, f"fit its own row; {limits.arch} is {limits.description}")


# -- a row -------------------------------------------------------------------------------------------------------------


def _of_row(asked: str, row: Any, limits: DeviceLimits) -> list[KernelSample | None]:
    """The kernels of one row, None for one that is no fused convolution's: none of a row about something else. Raises
    WisdomError that names the row."""
    try:
        return list(_samples(row, limits))
    except KeyError as error:
        raise WisdomError(asked, f"it has no {error}", _DO_ROW) from error
    except (AttributeError, TypeError, ValueError, M2GenError) as error:
        raise WisdomError(asked, f"it is malformed: {error}", _DO_ROW) from error


def _samples(row: Mapping[str, Any], limits: DeviceLimits) -> Iterator[KernelSample | None]:
    if row["group"] == "gpu kernels":
        kernels = [(row["kernel"], 1, _number(row["ms"]["m2gen"]["median"], "ms") * 1e-3)]
    elif row["group"] == "gpu profile":
        kernels = [(name, _count(many, "launches"), _number(us, "us") * 1e-6) for name, many, us in row["kernels"]]
    else:
        return
    problem = parse(row["problem"])
    for name, many, seconds in kernels:
        spec = named(name) if isinstance(problem, FftConvProblem) else None
        if not isinstance(problem, FftConvProblem) or spec is None or found(spec, limits.arch) is None:
            yield None
            continue
        if not LAUNCH_SECONDS[0] <= seconds / many <= LAUNCH_SECONDS[1]:
            least, most = LAUNCH_SECONDS
            raise ValueError(f"{name} took {seconds / many:.3g} s a launch, where {least:g} to {most:g} s are possible")
        _check_fits(problem, spec)
        whole = spec.part == "dk" and row["group"] == "gpu kernels"
        yield _sample(problem, spec, limits, row.get("programs"), seconds / many, whole)


def _number(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{what} is {value!r}, and no number")
    return float(value)


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{what} is {value!r}, and no whole number from 1 on")
    return value


def _check_fits(problem: FftConvProblem, spec: FftConvSpec) -> None:
    """Raises ValueError where the problem cannot have been computed by the kernel."""
    circle = problem.mode == "circular"
    if spec.ring == "causal":
        held, needed = not circle and problem.n <= spec.size, f"{problem.n} or more, not circular"
    elif circle and not spec.wrap:
        held, needed = problem.n == spec.size, f"{problem.n}"
    else:
        held, needed = problem.linear_size <= spec.size, f"{problem.linear_size} or more"
    if not held:
        ring = f"{spec.size} points, {spec.ring}"
        raise ValueError(f"{problem} is not to be done on the ring of {spec.name} ({ring}); it takes {needed}")
    if spec.dtype != problem.dtype:
        raise ValueError(f"{spec.name} reads {spec.dtype}, and {problem} has {problem.dtype}")
    if spec.full and not spec.fills(problem.n, problem.b):
        raise ValueError(f"{spec.name} masks nothing, and {problem} leaves places of its tiles empty")


def _sample(
    problem: FftConvProblem, spec: FftConvSpec, limits: DeviceLimits, count: Any, seconds: float, whole: bool
) -> KernelSample:
    """`count` programs are those of the forward kernel that it was measured with; None: as it is planned today."""
    if spec.part == "dk":  # its gates are the problem's, named or not
        spec = replace(spec, pre_gate=problem.pre_gate, post_gate=problem.post_gate, skip=problem.skip)
    launched = programs(problem, limits, spec) if count is None else _count(count, "programs")
    if spec.part == "dk" and spec.staged:
        launched = min(launched, problem.h)
    tiles = problem.h * -(-problem.b // spec.batch_rows)
    if count is not None and spec.part == "fwd" and launched > tiles:
        raise ValueError(f"programs is {launched}, and {problem} has {tiles} tiles of {spec.name}")
    if not spec.staged and launched % problem.h:
        raise ValueError(f"programs is {launched}, and on chip each of {problem.h} channels has as many")
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
        off = f"estimates off by {100 * self.median:.1f} % (median), {100 * self.worst:.1f} % at worst"
        if not self.regrets:
            return f"{off}; no choice to judge: one kernel was measured of each problem"
        return (
            f"{off}; regret of the choice among the measured {self.worst_regret:.3f} at worst, over "
            f"{len(self.regrets)} choices"
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

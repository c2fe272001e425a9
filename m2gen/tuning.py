"""What `m2gen tune` and `m2gen wisdom` do: which problems, the progress shown, the fit, tables in and out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from m2gen.errors import WisdomError
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse_all

if TYPE_CHECKING:
    from rich.console import Console

    from m2gen.ahead.models import Sizes
    from m2gen.cache.wisdom import Entry
    from m2gen.device.limits import DeviceLimits
    from m2gen.runtime.measure.fit import Quality
    from m2gen.runtime.measure.tune import Outcome


# -- which problems ----------------------------------------------------------------------------------------------------


def problems_of_corpus(kind: str) -> list[Problem]:
    """The corpus's problems for a CPU (those that it is meant for) or a GPU."""
    from m2gen.testing.corpus import corpus

    here = [entry.problem for entry in corpus() if kind == "gpu" or "cpu" in entry.tags]
    return [problem for problem in here if problem.measured]


def problems_of_models(names: Iterable[str], sizes: Sizes, limits: DeviceLimits) -> list[Problem]:
    """What models call that can be measured, by their folders or presets: found in shapes alone. Raises M2GenError."""
    from m2gen.ahead.models import record
    from m2gen.ahead.record import Wanted

    wanted = Wanted()
    for name in names:
        record(wanted, name, limits, sizes)
    return [problem for problem in wanted.problems if problem.measured]


# -- tuning ------------------------------------------------------------------------------------------------------------


@dataclass
class Totals:
    """How often which was chosen."""

    tuned: int = 0
    changed: int = 0
    before: int = 0
    failed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)


def run(problems: Sequence[Problem], budget: float, again: bool, console: Console) -> Totals:
    """Tune with a progress bar and a line for each problem."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from m2gen.runtime.measure.tune import tune_all

    totals = Totals()
    columns = (
        TextColumn("tuning"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(problems))
        for outcome in tune_all(problems, budget=budget, again=again):
            progress.console.print(_line(outcome, totals))
            progress.advance(bar)
    return totals


def _line(outcome: Outcome, totals: Totals) -> str:
    """What came of one problem; counted in the totals."""
    from m2gen.planner.step import duration

    totals.dropped += [f"{outcome.problem}: {name}: {why}" for name, why in outcome.dropped.items()]
    entry = outcome.entry
    if entry is None:
        if outcome.why == "tuned before":
            totals.before += 1
        else:
            totals.failed.append(f"{outcome.problem}: {outcome.why}")
        return f"{outcome.problem}: {outcome.why}"
    totals.tuned += 1
    took = duration(entry.seconds[entry.choice])
    if entry.choice == entry.default:
        return f"{outcome.problem}: {took}, the estimate's choice: {entry.choice}"
    totals.changed += 1
    gain = entry.seconds.get(entry.default, 0.0) / entry.seconds[entry.choice]
    if gain == 1.0:
        return f"{outcome.problem}: {took}, the estimate's choice, but better with {entry.choice.rpartition(', ')[2]}"
    return f"{outcome.problem}: {took}, {gain:.3f} times as fast as the estimate's choice: {entry.choice}"


def summary(totals: Totals) -> Iterator[str]:
    """Lines for the end."""
    yield (
        f"{totals.tuned} tuned, {totals.changed} of them away from the estimate's choice; "
        f"{totals.before} tuned before; {len(totals.failed)} not tuned"
    )
    yield from (f"dropped: {line}" for line in totals.dropped)


# -- the fit -----------------------------------------------------------------------------------------------------------


def fit(limits: DeviceLimits, keep: bool) -> Iterator[str]:
    """Fit the device's constants to what was tuned here, of a CPU with one thread; lines that tell.

    `keep`: into the user's wisdom; else only the row is printed. Raises WisdomError where nothing was measured.
    """
    from m2gen.cache import wisdom as store
    from m2gen.runtime.measure import fit as fitting
    from m2gen.runtime.measure.wisdom import circumstances

    here = circumstances(limits, 1)
    known = [
        entry
        for entry in store.known(limits.arch)
        if (entry.key.threads, entry.key.processor) == (here.threads, here.processor)
    ]
    data = fitting.samples(known, limits)
    if not data:
        how = "with one thread" if limits.kind == "cpu" else f"on {here.processor}"
        threads = " --threads 1" if limits.kind == "cpu" else ""
        raise WisdomError("a fit", f"nothing was measured here {how}", f"run m2gen tune --corpus{threads} first")
    after = fitting.fitted(data, limits)
    yield f"{len(data)} measured plans of {len(known)} problems"
    yield f"before: {told(fitting.quality(known, limits))}"
    yield f"after:  {told(fitting.quality(known, after))}"
    changed = fitting.printed(after, limits)
    yield changed or "the row's constants are these already"
    if keep:
        yield _kept(after, here.processor)
    elif changed:
        yield _looked(limits, "m2gen tune --fit")


def fit_kernels(limits: DeviceLimits, paths: Sequence[str], keep: bool) -> Iterator[str]:
    """Fit a GPU's constants to measured kernels, results of a benchmark; lines that tell. `keep`: for this very card.

    Raises WisdomError for files that are no such results, or of another device.
    """
    from m2gen.runtime.measure import fit as fitting
    from m2gen.runtime.measure import kernel_samples as kernels
    from m2gen.runtime.measure.wisdom import circumstances

    found = kernels.measured(paths, limits)
    data = found.samples
    after = fitting.fitted(data, limits)
    passed = f"; {found.others} other kernels are passed over" if found.others else ""
    yield f"{len(data)} measured kernels of {len({sample.problem for sample in data})} problems{passed}"
    yield f"measured on {', '.join(found.cards)}; fitted for the row {limits.arch}, {limits.description}"
    yield f"before (the row as it is): {kernels.quality(data, limits)}"
    yield f"after (what is printed):   {kernels.quality(data, after)}"
    yield f"each problem by a fit to the others: {kernels.quality_left_out(data, limits)}"
    changed = fitting.printed(after, limits)
    yield changed or "the row's constants are these already"
    if keep:
        yield _kept(after, circumstances(limits, 1).processor)
    elif changed:
        yield _looked(limits, f"m2gen tune --fit {' '.join(f'--from {path}' for path in paths)}")


def _looked(limits: DeviceLimits, command: str) -> str:
    """What is said where nothing is kept."""
    return (
        f"nothing is kept; {command}, without --print and --target, keeps them for the device at hand, and in "
        f"m2gen/device/{limits.kind}s.py they are the constants of {limits.arch} for everybody"
    )


def _kept(row: DeviceLimits, name: str) -> str:
    """Keep a fitted row's constants for the processor or card called `name`."""
    from m2gen.cache import wisdom as store
    from m2gen.runtime.measure.fit import constants

    found = {constant: getattr(row, constant) for constant in constants(row)}
    today = datetime.now(timezone.utc).date().isoformat()
    return f"kept for {name} in {store.put_constants(row.arch, name, found, today)}"


def told(quality: Quality) -> str:
    """A row's quality in a line."""
    text = f"estimates off by {100 * (quality.error - 1):.0f} % on average; " + (
        f"regret of the choice {quality.mean_regret:.3f} (geometric mean), {quality.worst_regret:.3f} at worst, over "
        f"{len(quality.regrets)} problems"
        if quality.regrets
        else "no choice to judge"
    )
    return text + (f"; not measured: the choice for {'; '.join(quality.unmeasured)}" if quality.unmeasured else "")


# -- tables ------------------------------------------------------------------------------------------------------------


def merged(paths: Sequence[str], out: str) -> str:
    """Merge tables and folders into a table."""
    from m2gen.cache import wisdom as store

    for path in paths:
        if not Path(path).exists():
            raise WisdomError(
                f"wisdom in {path}", "there is no such file or folder", "give tables or folders of entries"
            )
    entries = store.merge(store.load(Path(path)) for path in paths)
    store.export(entries, Path(out))
    return f"{len(entries)} entries in {out}"


def imported(paths: Sequence[str]) -> str:
    """Put every good entry of tables or folders among the user's own, unless a newer one stands there."""
    from m2gen.cache import wisdom as store

    own = {entry.key: entry for entry in store.load(store.place())}
    count = 0
    for entry in store.merge(store.load(Path(path)) for path in paths):
        if entry.key not in own or own[entry.key].date < entry.date:
            if store.put(entry) is None:
                raise WisdomError(
                    f"an entry in {store.place()}", "it cannot be written", "set M2GEN_WISDOM to a folder"
                )
            count += 1
    return f"{count} entries taken into {store.place()}"


def forgotten(words: Sequence[str], everything: bool) -> str:
    """Delete the user's entries of some problems, or all of them."""
    from m2gen.cache import wisdom as store

    if store.place().is_file():
        raise WisdomError(f"forgetting in {store.place()}", "it is a table", "edit it, or set M2GEN_WISDOM to a folder")
    wanted = {str(problem) for problem in parse_all(" ".join(words))}
    gone = [path for path, entry in store.stored(store.place()) if everything or entry.key.problem in wanted]
    for path in gone:
        path.unlink(missing_ok=True)
    return f"{len(gone)} entries forgotten in {store.place()}"


def listed() -> list[Entry]:
    """The user's entries, then the shipped ones of this device."""
    from m2gen.cache import wisdom as store
    from m2gen.runtime.planning import limits_of

    return [*store.load(store.place()), *store.shipped(limits_of().arch)]

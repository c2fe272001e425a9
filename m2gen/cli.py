"""The one program: m2gen demo | plan | show | tune | wisdom | compile | doctor.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from m2gen.errors import M2GenError
from m2gen.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from m2gen.device.limits import DeviceLimits
    from m2gen.planner.plan import Plan
    from m2gen.planner.search import Ranking

_CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Refused(click.ClickException):
    """An M2GenError as one clean message on stderr."""

    exit_code = 2


class _Above0(click.FloatRange):
    """Minutes or seconds: above 0 and finite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no length of time.", param, ctx)


_ABOVE_0 = _Above0(min=0, min_open=True)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except M2GenError as error:
            raise _Refused(str(error)) from error


@click.group(cls=_Group, context_settings=_CONTEXT)
@click.version_option(__version__, prog_name="m2gen", message="%(prog)s %(version)s")
def main() -> None:
    """A compiler for Monarch operators.

    \b
    m2gen plan fftconv n=8192 h=768 b=4 bf16 causal gated
    m2gen show fftconv n=4096 h=768 b=64 bf16 causal gated --target sm90
    m2gen tune fftconv n=8192 h=768 b=4 bf16 causal gated skip
    m2gen wisdom show
    m2gen compile --model 80M --out kernels
    m2gen doctor
    m2gen demo
    """


@main.command(context_settings=_CONTEXT)
@click.argument("problem", nargs=-1)
@click.option(
    "--target", default="auto", show_default=True, help="auto (the device at hand), or sm90, gfx942, avx2, h100 ..."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
@click.option("--model", help="Instead of a PROBLEM: a layer of a model, a folder with a config.json, or 80M, 110M ...")
@click.option("--lengths", default="", help="Of the model's inputs, such as 512,4096.  [default: its longest]")
@click.option("--batches", default="", help="Of the model's inputs.  [default: as many as make 32,768 tokens]")
@click.option("--dtype", default="bf16", show_default=True, help="The model's: fp32, bf16, fp16, fp64.")
@click.option("--backward", is_flag=True, help="The launches of a layer's gradients too.")
def plan(problem: tuple[str, ...], target: str, as_json: bool, model: str | None, **sizes: Any) -> None:
    """Show how PROBLEM would be done on a device, and what it should cost; or every launch of a model's layer, with the
    bytes that it moves. Runs nothing.

    \b
    m2gen plan fftconv n=8192 h=768 b=4 bf16 causal gated skip --target sm90
    m2gen plan --model 80M --lengths 4096 --target h100
    m2gen plan monarch in=4096 out=4096 rows=8192 fp32 'params<=2M'     a shell takes an unquoted < for itself
    fftconv    n= k= h= b=   fp16 bf16 fp32 fp64   causal bidirectional same circular
               gated pre_gated post_gated skip add   bhl blh   wide
    blockdiag  in= out= blocks= rows=   fp16 bf16 fp32 fp64   bias   gelu relu silu   glu   residual
    monarch    in= out= rows=   fp16 bf16 fp32 fp64   order=2  blocks=64x64  'params<=2M'  factors=64x64x64,64x64x64
    shortconv  n= h= b= width= out=   fp16 bf16 fp32 fp64   bias   gated offset masked   bhl blh   to=bhl to=blh
    gate       n= rows=   fp16 bf16 fp32 fp64   gelu relu silu
    turn       n= h= b=   fp16 bf16 fp32 fp64
    """
    from m2gen.planner import search
    from m2gen.planner.problems import parse
    from m2gen.runtime import planning

    if model is not None:
        if problem or as_json:
            raise click.UsageError("--model stands alone: without a PROBLEM, and without --json")
        from m2gen.ahead.traffic import explained

        for line in explained(model, planning.limits_of(target), **sizes):
            click.echo(line)
        return
    if not problem:
        raise click.UsageError("give a PROBLEM, or --model")
    _only_with_a_model(sizes)
    asked, limits = parse(" ".join(problem)), planning.limits_of(target)
    chosen = planning.plan(asked, target)
    if as_json:
        click.echo(chosen.to_json())
        return
    click.echo(chosen.explain(limits))
    click.echo()
    _print_ranking(_console(), search.rank(asked, limits), limits, chosen)


def _only_with_a_model(options: Iterable[str]) -> None:
    """Raises UsageError for those of the options that were given: a PROBLEM says its own sizes."""
    found = click.get_current_context().get_parameter_source
    given = [f"--{name}" for name in options if found(name) is not ParameterSource.DEFAULT]
    if given:
        raise click.UsageError(
            f"{', '.join(given)}: of a --model only; a PROBLEM says its own sizes, as n=4096 b=8 bf16"
        )


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _print_ranking(console: Console, ranking: Ranking, limits: DeviceLimits, chosen: Plan) -> None:
    """Every solver's best plan of each kind, the chosen one marked, and every solver that was rejected."""
    from rich.table import Table

    from m2gen.planner.step import duration

    table = Table(title=f"every solver on {limits.arch}: its best plan of each kind, cheapest first; * the plan above")
    titles = ranking.columns
    for column in ("solver", *titles, "estimate"):
        table.add_column(column, overflow="fold")
    bests = {(plan.solver, plan.body.row[0]): plan for plan in reversed(ranking.plans)}
    for best in sorted(bests.values(), key=lambda plan: plan.estimate.seconds):
        mark = " *" if (best.solver, best.body.row[0]) == (chosen.solver, chosen.body.row[0]) else ""
        table.add_row(f"{best.solver}{mark}", *best.body.row, duration(best.estimate.seconds))
    for solver, reason in ranking.rejections:
        table.add_row(solver, *[""] * (len(titles) - 2), reason, "", "rejected")
    console.print(table)  # what was left out for a reason stands above it, in the plan's own text


@main.command(context_settings=_CONTEXT)
@click.argument("problem", nargs=-1, required=True)
@click.option("--target", default="auto", show_default=True, help="auto (the device at hand), or sm90, h100 ...")
@click.option("--part", help="Of the kernels that do PROBLEM, see above; default the first.")
@click.option("--solver", help="Whose kernel, by the names that m2gen plan lists; default the best that has one.")
@click.option("--source", "view", flag_value="source", default=True, help="The generated source.  [default]")
@click.option("--asm", "view", flag_value="asm", help="The assembly of a CPU kernel, for any CPU.")
@click.option("--ptx", "view", flag_value="ptx", help="The compiler's assembly (AMD's own for gfx942).")
@click.option("--sass", "view", flag_value="sass", help="NVIDIA's machine code.")
@click.option(
    "--resources", "view", flag_value="resources", help="Shared memory, registers, spills, matrix instructions."
)
def show(problem: tuple[str, ...], target: str, part: str | None, solver: str | None, view: str) -> None:
    """Print the kernel generated for PROBLEM. No GPU is needed, not for its assembly either.

    \b
    m2gen show fftconv n=4096 h=768 b=64 bf16 causal gated --target sm90 --resources
    parts of fftconv:
      fwd          the forward pass; of a plan in passes over memory the middle one of analysis, fwd, synthesis
      analysis, synthesis, analysis1, synthesis1 ...     passes over memory before and after it, outermost first
      transpose, dk, bwd, bwd1 ...     the gradients of the input, of the filter, of several at once
      spectrum, spectrum0 ..., fwd_outer, fwd_inner      the filter's spectrum
      taps, taps0 ..., inverse_inner, inverse_outer      its gradient back to taps
      turn, back   channels-last tensors turned before and after;   passes_NAME  of gradients in passes over memory
    parts of blockdiag: fwd, dw (gradient of the weight); on a CPU pack (the weight), on a GPU dz (of the product), dx
    parts of monarch: fwd, and on a GPU dx and dw, on a CPU bwd (all gradients) and sum (of their parts)
    parts of shortconv: fwd, dw; of the gated form mix, and on a GPU mix_bwd, on a CPU ds (gradient behind its taps)
    parts of gate: fwd, bwd   of turn: fwd   (a --part that a plan does not have is answered with those that it has)
    """
    from m2gen.planner.problems import parse
    from m2gen.show import show as text

    click.echo(text(parse(" ".join(problem)), target, view, part, solver))


@main.command(context_settings=_CONTEXT)
@click.argument("problem", nargs=-1)
@click.option("--corpus", is_flag=True, help="The named problems of m2gen's own corpus.")
@click.option("--model", multiple=True, help="What a model calls: a folder with a config.json, or 80M, 110M ...")
@click.option("--lengths", default="", help="Of the model's inputs, such as 512,2048.  [default: its longest]")
@click.option("--batches", default="1", show_default=True, help="Of the model's inputs, such as 1,8.")
@click.option("--dtype", default=None, help="The model's: fp32, bf16, fp16.  [default: its configuration's]")
@click.option("--backward", is_flag=True, help="The kernels of all gradients too.")
@click.option("--target", multiple=True, default=("auto",), show_default=True, help="avx512, avx2, neon, sm90 ...")
@click.option("--out", required=True, type=click.Path(file_okay=False), help="The folder; what is there stays.")
def compile(problem: tuple[str, ...], out: str, target: tuple[str, ...], **wanted: Any) -> None:
    """Compile every kernel of PROBLEMs or models into a folder, for machines that have no compiler.

    \b
    m2gen compile fftconv n=512 h=768 bf16 causal fftconv n=2048 h=768 bf16 causal --out kernels
    m2gen compile --model 80M-2k-retrieval --lengths 512,2048 --batches 1,8 --target avx512 --out kernels
    M2GEN_COMPILED_DIR=kernels python serve.py

    CPU kernels run as they are, on any CPU of the target. Those for GPUs are put into Triton's cache where a call would
    compile one, if the same version of Triton made them for a launch like it; this needs no GPU.
    """
    from m2gen.ahead.command import run

    failed = run(" ".join(problem), out, target, click.echo, **wanted)
    if failed:
        raise _Refused("\n".join([f"{len(failed)} kernels did not compile:", *failed]))


@main.command(context_settings=_CONTEXT)
@click.option("--cxx", envvar="CXX", default=None, help="C++ compiler to look at first.  [environment: CXX]")
def doctor(cxx: str | None) -> None:
    """Show what m2gen finds here: versions, device, compilers, settings, and what would run and why.

    \b
    m2gen doctor
    """
    from rich.table import Table

    from m2gen.doctor import report

    console = _console()
    for title, rows in report(cxx):
        table = Table(title=title, title_justify="left", show_header=False)
        table.add_column("what", no_wrap=True)
        table.add_column("found", overflow="fold")
        for what, found in rows:
            table.add_row(what, found)
        console.print(table)


@main.command(context_settings=_CONTEXT)
@click.option("--minutes", type=_ABOVE_0, default=2.5, show_default=True, help="How long it may take, about.")
@click.option("--seed", default=0, show_default=True, help="Seed of every random number.")
def demo(minutes: float, seed: int) -> None:
    """Train a small M2-GPT on the Python standard library's source, byte by byte, and report what it learnt.

    \b
    m2gen demo --minutes 1
    """
    from m2gen.demo import main as run

    run(minutes=minutes, seed=seed)


@main.command(context_settings=_CONTEXT)
@click.argument("problem", nargs=-1)
@click.option(
    "--corpus", is_flag=True, help="The named problems of real models that are meant for this kind of device."
)
@click.option("--model", multiple=True, help="What a model calls: a folder with a config.json, or 80M, 110M ...")
@click.option("--lengths", default="", help="Of the model's inputs, such as 512,2048.  [default: its longest]")
@click.option("--batches", default="1", show_default=True, help="Of the model's inputs, such as 1,8.")
@click.option("--dtype", default=None, help="The model's: fp32, bf16, fp16.  [default: its configuration's]")
@click.option("--budget", type=_ABOVE_0, default=600.0, show_default=True, help="Seconds that it may take, about.")
@click.option("--threads", type=click.IntRange(min=1), help="Of torch; default as torch chooses.")
@click.option("--again", is_flag=True, help="Problems that were tuned before, too.")
@click.option(
    "--fit", is_flag=True, help="Then fit this device's constants of the cost model; a CPU's with one thread."
)
@click.option(
    "--from", "results", multiple=True, help="With --fit: a benchmark's measured kernels of a GPU, not wisdom."
)
@click.option("--target", help="With --from: the GPU's row, such as sm90; prints.  [default: the device at hand]")
@click.option("--print", "only_print", is_flag=True, help="With --fit: print the constants, keep nothing.")
def tune(
    problem: tuple[str, ...],
    corpus: bool,
    model: tuple[str, ...],
    budget: float,
    threads: int | None,
    again: bool,
    fit: bool,
    results: tuple[str, ...],
    target: str | None,
    only_print: bool,
    **sizes: Any,
) -> None:
    """Measure which plan is fastest for each PROBLEM on this device, and remember it.

    \b
    m2gen tune fftconv n=8192 h=768 b=4 bf16 causal gated skip
    m2gen tune --corpus --budget 600
    m2gen tune --model path/to/m2-bert --lengths 2048,8192 --batches 4
    m2gen tune --fit                          fits to what was tuned, and keeps that for this device
    m2gen tune --fit --from gpu.json          fits to python -m bench gpu's kernels, and keeps that for the card at hand
    m2gen tune --fit --print                  only looks, with --from too; and so does --target:
    m2gen tune --fit --from bench/results/2026-11-26-gpu-kernels-h100.json --target sm90
    
    Every result is kept at once: a tuning that is stopped goes on where it was. What a fit finds is kept for one card
    or processor alone; for everybody it stands in its row of m2gen/device/gpus.py or cpus.py.
    """
    import torch

    from m2gen import tuning
    from m2gen.ahead.models import Sizes
    from m2gen.planner.problems import parse_all
    from m2gen.runtime.planning import limits_of

    if (results and not fit) or (target and not results):
        raise click.UsageError("--target goes with --from, and --from with --fit")
    if threads or fit:
        torch.set_num_threads(1 if fit else threads or 1)
    limits, console = limits_of(), _console()
    asked = parse_all(" ".join(problem)) + (tuning.problems_of_corpus(limits.kind) if corpus else [])
    asked += tuning.problems_of_models(model, Sizes.of(**sizes), limits) if model else []
    if not asked and not fit:
        raise click.UsageError("give a PROBLEM, --corpus, --model or --fit")
    for line in tuning.summary(tuning.run(asked, budget, again, console)) if asked else ():
        console.print(line)
    lines = tuning.fit(limits, keep=not only_print) if fit and not results else iter(())
    if results:
        row = limits if target is None else limits_of(target)
        lines = tuning.fit_kernels(row, results, keep=not only_print and target is None)
    for line in lines:
        console.print(line, markup=False, highlight=False)


@main.group(context_settings=_CONTEXT)
def wisdom() -> None:
    """Look at, move and merge what tuning measured.

    \b
    m2gen wisdom show
    m2gen wisdom export table.json
    m2gen wisdom import table.json
    m2gen wisdom merge a.json b.json --out table.json
    m2gen wisdom forget fftconv n=8192 h=768 b=4 bf16 causal gated skip
    """


@wisdom.command("show", context_settings=_CONTEXT)
def show_() -> None:
    """Every entry, the user's first."""
    from rich.table import Table

    from m2gen import tuning
    from m2gen.cache.wisdom import place
    from m2gen.planner.step import duration

    table = Table(title=f"wisdom in {place()}, then what is shipped", title_justify="left")
    for column in ("problem", "arch", "threads", "choice", "time", "measured"):
        table.add_column(column, overflow="fold")
    for entry in tuning.listed():
        key, took = entry.key, duration(entry.seconds[entry.choice])
        table.add_row(key.problem, key.arch, str(key.threads), entry.choice, took, f"{entry.date[:10]} {key.processor}")
    _console().print(table)


@wisdom.command("merge", context_settings=_CONTEXT)
@click.argument("paths", nargs=-1, required=True, type=click.Path())
@click.option("--out", required=True, type=click.Path(), help="The table to write.")
def merge_(paths: tuple[str, ...], out: str) -> None:
    """Merge tables or folders of entries; of equal keys the newest entry stays."""
    from m2gen.tuning import merged

    click.echo(merged(paths, out))


@wisdom.command("export", context_settings=_CONTEXT)
@click.argument("out", type=click.Path())
def export_(out: str) -> None:
    """Write the user's entries to a table."""
    from m2gen.cache.wisdom import place
    from m2gen.tuning import merged

    click.echo(merged([str(place())], out))


@wisdom.command("import", context_settings=_CONTEXT)
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True))
def import_(paths: tuple[str, ...]) -> None:
    """Take the entries of tables or folders among the user's own, unless a newer one stands there."""
    from m2gen.tuning import imported

    click.echo(imported(paths))


@wisdom.command("forget", context_settings=_CONTEXT)
@click.argument("problem", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Every entry of the user's.")
def forget_(problem: tuple[str, ...], everything: bool) -> None:
    """Delete the user's entries for PROBLEM."""
    from m2gen.tuning import forgotten

    if not problem and not everything:
        raise click.UsageError("give a PROBLEM, or --all")
    click.echo(forgotten(problem, everything))

"""The one program: m2gen demo | plan | show | compile | doctor.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from m2gen import __version__
from m2gen.errors import M2GenError

if TYPE_CHECKING:
    from rich.console import Console

    from m2gen.device.limits import DeviceLimits
    from m2gen.planner.search import Ranking

_CONTEXT = {"help_option_names": ["-h", "--help"]}


class _Refused(click.ClickException):
    """An M2GenError as one clean message on stderr."""

    exit_code = 2


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
    m2gen compile --model 80M --out kernels
    m2gen doctor
    m2gen demo
    """


@main.command(context_settings=_CONTEXT)
@click.argument("problem", nargs=-1, required=True)
@click.option(
    "--target", default="auto", show_default=True, help="auto (the device at hand), or sm90, gfx942, avx2 ..."
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as one JSON object.")
def plan(problem: tuple[str, ...], target: str, as_json: bool) -> None:
    """Show how PROBLEM would be done on a device, and what it should cost. Runs nothing.

    \b
    m2gen plan fftconv n=8192 h=768 b=4 bf16 causal gated skip --target sm90
    words: n= k= h= b=   fp16 bf16 fp32 fp64   causal bidirectional same circular
           gated pre_gated post_gated skip   bhl blh   wide
    """
    from m2gen.planner import search
    from m2gen.planner.problem import Problem
    from m2gen.runtime.planning import limits_of

    asked, limits = Problem.parse(" ".join(problem)), limits_of(target)
    chosen = search.plan(asked, limits)
    if as_json:
        click.echo(chosen.to_json())
        return
    click.echo(chosen.explain(limits))
    click.echo()
    _print_ranking(_console(), search.rank(asked, limits), limits)


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _runs(items: Iterable[str], times: str) -> list[str]:
    """Equal neighbours written once: 3, 2, 2, 2 as 3, 2^3."""
    counted = [(item, len(list(run))) for item, run in groupby(items)]
    return [item if count == 1 else f"{item}{times}{count}" for item, count in counted]


def _print_ranking(console: Console, ranking: Ranking, limits: DeviceLimits) -> None:
    """Every solver's best plan of each order, and every rejection."""
    from rich.table import Table

    from m2gen.planner.plan import duration

    table = Table(title=f"every solver on {limits.arch}: its best plan of each order, cheapest first")
    for column in ("solver", "order", "size", "radices", "blocks", "channels", "estimate"):
        table.add_column(column, overflow="fold")
    bests = {(plan.solver, plan.conv.transform.order): plan for plan in reversed(ranking.plans)}
    for best in sorted(bests.values(), key=lambda plan: plan.estimate.seconds):
        transform = best.conv.transform
        radices = " x ".join(_runs(map(str, transform.radices), "^")) or "its own"
        blocks = ", ".join(_runs((f"{count} of {out}x{into}" for count, out, into in transform.blocks), " times "))
        size = f"{transform.size}{' folded' if best.conv.fold else ''}"
        cells = (best.solver, str(transform.order or "-"), size, radices, blocks, str(best.conv.channels))
        table.add_row(*cells, duration(best.estimate.seconds))
    for solver, reason in ranking.rejections:
        table.add_row(solver, "", "", "", reason, "", "rejected")
    console.print(table)


@main.command(context_settings=_CONTEXT)
@click.argument("problem", nargs=-1, required=True)
@click.option("--target", default="auto", show_default=True, help="auto (the device at hand), or sm90, gfx942 ...")
@click.option("--part", type=click.Choice(["fwd", "transpose", "dk"]), default="fwd", show_default=True)
@click.option("--source", "view", flag_value="source", default=True, help="The generated source.  [default]")
@click.option("--asm", "view", flag_value="asm", help="The assembly of a CPU kernel, for any CPU.")
@click.option("--ptx", "view", flag_value="ptx", help="The compiler's assembly (AMD's own for gfx942).")
@click.option("--sass", "view", flag_value="sass", help="NVIDIA's machine code.")
@click.option(
    "--resources", "view", flag_value="resources", help="Shared memory, registers, spills, matrix instructions."
)
def show(problem: tuple[str, ...], target: str, part: str, view: str) -> None:
    """Print the kernel generated for PROBLEM. No GPU is needed, not for its assembly either.

    \b
    m2gen show fftconv n=4096 h=768 b=64 bf16 causal gated --target sm90 --resources
    parts: fwd, transpose (gradients of the input and the gates), dk (gradient of the filter)
    """
    from m2gen.planner.problem import Problem
    from m2gen.show import show as text

    click.echo(text(Problem.parse(" ".join(problem)), target, view, part))


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

    
    m2gen compile fftconv n=512 h=768 bf16 causal fftconv n=2048 h=768 bf16 causal --out kernels
    m2gen compile --model 80M-2k-retrieval --lengths 512,2048 --batches 1,8 --target avx512 --out kernels
    M2GEN_COMPILED_DIR=kernels python serve.py

    CPU kernels run as they are, on any CPU of the target. For GPUs there are sources, assembly and machine code to be
    looked at: Triton compiles what it runs, and keeps it in a cache of its own.
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
@click.option("--minutes", default=2.5, show_default=True, help="How long it may take, about.")
@click.option("--seed", default=0, show_default=True, help="Seed of every random number.")
def demo(minutes: float, seed: int) -> None:
    """Train a small M2-GPT on the Python standard library's source, byte by byte, and report what it learnt.

    \b
    m2gen demo --minutes 1
    """
    from m2gen.demo import main as run

    run(minutes=minutes, seed=seed)

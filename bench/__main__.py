"""The benchmarks, and what is made of their results; `python -m bench NAME --help` tells each one's options.

models, gpu --models (transformers) and report (matplotlib) need the extra m2gen[bench], and cpu has scipy and FFTW
beside it where they are installed: pip install 'm2gen[bench]'. The others need m2gen alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from m2gen.errors import M2GenError, MissingError

Parser = argparse.ArgumentParser
Given = argparse.Namespace


def _number(kind: type[int] | type[float], least: float, above: bool = False) -> Callable[[str], Any]:
    """What reads an option's number, from `least` on or above it."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (least < value if above else least <= value) or value == float("inf"):
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {'above' if above else 'from'} {least}")
        return value

    return read


def _rounds(parser: Parser, default: int = 9, least: int = 2) -> None:
    more = f"; at least {least}{', since it has quartiles' if least > 1 else ''}"
    parser.add_argument(
        "--rounds", type=_number(int, least), default=default, help=f"timed rounds of each contender [{default}]{more}"
    )


def _threads(parser: Parser) -> None:
    parser.add_argument("--threads", type=_number(int, 1), default=1, help="of PyTorch on a CPU [1]")


def _only(parser: Parser, what: str) -> None:
    parser.add_argument("--only", metavar="NAME", help=f"those {what} that have this in their names")


def _out(parser: Parser) -> None:
    parser.add_argument("--out", metavar="FILE", help="write the raw results there as JSON")


def _timed(parser: Parser, only: str | None) -> None:
    """The options of most."""
    _rounds(parser)
    _threads(parser)
    if only is not None:
        _only(parser, only)
    _out(parser)


def _need(package: str, asked: str) -> None:
    """Raises MissingError where a package of the extra is not there."""
    if find_spec(package) is None:
        raise MissingError(f"python -m bench {asked}", f"{package} is not installed", "run pip install 'm2gen[bench]'")


# -- each one's options, and what runs it ------------------------------------------------------------------------------


def _cpu(parser: Parser) -> None:
    _timed(parser, "groups")
    kinds = ["kept", "fresh"]
    parser.add_argument("--memory", choices=kinds, default="fresh", help="see settle_allocator in bench/cpu.py")


def _run_cpu(of: Given) -> None:
    from bench import cpu

    cpu.main(of.rounds, of.threads, of.out, of.only, of.memory)


def _run_models(of: Given) -> None:
    _need("transformers", "models")
    from bench import models

    models.main(of.rounds, of.threads, of.out, of.only)


def _run_products(of: Given) -> None:
    from bench import products

    products.main(of.rounds, of.threads, of.out, of.only)


def _run_short(of: Given) -> None:
    from bench import short

    short.main(of.rounds, of.threads, of.out)


def _run_lengths(of: Given) -> None:
    from bench import lengths

    lengths.main(of.rounds, of.threads, of.out)


def _generate(parser: Parser) -> None:
    _timed(parser, None)
    parser.add_argument("--batch", type=_number(int, 1), default=1, help="sequences at once [1]")
    parser.add_argument("--causal", choices=["fft", "monarch"], default="fft", help="how filters are computed [fft]")


def _run_generate(of: Given) -> None:
    from bench import generate

    generate.main(of.rounds, of.threads, of.batch, of.causal, of.out)


def _dispatch(parser: Parser) -> None:
    _rounds(parser)
    _only(parser, "operators")
    _out(parser)


def _run_dispatch(of: Given) -> None:
    from bench import dispatch

    dispatch.main(of.rounds, of.out, of.only)


def _first_call(parser: Parser) -> None:
    _rounds(parser, 3, 1)
    _only(parser, "problems")
    _out(parser)


def _run_first_call(of: Given) -> None:
    from bench import first_call

    first_call.main(of.rounds, of.out, of.only)


def _gpu(parser: Parser) -> None:
    parser.description = "How to use it for fifteen minutes: bench/gpu.py."
    parser.add_argument("--models", action="store_true", help="M2-BERT and others beside BERT, not the convolution")
    above = _number(float, 0, above=True)
    parser.add_argument("--minutes", type=above, default=9.0, help="after which it ends and says what it left out [9]")
    parser.add_argument("--workers", type=_number(int, 1), default=12, help="processes that compile at once [12]")
    parser.add_argument("--row-seconds", type=above, default=60.0, help="a row's limit [60]")
    parser.add_argument("--note", metavar="TEXT", help="goes into the provenance: the commit, where there is no git")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="[cuda]")
    parser.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU")
    _timed(parser, "rows")


def _run_gpu(of: Given) -> None:
    from bench import gpu

    if of.models:
        _need("transformers", "gpu --models")
    wanted = gpu.Options(
        device=of.device,
        tiny=of.tiny,
        rounds=of.rounds,
        workers=of.workers,
        minutes=of.minutes,
        seconds=of.row_seconds,
        only=of.only,
        note=of.note,
        out=of.out,
        threads=of.threads if of.device == "cpu" else None,
    )
    gpu.main(wanted, of.models)


def _estimates(parser: Parser) -> None:
    parser.add_argument("--target", default="sm90", help="a GPU of the device table, such as sm90 or a100 [sm90]")
    _only(parser, "problems")


def _run_estimates(of: Given) -> None:
    from bench import estimates

    estimates.main(of.target, of.only)


def _report(parser: Parser) -> None:
    parser.add_argument("files", nargs="+", help="of results")
    parser.add_argument("--out", metavar="FOLDER", help="for the page and its pictures [bench/results]")


def _run_report(of: Given) -> None:
    _need("matplotlib", "report")
    from bench import pictures

    pictures.main(of.files, of.out)


def _compare(parser: Parser) -> None:
    parser.add_argument("old", help="a file of results")
    parser.add_argument("new", help="another one")


def _run_compare(of: Given) -> int:
    from bench import compare

    return compare.main(of.old, of.new)


# name: what it is, its options, what runs it
BENCHMARKS: dict[str, tuple[str, Callable[[Parser], None], Callable[[Given], int | None]]] = {
    "cpu": ("the long convolution beside torch.fft on whole tensors", _cpu, _run_cpu),
    "models": ("M2-BERT beside BERT", lambda parser: _timed(parser, "cases"), _run_models),
    "products": (
        "block-diagonal and Monarch products beside the library",
        lambda parser: _timed(parser, "cases"),
        _run_products,
    ),
    "short": ("the short convolution beside conv1d", lambda parser: _timed(parser, None), _run_short),
    "lengths": ("kernels compiled for random lengths", lambda parser: _timed(parser, None), _run_lengths),
    "generate": ("M2-GPT's time per token", _generate, _run_generate),
    "dispatch": ("what calls cost on a GPU beside kernels", _dispatch, _run_dispatch),
    "first-call": ("what a first call compiles for a GPU, and how long that takes", _first_call, _run_first_call),
    "gpu": ("the convolution or models on a GPU", _gpu, _run_gpu),
    "estimates": ("what the convolution should take on a GPU by the planner's estimates", _estimates, _run_estimates),
    "report": ("a page with pictures of results", _report, _run_report),
    "compare": ("what became slower or faster between two files of results", _compare, _run_compare),
}


def main(words: list[str] | None = None) -> int:
    """Run one; the exit status."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, formatter_class=raw)
    each = parser.add_subparsers(dest="what", required=True, metavar="NAME")
    for name, (what, options, _) in BENCHMARKS.items():
        options(each.add_parser(name, help=what, description=what[:1].upper() + what[1:] + "."))
    given = parser.parse_args(words)
    try:
        return BENCHMARKS[given.what][2](given) or 0
    except M2GenError as error:
        print(f"python -m bench: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""The benchmarks, and what is made of their results:

python -m bench cpu | models | products | short | lengths | generate | dispatch
                [--rounds 9] [--threads 1] [--only NAME] [--out FILE]
python -m bench first-call [--rounds 3] [--only NAME] [--out FILE]
python -m bench gpu [--models] [--minutes 9] [--workers 12] [--row-seconds 60] [--note TEXT]
                [--rounds 9] [--only NAME] [--out FILE] [--device cpu --tiny]
python -m bench estimates [--target sm90] [--only NAME]
python -m bench report FILES... [--out FOLDER]
python -m bench compare OLD NEW
"""

from __future__ import annotations

import argparse
import sys

from m2gen.errors import M2GenError

parser = argparse.ArgumentParser(
    prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument(
    "what",
    choices=[
        "cpu",
        "models",
        "products",
        "short",
        "lengths",
        "generate",
        "dispatch",
        "first-call",
        "gpu",
        "estimates",
        "report",
        "compare",
    ],
    help="the long convolution beside torch.fft on whole tensors; M2-BERT beside BERT; block-diagonal and "
    "Monarch products beside the library; the short convolution beside conv1d; kernels compiled for random lengths; "
    "M2-GPT's time per token; what calls cost on a GPU beside kernels; what a first call compiles for one; the "
    "convolution or models on a GPU; what the convolution should take on one by the planner's estimates; a page with "
    "pictures; what changed",
)
parser.add_argument("files", nargs="*", help="of results: for report and compare")
parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each contender")
parser.add_argument("--threads", type=int, default=1, help="of the CPU benchmarks")
parser.add_argument(
    "--only",
    help="what has this in its name: groups of the CPU benchmark, cases of models, products, a GPU's rows",
)
parser.add_argument(
    "--memory",
    choices=["kept", "fresh"],
    default="fresh",
    help="of the CPU benchmark: see settle_allocator in bench/cpu.py",
)
parser.add_argument("--batch", type=int, default=1, help="of generation")
parser.add_argument("--causal", choices=["fft", "monarch"], default="fft", help="of generation")
parser.add_argument("--target", default="sm90", help="of estimates: a GPU of the device table")
on_gpu = parser.add_argument_group("on a GPU", "how to use it for fifteen minutes: bench/gpu.py")
on_gpu.add_argument("--models", action="store_true", help="M2-BERT and others beside BERT, not the convolution")
on_gpu.add_argument("--minutes", type=float, default=9.0, help="after which a run ends and says what it left out")
on_gpu.add_argument("--workers", type=int, default=12, help="processes that compile at once")
on_gpu.add_argument("--row-seconds", type=float, default=60.0, help="a row's limit")
on_gpu.add_argument("--note", help="goes into the provenance: the commit, where there is no git")
on_gpu.add_argument("--device", default="cuda", help="cuda or cpu")
on_gpu.add_argument("--tiny", action="store_true", help="sizes for a try on a CPU")
parser.add_argument(
    "--out", help="write the raw results there as JSON; the folder of the report, default bench/results"
)
arguments = parser.parse_args()
if arguments.files and arguments.what not in ("report", "compare"):
    parser.error(f"{arguments.what} takes no files")

if arguments.what == "cpu":
    from bench import cpu

    cpu.main(arguments.rounds, arguments.threads, arguments.out, arguments.only, arguments.memory)
elif arguments.what == "models":
    from bench import models

    models.main(arguments.rounds, arguments.threads, arguments.out, arguments.only)
elif arguments.what == "estimates":
    from bench import estimates

    estimates.main(arguments.target, arguments.only)
elif arguments.what == "report":
    from bench import pictures

    if not arguments.files:
        parser.error("report needs files of results")
    try:
        pictures.main(arguments.files, arguments.out)
    except M2GenError as error:
        parser.error(str(error))
elif arguments.what == "compare":
    from bench import compare

    if len(arguments.files) != 2:
        parser.error("compare needs two files of results")
    sys.exit(compare.main(*arguments.files))
elif arguments.what == "short":
    from bench import short

    short.main(arguments.rounds, arguments.threads, arguments.out)
elif arguments.what == "lengths":
    from bench import lengths

    lengths.main(arguments.rounds, arguments.threads, arguments.out)
elif arguments.what == "dispatch":
    from bench import dispatch

    dispatch.main(arguments.rounds, arguments.out, arguments.only)
elif arguments.what == "first-call":
    from bench import first_call

    first_call.main(min(arguments.rounds, 3), arguments.out, arguments.only)
elif arguments.what == "generate":
    from bench import generate

    generate.main(arguments.rounds, arguments.threads, arguments.batch, arguments.causal, arguments.out)
elif arguments.what == "products":
    from bench import products

    products.main(arguments.rounds, arguments.threads, arguments.out, arguments.only)
else:
    from bench import gpu

    wanted = gpu.Options(
        device=arguments.device,
        tiny=arguments.tiny,
        rounds=arguments.rounds,
        workers=arguments.workers,
        minutes=arguments.minutes,
        seconds=arguments.row_seconds,
        only=arguments.only,
        note=arguments.note,
        out=arguments.out,
        threads=arguments.threads if arguments.device == "cpu" else None,
    )
    try:
        gpu.main(wanted, arguments.models)
    except M2GenError as error:
        parser.error(str(error))

"""The benchmarks: `python -m bench cpu | products | short | gpu [--rounds 9] [--threads 1] [--out FILE]`."""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
parser.add_argument(
    "what",
    choices=["cpu", "products", "short", "gpu"],
    help="the long convolution beside torch.fft on whole tensors; block-diagonal products beside the library; the "
    "short convolution beside conv1d; the convolution on a GPU",
)
parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each contender")
parser.add_argument("--threads", type=int, default=1, help="of the CPU benchmarks")
parser.add_argument("--only", help="of the CPU benchmark: the groups whose name has this in it")
parser.add_argument(
    "--memory",
    choices=["kept", "fresh"],
    default="fresh",
    help="of the CPU benchmark: see settle_allocator in bench/cpu.py",
)
parser.add_argument("--out", help="write the raw results there as JSON")
arguments = parser.parse_args()

if arguments.what == "cpu":
    from bench import cpu

    cpu.main(arguments.rounds, arguments.threads, arguments.out, arguments.only, arguments.memory)
elif arguments.what == "short":
    from bench import short

    short.main(arguments.rounds, arguments.threads, arguments.out)
elif arguments.what == "products":
    from bench import products

    products.main(arguments.rounds, arguments.threads, arguments.out)
else:
    from bench import gpu

    gpu.main(arguments.rounds, arguments.out)

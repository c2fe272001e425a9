"""The benchmarks: `python -m bench cpu | gpu [--rounds 9] [--threads 1] [--out FILE]`."""

from __future__ import annotations

import argparse

parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
parser.add_argument("what", choices=["cpu", "gpu"], help="the long convolution beside torch.fft on whole tensors")
parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each contender")
parser.add_argument("--threads", type=int, default=1, help="of the CPU benchmark")
parser.add_argument("--out", help="write the raw results there as JSON")
arguments = parser.parse_args()

if arguments.what == "cpu":
    from bench import cpu

    cpu.main(arguments.rounds, arguments.threads, arguments.out)
else:
    from bench import gpu

    gpu.main(arguments.rounds, arguments.out)

"""`python -m bench cpu [--rounds 9] [--threads 1] [--out FILE]`"""

from __future__ import annotations

import argparse

from bench import cpu

parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
parser.add_argument("what", choices=["cpu"], help="cpu: the long convolution beside torch.fft on whole tensors")
parser.add_argument("--rounds", type=int, default=9, help="timed rounds of each contender, interleaved")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--out", help="write the raw results there as JSON")
arguments = parser.parse_args()
cpu.main(arguments.rounds, arguments.threads, arguments.out)

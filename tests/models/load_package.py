"""Load a compiled package of M2-BERT in a process that has made none, call it, and write down what it gives."""

from __future__ import annotations

import sys

import torch

import m2gen.models

if __name__ == "__main__":
    package, inputs, out = sys.argv[1:]
    torch.set_num_threads(1)
    run = torch._inductor.aoti_load_package(package)
    found = [tuple(run(**one).values()) for one in torch.load(inputs)]
    torch.save(found, out)
    print(m2gen.__version__)

"""Problems for a process whose kernels are compiled with sanitizers: forward and backward; the first with kept spectra.
"monarch ROWS BxNxK ..." is a product with factors of these shapes.

Scratch is otherwise mapped memory, of which a sanitizer knows nothing: here it comes from the allocator, to the byte.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

import m2gen
from m2gen.planner.problems import parse
from m2gen.runtime.bindings import monarch
from m2gen.runtime.build import cpp_kernel
from m2gen.testing.operands import operands

NAMES = ("u", "k", "k_rev", "pre_gate", "post_gate", "skip")


@contextmanager
def exact(size: int) -> Iterator[int]:
    memory = torch.empty(size, dtype=torch.uint8)
    yield memory.data_ptr()


def run(text: str, again: int) -> None:
    """Forward and backward, and forward `again` with a prepared filter, whose spectra are kept."""
    args = operands(parse(text))
    wanted = {name: args[name].requires_grad_() for name in NAMES if name in args}
    y = m2gen.fftconv(**args)
    found = torch.autograd.grad(y, list(wanted.values()), torch.ones_like(y))
    with torch.no_grad():
        own = {name: args[name] for name in ("k_rev", "skip", "mode") if name in args}
        gates = {name: args[name] for name in ("pre_gate", "post_gate", "add", "layout") if name in args}
        prepared = m2gen.prepare_filter(args["k"], **own)
        kept = [m2gen.fftconv(args["u"], prepared, **gates) for _ in range(again)]
    assert all(bool(x.isfinite().all()) for x in (y, *found)), text
    assert all(torch.equal(y, other) for other in kept), text
    assert m2gen.plan(text, "auto").solver == "native", text
    print("ran", text, flush=True)


def run_monarch(text: str) -> None:
    """Forward, and every gradient; the factors transposed in memory, too."""
    _, rows, *blocks = text.split()
    shapes = [[int(size) for size in one.split("x")] for one in blocks]
    for change in (lambda f: f, lambda f: f.mT.contiguous().mT):
        factors = [change(torch.randn(shape)).requires_grad_() for shape in shapes]
        x = torch.randn(int(rows), shapes[0][0] * shapes[0][2], requires_grad=True)
        y = m2gen.monarch_matmul(x, factors)
        found = torch.autograd.grad(y, [x, *factors], torch.ones_like(y))
        assert all(bool(one.isfinite().all()) for one in (y, *found)), text
    print("ran", text, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    cpp_kernel.borrowed = monarch.borrowed = exact
    for i, problem in enumerate(sys.argv[1:]):
        if problem.startswith("monarch"):
            run_monarch(problem)
        else:
            run(problem, again=0 if i else 2)

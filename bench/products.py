"""Dense, block-diagonal and Monarch products on a CPU: m2gen beside PyTorch's library, and the measured FMA peak."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

import m2gen
from bench import monarch
from bench.fma import peak_gflops
from bench.timing import interleaved, provenance, ratios, summary
from m2gen.ops.blockdiag_linear import blockdiag_glu
from m2gen.ops.gate import by_steps
from m2gen.runtime.bindings.blockdiag import matmul_blocks

ROWS = (128, 512, 4096)
SIZES = {  # M2-BERT-80M's: (nblocks, block_out, block_in)
    "in_linear": (1, 2304, 768),
    "out_linear": (1, 768, 768),
    "gated_layers": (4, 1536, 192),
    "wo": (4, 192, 768),
}
Calls = dict[str, Callable[[], Any]]


def forward(rows: int, nblocks: int, block_out: int, block_in: int) -> Calls:
    x, weight = torch.randn(rows, nblocks * block_in), torch.randn(nblocks, block_out, block_in)
    return {"library": lambda: matmul_blocks(x, weight), "m2gen": lambda: m2gen.blockdiag_linear(x, weight)}


def backward(rows: int, nblocks: int, block_out: int, block_in: int) -> Calls:
    """Both gradients, the forward pass done beforehand."""
    x = torch.randn(rows, nblocks * block_in, requires_grad=True)
    weight = torch.randn(nblocks, block_out, block_in, requires_grad=True)
    dy = torch.randn(rows, nblocks * block_out)

    def step(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[], Any]:
        y = call(x, weight)
        return lambda: torch.autograd.grad(y, (x, weight), dy, retain_graph=True)

    return {"library": step(matmul_blocks), "m2gen": step(m2gen.blockdiag_linear)}


def gated(rows: int, nblocks: int, block_out: int, block_in: int) -> Calls:
    x, weight = torch.randn(rows, nblocks * block_in), torch.randn(nblocks, block_out, block_in)

    def library() -> Tensor:
        return by_steps(matmul_blocks(x, weight), "gelu")

    def ours() -> Tensor:
        with torch.no_grad():
            return blockdiag_glu(x, weight, "gelu")

    return {"library": library, "m2gen": ours}


def added(rows: int, nblocks: int, block_out: int, block_in: int) -> Calls:
    """A layer's input added behind it, by an operator of its own or in the product's kernel."""
    x, weight = torch.randn(rows, nblocks * block_in), torch.randn(nblocks, block_out, block_in)
    bias, residual = torch.randn(nblocks * block_out), torch.randn(rows, nblocks * block_out)
    return {
        "then added": lambda: m2gen.blockdiag_linear(x, weight, bias) + residual,
        "m2gen": lambda: m2gen.blockdiag_linear(x, weight, bias, None, residual),
    }


def main(rounds: int, threads: int, out: str | None, only: str | None) -> None:
    torch.set_num_threads(threads)
    found = provenance() | {"fma_peak_gflops": peak_gflops()}
    print(json.dumps(found))
    results: list[dict[str, Any]] = []
    kinds = {"forward": (forward, 2), "gradients": (backward, 4), "gelu(g) * h": (gated, 2), "+ residual": (added, 2)}
    of = {"gelu(g) * h": "gated_layers", "+ residual": "wo"}
    for (name, sizes), rows, (what, (calls, flop)) in product(SIZES.items(), ROWS, kinds.items()):
        if of.get(what, name) != name or (only or "") not in f"{name} {what}":
            continue
        nblocks, block_out, block_in = sizes
        times = interleaved(calls(rows, *sizes), rounds)
        ms = {who: summary(values) for who, values in times.items()}
        peer = next(who for who in times if who != "m2gen")
        gain = ratios(times[peer], times["m2gen"])
        rate = flop * rows * nblocks * block_out * block_in / ms["m2gen"]["median"] / 1e6
        results.append({"product": name, "rows": rows, "what": what, "ms": ms, "ratio": gain, "gflops": rate})
        medians = f"{peer} {ms[peer]['median']:8.2f} ms, m2gen {ms['m2gen']['median']:8.2f}"
        spread = f"{gain['median']:.2f} ({gain['q1']:.2f} .. {gain['q3']:.2f})"
        print(f"{name:13} {rows:5} rows {what:12} {medians}: {spread}; {rate:.0f} GFLOP/s", flush=True)
    results += monarch.results(rounds, only or "")
    if out:
        with open(out, "w") as file:
            json.dump({"provenance": found, "results": results}, file, indent=1)

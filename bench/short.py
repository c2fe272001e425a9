"""The short depthwise convolution on a CPU: m2gen beside torch.nn.functional.conv1d and the time of a copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import m2gen
from bench.timing import interleaved, provenance, ratios, summary
from m2gen.runtime import executor

SIZES = [(1, 768, 8192), (8, 768, 2048), (16, 768, 128)]  # batch, channels, length
WIDTHS = (3, 4)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def library(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """PyTorch's own: padded on both sides and cut, as most models write it. x (B, H, L)."""
    channels, width = weight.shape
    return F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=channels)[..., : x.shape[2]]


def without_kernels(call: Callable[[], Any]) -> Callable[[], Any]:
    """The same call where nothing is compiled: a sum of shifted copies."""
    live = executor.live

    def run() -> Any:
        executor.live = lambda device: replace(live(device), languages=())
        try:
            return call()
        finally:
            executor.live = live

    return run


def backward(call: Callable[[], Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], Any]:
    """Every gradient of `call`, whose forward pass is done beforehand."""
    y = call()
    dy = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def contenders(size: tuple[int, int, int], width: int, layout: str, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    batch, channels, length = size
    shape = size if layout == "BHL" else (batch, length, channels)
    x, weight, bias = (torch.randn(s, dtype=dtype).requires_grad_() for s in (shape, (channels, width), (channels,)))
    inputs = (x, weight, bias)

    def ours() -> Tensor:
        return m2gen.depthwise_conv1d(x, weight, bias, layout=layout)

    def torchs() -> Tensor:
        return library(x if layout == "BHL" else x.transpose(1, 2), weight, bias)

    forward = {"m2gen": ours, "elementwise": without_kernels(ours), "conv1d": torchs, "copy": x.detach().clone}
    gradients = {"m2gen": backward(ours, inputs), "conv1d": backward(torchs, inputs)}
    gradients["elementwise"] = without_kernels(gradients["m2gen"])
    return {"forward": forward, "backward": gradients}


def main(rounds: int, threads: int, out: str | None) -> None:
    torch.set_num_threads(threads)
    print(json.dumps(provenance()))
    print(f"{'problem':32} {'pass':9} {'copy':>7} {'m2gen':>8} {'elementwise ms':>24} {'conv1d ms':>24}")
    results = []
    for size, width, layout, dtype in product(SIZES, WIDTHS, ("BHL", "BLH"), DTYPES):
        problem = f"{size[0]}x{size[1]}x{size[2]} w{width} {layout} {dtype}"
        for which, calls in contenders(size, width, layout, DTYPES[dtype]).items():
            times = interleaved(calls, rounds)
            gains = {name: ratios(times[name], times["m2gen"]) for name in ("elementwise", "conv1d")}
            ms = {name: summary(values) for name, values in times.items()}
            results.append({"problem": problem, "pass": which, "ms": ms, "speedup": gains})
            copy = f"{ms['copy']['median']:7.2f}" if "copy" in ms else " " * 7
            cells = [
                f"{ms[n]['median']:8.2f} {g['median']:5.1f}x ({g['q1']:.1f} .. {g['q3']:.1f})" for n, g in gains.items()
            ]
            print(f"{problem:32} {which:9} {copy} {ms['m2gen']['median']:8.2f} {' '.join(cells)}", flush=True)
    if out:
        with open(out, "w") as file:
            json.dump({"provenance": provenance(), "results": results}, file, indent=1)

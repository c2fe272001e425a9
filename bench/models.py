"""M2-BERT-80M beside BERT-base (transformers, random weights) with fused and with plain attention: time and memory.

One sequence without padding, in evaluation, no gradients. Each peak is measured in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bench.timing import interleaved, provenance, ratios, rounded, summary, write

LENGTHS = (512, 1024, 2048, 4096, 8192)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {"sdpa": "BERT, fused attention", "eager": "BERT, plain attention", "m2bert": "M2-BERT"}
HEADS, COPIES = (
    12,
    3,
)  # of the scores of all pairs that plain attention holds at once: its own, the softmax, one to spare


def model(kind: str, length: int, dtype: str) -> nn.Module:
    """One of NAMES with random weights, for up to `length` tokens."""
    torch.manual_seed(0)
    if kind == "m2bert":
        from m2gen.models import M2BertConfig, M2BertModel

        made: nn.Module = M2BertModel(M2BertConfig.preset("80M", max_position_embeddings=length))
    else:
        from transformers import BertConfig, BertModel

        made = BertModel(BertConfig(max_position_embeddings=length, attn_implementation=kind))
    return made.to(DTYPES[dtype]).eval()


def call(kind: str, length: int, dtype: str) -> Callable[[], Any]:
    encoder = model(kind, length, dtype)
    tokens = torch.randint(1, 1000, (1, length), generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        with torch.no_grad():
            return encoder(tokens)

    return run


def room(kind: str, length: int, dtype: str) -> str | None:
    """Why a model cannot be measured here, by the memory that is free now."""
    needed = COPIES * HEADS * length**2 * DTYPES[dtype].itemsize if kind == "eager" else 0
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    if needed < free * 0.7:
        return None
    return f"the scores of all pairs take about {needed / 2**30:.1f} GiB of {free / 2**30:.1f} GiB that are free"


def peak(kind: str, length: int, dtype: str) -> float:
    """MiB that a call takes beyond the model and what earlier calls left, the calls before it having been made."""
    code = (
        "import sys, torch; from bench import models; from bench.timing import peak_mib;"
        "torch.set_num_threads(int(sys.argv[4]));"
        "call = models.call(sys.argv[1], int(sys.argv[2]), sys.argv[3]); call(); call(); print(peak_mib(call))"
    )
    words = [sys.executable, "-c", code, kind, str(length), dtype, str(torch.get_num_threads())]
    return float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(length: int, dtype: str, rounds: int) -> dict[str, Any]:
    refused = {NAMES[kind]: why for kind in NAMES if (why := room(kind, length, dtype))}
    kinds = [kind for kind in NAMES if NAMES[kind] not in refused]
    calls = {NAMES[kind]: call(kind, length, dtype) for kind in kinds}
    calls[NAMES["m2bert"]]()  # its filters' spectra are kept from the second call on
    times = interleaved(calls, rounds)
    ours = times[NAMES["m2bert"]]
    row: dict[str, Any] = {"group": "models", "problem": f"L={length} {dtype}", "length": length, "dtype": dtype}
    row["ms"] = {name: summary(values) for name, values in times.items()}
    row["tokens_per_s"] = {name: 1e3 * length / ms["median"] for name, ms in row["ms"].items()}
    # how many times as long as M2-BERT another takes, round by round
    row["ratio"] = {name: ratios(values, ours) for name, values in times.items() if values is not ours}
    row["times"] = rounded(times)
    del calls
    row["peak_mib"] = {NAMES[kind]: peak(kind, length, dtype) for kind in kinds}
    return row | ({"left_out": refused} if refused else {})


def show(row: dict[str, Any]) -> None:
    for name, ms in row["ms"].items():
        gain = row["ratio"].get(name)
        spread = f"; {gain['median']:.2f} ({gain['q1']:.2f} .. {gain['q3']:.2f}) of M2-BERT's time" if gain else ""
        rate, top = row["tokens_per_s"][name], row["peak_mib"][name]
        print(
            f"{row['problem']:14} {name:22} {ms['median']:9.1f} ms {rate:8.0f} tokens/s {top:7.0f} MiB{spread}",
            flush=True,
        )
    for name, why in row.get("left_out", {}).items():
        print(f"{row['problem']:14} {name:22} left out: {why}", flush=True)


def main(rounds: int, threads: int, out: str | None, only: str | None) -> None:
    """Every length and dtype; with `only`, those whose name ("L=512 fp32") has it in it."""
    torch.set_num_threads(threads)
    found = provenance()
    print(json.dumps(found))
    results: list[dict[str, Any]] = []
    cases = [partial(measure, length, dtype, rounds) for dtype in DTYPES for length in LENGTHS]
    for case in cases:
        if only is None or only in f"L={case.args[0]} {case.args[1]}":
            results.append(case())
            show(results[-1])
            write(out, found, results)

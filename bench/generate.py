"""The time of a token in generation with the cache, by context; and that of a whole pass, which it saves.

Processor time of the process, which with one thread is what the clock shows on a machine that does nothing else.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from bench.timing import provenance
from m2gen.models import M2GPT, M2GPTConfig

CONTEXTS = (1024, 4096, 16384)
WIDTH, LAYERS = 256, 6


def model(causal: str) -> M2GPT:
    torch.manual_seed(0)
    # twice the longest context, so that the tile in its middle is paid for
    config = M2GPTConfig(256, WIDTH, LAYERS, 2 * CONTEXTS[-1], causal=causal, filter_options={"heads": 8, "width": 32})
    return M2GPT(config).eval()


@torch.no_grad()
def token_times(m: M2GPT, ids: Tensor) -> list[float]:
    """Milliseconds of every token of the second half of ids (B, L); the first half is read at once, not timed."""
    cache = m.new_cache(ids.shape[0])
    m(ids[:, : ids.shape[1] // 2], cache=cache)
    times = []
    for part in ids[:, cache.position :].split(1, dim=1):
        start = time.process_time()
        m(part, cache=cache)
        times.append(1e3 * (time.process_time() - start))
    return times


@torch.no_grad()
def pass_time(m: M2GPT, ids: Tensor) -> float:
    """Milliseconds of a whole pass, the less of two."""
    times = []
    for _ in range(2):
        start = time.process_time()
        m(ids)
        times.append(1e3 * (time.process_time() - start))
    return min(times)


def figures(rounds: list[list[float]]) -> dict[str, float]:
    """Of the tokens context / 2 + 1 to context, among which every size of tile up to `context` has its share or more.

    mean is what a token costs altogether, worst the token that pays for the largest tile; over rounds the median of
    each token counts.
    """
    times = [statistics.median(values) for values in zip(*rounds, strict=True)]
    low, median, high = statistics.quantiles(times, n=4)
    means = [statistics.mean(one) for one in rounds]
    return {
        "mean": statistics.mean(times),
        "means_least": min(means),
        "means_most": max(means),
        "median": median,
        "q1": low,
        "q3": high,
        "worst": max(times),
    }


def main(rounds: int, threads: int, batch: int, causal: str, out: str | None) -> None:
    torch.set_num_threads(threads)
    m = model(causal)
    ids = torch.randint(256, (batch, CONTEXTS[-1]), generator=torch.Generator().manual_seed(0))
    cache = m.new_cache(batch)
    parameters = sum(p.numel() for p in m.parameters())
    print(json.dumps({**provenance(), "parameters": parameters, "batch": batch, "cache_MiB": cache.nbytes / 2**20}))
    timed: dict[int, list[list[float]]] = {context: [] for context in CONTEXTS}
    for turn in range(rounds + 1):
        for context in CONTEXTS:
            times = token_times(m, ids[:, :context])
            timed[context] += [times] if turn else []  # the first time makes filters, spectra, kernels
    results: list[dict[str, Any]] = []
    print(f"{'context':>8} {'mean ms':>24} {'median ms':>24} {'worst':>8} {'whole pass':>11}")
    for context in CONTEXTS:
        f = figures(timed[context])
        f["whole_pass"] = pass_time(m, ids[:, :context])
        results.append({"group": "generation", "problem": f"context {context}", "context": context, "token_ms": f})
        mean = f"{f['mean']:.3f} ({f['means_least']:.3f} .. {f['means_most']:.3f})"
        median = f"{f['median']:.3f} ({f['q1']:.3f} .. {f['q3']:.3f})"
        print(f"{context:8} {mean:>24} {median:>24} {f['worst']:8.2f} {f['whole_pass']:11.1f}", flush=True)
    if out:
        with open(out, "w") as file:
            settings = {"batch": batch, "causal": causal, "parameters": parameters, "cache_bytes": cache.nbytes}
            json.dump({"provenance": provenance(), **settings, "rounds": rounds, "results": results}, file, indent=1)

"""The long convolution on a GPU: m2gen beside cuFFT (torch.fft on whole tensors), flash-fft-conv where it is installed,
and the time of copying the same bytes. Forward and backward, B = 64 and H = 768 as in flash-fft-conv's README; where
memory is short, B and H are cut and the times scaled back."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import m2gen
from bench.timing import provenance
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.testing.operands import operands

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCH, CHANNELS, ELEMENTS = 64, 768, 64 * 768 * 8192
Call = Callable[[], Any]


def cuda_ms(call: Call, rounds: int) -> list[float]:
    """Milliseconds by events, each round with a cold L2: a buffer larger than it is written first."""
    flush = torch.empty(2**28, dtype=torch.int8, device="cuda")
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        flush.zero_()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times


def whole(u: Tensor, k: Tensor, pre: Tensor | None, post: Tensor | None, size: int) -> Tensor:
    """The convolution as models write it on cuFFT, in float32."""
    z = u if pre is None else u * pre
    kf = torch.fft.rfft(k, n=size)
    y = torch.fft.irfft(torch.fft.rfft(z.float(), n=size) * kf, n=size)[..., : u.shape[-1]].to(u.dtype)
    return y if post is None else y * post


def contenders(problem: Problem) -> dict[str, Callable[..., Tensor]]:
    size = problem.n if problem.mode == "circular" else 2 * problem.n
    found: dict[str, Callable[..., Tensor]] = {
        "torch.fft": lambda u, k, pre, post: whole(u, k, pre, post, size),
        "m2gen": lambda u, k, pre, post: m2gen.fftconv(u, k, mode=problem.mode, pre_gate=pre, post_gate=post),
    }
    flash = _flash(problem, size)
    return found | ({"flash-fft-conv": flash} if flash else {})


def _flash(problem: Problem, size: int) -> Callable[..., Tensor] | None:
    try:
        from flashfftconv import FlashFFTConv
    except ImportError:
        return None
    if problem.gates == 1 or size not in {2**i for i in range(8, 23)}:
        return None
    conv = FlashFFTConv(size, dtype=torch.float16 if problem.dtype == "fp16" else torch.bfloat16).cuda()
    return lambda u, k, pre, post: conv(u, k, pre, post) if problem.gates else conv(u, k)


def measure(problem: Problem, rounds: int) -> dict[str, Any]:
    args = operands(problem, device="cuda")
    u, k, pre, post = (args.get(n) for n in ("u", "k", "pre_gate", "post_gate"))
    leaves = [x.requires_grad_() for x in (u, k, pre, post) if x is not None]
    forward, backward = {}, {}
    for name, call in contenders(problem).items():
        # everyone transforms the filter in every call
        forward[name] = summary(cuda_ms(lambda call=call: call(u, k, pre, post), rounds))
        if name == "m2gen":
            with torch.no_grad():
                filter = m2gen.prepare_filter(k, mode=problem.mode)
            kept = lambda filter=filter: m2gen.fftconv(u, filter, pre_gate=pre, post_gate=post)  # noqa: E731
            forward["m2gen, kept spectrum"] = summary(cuda_ms(kept, rounds))
        y = call(u, k, pre, post)
        dy = torch.randn_like(y)
        backward[name] = summary(
            cuda_ms(lambda y=y, dy=dy: torch.autograd.grad(y, leaves, dy, retain_graph=True), rounds)
        )
        del y
    # a copy of as many bytes as u, gates and y
    bytes_moved = u.numel() * u.element_size() * (2 + problem.gates)
    source = torch.empty(bytes_moved // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    floor = summary(cuda_ms(lambda: target.copy_(source), rounds))
    return {
        "problem": str(problem),
        "scale": BATCH * CHANNELS / (problem.b * problem.h),
        "plan": str(m2gen.plan(problem, "auto")),
        "forward_ms": forward,
        "backward_ms": backward,
        "copy_ms": floor,
    }


def summary(times: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(times, n=4)
    return {"median": median, "q1": low, "q3": high, "min": min(times)}


def problems() -> list[Problem]:
    found = []
    for n in LENGTHS:
        batch = max(2, min(BATCH, ELEMENTS // (CHANNELS * n)))
        at = f"fftconv n={n} h={CHANNELS} b={batch}"
        found += [parse(f"{at} {words}") for words in ("fp16 circular", "fp16 circular gated", "bf16 causal gated")]
    return found


def main(rounds: int, out: str | None) -> None:
    properties = torch.cuda.get_device_properties(0)
    import triton

    where = provenance() | {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
    }
    print(json.dumps(where))
    results = []
    for problem in problems():
        row = _attempt(problem, rounds)
        results.append(row)
        print(_line(row), flush=True)
        if out:  # after every row: a run that is cut short keeps what it has
            with open(out, "w") as file:
                json.dump({"provenance": where, "results": results}, file, indent=1)


def _attempt(problem: Problem, rounds: int) -> dict[str, Any]:
    try:
        return measure(problem, rounds)
    except (RuntimeError, m2gen.M2GenError) as error:  # a row that fails is a result, and the others still count
        return {"problem": str(problem), "error": str(error)[:2000]}
    finally:
        torch.cuda.empty_cache()


def _line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"{row['problem']:56} FAILED {row['error'][:200]}"
    cells = [f"{row['problem']:56} copy {row['copy_ms']['median'] * row['scale']:8.3f}"]
    for name in row["backward_ms"]:
        forward, backward = (row[d][name]["median"] * row["scale"] for d in ("forward_ms", "backward_ms"))
        cells.append(f"{name} {forward:8.3f} / {backward:8.3f}")
    cells.append(f"kept spectrum {row['forward_ms']['m2gen, kept spectrum']['median'] * row['scale']:8.3f}")
    return "  ".join(cells)

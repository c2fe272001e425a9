"""Times and memory on a device: a GPU by events behind a flush, and by replays of a CUDA graph; a CPU by the clock."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from bench.timing import peak_mib, provenance
from m2gen.errors import M2GenError

Call = Callable[[], Any]
_FLUSH_BYTES = 2**30
_WARM = 3  # calls before the first that counts: what compiles, what is kept, what a graph is recorded from
HOW = (
    "GPU: events around a call, behind 1 GiB written, which takes longer than Python needs to launch most calls and "
    "leaves nothing of the operands in the L2; 'graph' is the replay of a CUDA graph of the same call, timed alike. "
    "CPU: the clock, and no graphs: there 'graph' is the call itself. Operands drawn on the device; kernels compiled "
    "before"
)


class Clock:
    """Times calls on one device."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.gpu = self.device.type == "cuda"
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=self.device) if self.gpu else None

    def times(self, call: Call, rounds: int) -> list[float]:
        """Milliseconds of `rounds` calls, after some that do not count."""
        for _ in range(_WARM):
            call()
        return [self._once(call) for _ in range(rounds)]

    def _once(self, call: Call) -> float:
        if self._flush is None:
            begin = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begin)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    def graph(self, call: Call) -> Call:
        """The replay of a CUDA graph of `call`; on a CPU the call itself. Raises RuntimeError where it cannot be
        captured."""
        if not self.gpu:
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def peak(self, call: Call) -> float:
        """MiB: on a GPU the most that PyTorch had allocated during a call, weights and inputs included; on a CPU by how
        much the process grew."""
        if not self.gpu:
            return peak_mib(call)
        torch.cuda.reset_peak_memory_stats()
        kept = call()
        torch.cuda.synchronize()
        del kept
        flush = 0 if self._flush is None else self._flush.numel()
        return (torch.cuda.max_memory_allocated() - flush) / 2**20

    def settle(self) -> None:
        """Wait until the device is done, and give memory that nothing uses back to it. Raises RuntimeError where the
        device can no longer be used."""
        if self.gpu:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()


def check(device: str) -> None:
    """Raises M2GenError where there is no such device."""
    kind = torch.device(device).type
    if kind not in ("cuda", "cpu") or (kind == "cuda" and not torch.cuda.is_available()):
        raise M2GenError(
            f"a benchmark on {device}", "PyTorch sees no such device", "use a GPU, or --device cpu --tiny for a try"
        )


def room(device: str) -> float:
    """GB of the device's memory for processes that work at once."""
    if torch.device(device).type == "cuda":
        return 0.8 * torch.cuda.mem_get_info()[0] / 2**30
    return 1e9


def described(device: str, note: str | None) -> dict[str, Any]:
    """Provenance: device, driver, versions, commit where it can be told, and how it is timed."""
    found = provenance()
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "capability": f"{properties.major}.{properties.minor}"}
        found |= {"driver": _told(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])}
        found |= {"cuda": torch.version.cuda or "none"}
    found |= {name: _version(name) for name in ("triton", "transformers", "flash-attn")}
    here = str(Path(__file__).parent)
    found["m2gen_commit"] = _told(["git", "-C", here, "rev-parse", "--short", "HEAD"])
    return found | ({"note": note} if note else {}) | {"how": HOW}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not there"


def _told(command: list[str]) -> str:
    """What a command says in its first line, or that it does not."""
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said[0].strip() or "unknown"

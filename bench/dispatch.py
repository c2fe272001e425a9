"""What calls of operators cost on a GPU before and behind the launches of kernels: on a CPU, planned as on a GPU, with
every launch of a generated kernel stubbed. Filters are kept; sizes are small, as PyTorch's own operators compute here.

Backward is `torch.autograd.grad` less what it takes through a Function that does nothing with the same tensors; forward
with gradients likewise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.timing import interleaved, provenance, rounded, summary, write

_CALLS = 200  # of one timing


class _Nothing(torch.autograd.Function):
    """Saves what it is given, and gives empty tensors."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return torch.empty_like(tensors[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors)


class _Stub:
    """A kernel that is compiled at once, and does nothing."""

    def __getitem__(self, _: Any) -> Callable[..., _Stub]:
        return self._run

    def _run(self, *_: Any, **__: Any) -> _Stub:
        return self


@contextmanager
def as_on_a_gpu(arch: str = "sm90") -> Iterator[None]:
    """Inside, operators on CPU tensors are planned for a GPU, and their kernels' launches do nothing."""
    from m2gen.device.limits import target
    from m2gen.runtime.build import triton_kernel
    from m2gen.runtime.build.limits import planned_for

    loaded = triton_kernel.load
    triton_kernel.load = lambda spec: _Stub()  # type: ignore[assignment]
    try:
        with planned_for(target(arch)):
            yield
    finally:
        triton_kernel.load = loaded
        triton_kernel.launcher.cache_clear()
        triton_kernel._quick.clear()


def cases() -> dict[str, tuple[Callable[..., Any], list[Tensor]]]:
    """Each operator's call and the tensors whose gradients are asked for."""
    import m2gen
    from m2gen.ops.blockdiag_linear import blockdiag_glu
    from m2gen.ops.gated_depthwise_conv1d import gated_depthwise_conv1d
    from m2gen.ops.turn import turn

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.bfloat16)

    u, gate, add = normal(2, 8, 64), normal(2, 8, 64), normal(2, 8, 64)
    filter = m2gen.prepare_filter(torch.randn(8, 64))
    x, weight, back, bias = normal(16, 64), normal(4, 32, 16), normal(4, 16, 16), normal(64)
    h, taps, offset = normal(2, 24, 64), normal(24, 3), normal(24)
    return {
        "fftconv, gate": (lambda u, gate: m2gen.fftconv(u, filter, post_gate=gate), [u, gate]),
        "fftconv, add": (lambda u, add: m2gen.fftconv(u, filter, add=add), [u, add]),
        "mixer's short convolutions": (
            lambda h, taps, bias, offset: gated_depthwise_conv1d(h, taps, bias, offset=offset),
            [h, taps, offset, offset.clone()],
        ),
        "block-diagonal GLU": (lambda x, weight: blockdiag_glu(x, weight, "gelu"), [x, weight]),
        "block-diagonal, bias, residual": (
            lambda x, weight, bias, rest: m2gen.blockdiag_linear(x, weight, bias, residual=rest),
            [x, back, bias, x.clone()],
        ),
        "turn": (lambda x: turn(x, True), [normal(2, 64, 8)]),
    }


def _repeated(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(_CALLS):
            call()

    return run


def _calls(call: Callable[..., Any], tensors: list[Tensor]) -> dict[str, Callable[[], Any]]:
    leaves = [t.clone().requires_grad_() for t in tensors]

    def forward() -> Any:
        with torch.no_grad():
            return call(*tensors)

    def backward(function: Callable[..., Any]) -> Callable[[], Any]:
        y = function(*leaves)
        y = list(y) if isinstance(y, tuple) else [y]
        dy = [torch.randn_like(one) for one in y]
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return {
        "forward": forward,
        "forward, gradients follow": lambda: call(*leaves),
        "nothing forward": lambda: _Nothing.apply(*leaves),  # type: ignore[no-untyped-call]
        "backward": backward(call),
        "nothing backward": backward(_Nothing.apply),
    }


def main(rounds: int, out: str | None, only: str | None = None) -> None:
    """Microseconds of each operator, or of those with `only` in their names."""
    os.environ.setdefault("M2GEN_UNTRIED", "trust")
    torch.set_num_threads(1)
    found, results = provenance(), []
    print("a call's own time on this CPU, planned for a GPU, its kernels' launches stubbed, one thread")
    with as_on_a_gpu():
        for name, (call, tensors) in cases().items():
            if only is not None and only not in name:
                continue
            calls = {what: _repeated(one) for what, one in _calls(call, tensors).items()}
            for one in calls.values():
                one()
            times = {what: [1e3 * ms / _CALLS for ms in many] for what, many in interleaved(calls, rounds).items()}
            own = {
                "forward": times["forward"],
                "forward, gradients follow": _less(times, "forward, gradients follow", "nothing forward"),
                "backward": _less(times, "backward", "nothing backward"),
            }
            row: dict[str, Any] = {"group": "calls planned for a GPU, launches stubbed", "problem": name}
            row["ms"] = {what: summary([us / 1e3 for us in many]) for what, many in own.items()}
            row["ratio"] = {}
            row["times"] = rounded({what: [us / 1e3 for us in many] for what, many in own.items()})
            results.append(row)
            line = "  ".join(f"{what} {1e3 * ms['median']:6.1f} us" for what, ms in row["ms"].items())
            print(f"{name:32} {line}", flush=True)
            write(out, found, results)


def _less(times: dict[str, list[float]], what: str, base: str) -> list[float]:
    return [a - b for a, b in zip(times[what], times[base], strict=True)]

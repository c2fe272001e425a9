"""Every launch of a layer on a GPU and what it moves, against the least; the device itself is not needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from m2gen.ahead.models import Sizes
from m2gen.ahead.traffic import FILTER, Layer, _of_torch, explained, layer_of, totals
from m2gen.device.limits import DeviceLimits, target
from m2gen.modules import sequence_mixer
from m2gen.planner.fftconv.problem import FftConvProblem
from m2gen.planner.fftconv.steps import FusedConv
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.search import rank
from m2gen.planner.step import Launch, duration
from m2gen.runtime import executor

TOKENS = 32768


def layer(length: int, gradients: bool = False) -> Layer:
    return layer_of("80M", target("sm90"), Sizes((length,), (TOKENS // length,), "bf16"), gradients=gradients)


@pytest.mark.parametrize("length", [512, 4096])
def test_a_layer_moves_little_more_than_it_must(length: int) -> None:
    """Forward with filters kept at most 1.25 times the least, a training step at most 1.5 times."""
    found = layer(length, gradients=True)
    forward, back = totals(found.forward)[0], totals(found.backward)[0]
    assert 1.0 < forward / found.least <= 1.25, (forward, found.least)
    assert 1.0 < (forward + back) / (found.least + found.least_back) <= 1.5, (forward, back)


def test_the_launches_of_a_layer() -> None:
    """Four matrix products, two long convolutions, the short ones, a turn and a norm: nine, of them five of ours."""
    found = layer(4096)
    kinds = [one.name.split("_")[0] for one in found.forward]
    assert kinds == [
        "torch mm", "shortconv", "fftconv", "turn", "fftconv", "torch addmm", "blockdiag", "blockdiag", "torch native"
    ]  # fmt: skip
    assert not found.backward and not any(one.back for one in found.of_filters)


def test_bytes_are_those_of_the_tensors() -> None:
    """Of PyTorch's operators by hand: (tokens, 768) to (2304, tokens), and a norm of (tokens, 768), in 16 bits."""
    found = layer(512).forward
    product = 2 * (TOKENS * 768 + 2304 * 768 + TOKENS * 2304)
    norm = 2 * (2 * TOKENS * 768 + 2 * 768)
    assert found[0].bytes == product and found[0].flop == 2 * TOKENS * 768 * 2304
    assert norm <= found[-1].bytes <= norm + 16 * TOKENS  # and a row's mean and deviation


@pytest.mark.parametrize(("dtype", "rate"), [("bf16", 989.4e12), ("fp32", 66.9e12), ("fp64", 33.5e12)])
def test_products_take_as_long_as_their_dtype_s_units_need(dtype: str, rate: float) -> None:
    """Rates of the H100's data sheet."""
    first = layer_of("80M", target("sm90"), Sizes((512,), (TOKENS // 512,), dtype)).forward[0]
    assert first.name == "torch mm" and first.flop / rate <= first.seconds <= 2 * first.flop / rate


def test_what_an_operator_of_pytorch_moves_and_takes() -> None:
    """A copy reads one tensor and writes another; an expanded axis is in memory once; a product of one row waits for
    its weight; what turns its operand takes longer; and every launch has its price."""
    aten, sm90 = torch.ops.aten, target("sm90")

    def cost(op: Any, *args: Tensor) -> Launch:
        (found,) = _of_torch(op, args, {}, op(*args), sm90)
        return found

    a, b = torch.empty(256, 1024), torch.empty(256, 1024)
    assert cost(aten.copy_.default, a, b).bytes == 2 * a.nbytes
    assert cost(aten.add.Tensor, a, torch.empty(256, 1).expand(256, 1024)).bytes == 2 * a.nbytes + 256 * 4
    assert cost(aten.add.Tensor, a[:1, :2], b[:1, :2]).seconds > sm90.call_seconds
    row = cost(aten.mm.default, torch.empty(1, 4096), torch.empty(4096, 4096))
    assert row.seconds >= 4096 * 4096 * 4 / sm90.dram_bandwidth
    turned = cost(aten.copy_.default, torch.empty(4096, 8192), torch.empty(8192, 4096).t())
    measured = 0.18e-3 / 0.10e9  # seconds a byte on an H100 (2026-11-26, torch 2.11)
    assert 0.8 < turned.seconds / (turned.bytes * measured) < 1.25


def test_lines_of_a_model() -> None:
    """Batches of 32,768 tokens, and 12 times a layer."""
    lines = list(explained("80M", target("sm90"), lengths="512", batches="", dtype="bf16", backward=False))
    assert lines[0] == "80M is made for 128 tokens: planned as with max_position_embeddings=512"
    assert lines[1] == "a layer of 80M on sm90, 64 sequences of 512 tokens"
    seconds = 12 * totals(layer(512).forward)[1]
    total = next(line for line in lines if line.startswith("12 layers, 32768 tokens"))
    assert duration(seconds) in total and f"{TOKENS / seconds / 1e3:.0f} tokens a millisecond" in total


def test_filters_spectra_are_counted_with_filters() -> None:
    """Two, and again for the gradients, which keep nothing of the forward pass."""
    found = layer(512, gradients=True)
    assert [one.back for one in found.of_filters if one.name == FILTER] == [False] * 2 + [True] * 2


def test_what_a_layer_should_take() -> None:
    """12 layers of 32,768 tokens at 4096: by the estimate at most 14 ms."""
    assert 12 * totals(layer(4096).forward)[1] <= 14e-3


# 12 layers of 32,768 tokens on an H100 (2026-11-26, torch 2.11): 32,768 over 447, 443, 349 and 337 tokens a millisecond
MEASURED = {512: 73.3e-3, 1024: 74.0e-3, 2048: 93.9e-3, 4096: 97.2e-3}


@pytest.mark.parametrize("length", list(MEASURED))
def test_the_layer_that_was_measured(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was then: channels as neighbours throughout, convolutions that read them by strides on the cyclic ring, and
    PyTorch's operators for the rest. The model has to know that time within 25 %."""

    def planned(problem: Problem, limits: DeviceLimits, threads: int) -> Plan:
        plans = rank(problem, limits).plans
        if isinstance(problem, FftConvProblem):
            return next(p for p in plans if type(p.body) is FusedConv and p.body.spec.ring == "cyclic")
        return next(p for p in plans if p.solver == "library")

    monkeypatch.setattr(sequence_mixer, "on_gpu", lambda x: False)
    monkeypatch.setattr(executor, "planned", planned)
    executor.forget()
    seconds = 12 * totals(layer(length).forward)[1]
    executor.forget()
    assert 0.75 <= seconds / MEASURED[length] <= 1.25, seconds


def test_gradients_of_a_stack_of_two_results_are_not_copied() -> None:
    names = [one.name for one in layer(512, gradients=True).backward]
    assert "torch stack" not in names and "torch cat" not in names and "torch clone" not in names


def test_fake_tensors_leave_nothing_behind() -> None:
    layer(512)
    assert torch.empty(1).device.type == "cpu" and type(torch.empty(1)) is torch.Tensor
    from m2gen.runtime.build.limits import elsewhere

    assert not elsewhere()

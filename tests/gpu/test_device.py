"""On a GPU, in calls as users make them: sizes to 1M points, training, graphs, streams, several devices, first calls.

They ask rank() and the public functions alone, so that they try whatever is planned. `python -m pytest -m gpu -n 14`;
`TRITON_INTERPRET=1 python -m pytest -m gpu tests/gpu/test_device.py -k "not large"` tries the tests on a CPU, small.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from on_device import CUDA, DEVICE, HERE, INTERPRETED, NEEDS_DEVICE, captured, check, size, streams
from torch import Tensor

import m2gen
from m2gen.models import M2GPT, M2GPTConfig
from m2gen.planner.plan import Plan
from m2gen.planner.problem import Problem
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.testing.exact import BOUND, STAGED, exact, relative
from m2gen.testing.operands import operands

pytestmark = NEEDS_DEVICE
ROOT = Path(__file__).parents[2]
CHANNELS = 4  # of a large problem that is checked
MOST = 3  # plans of one that are tried


def drawn(text: str, seed: int = 0) -> dict[str, Any]:
    """Arguments of `fftconv`, those with gradients as leaves."""
    args = {name: x for name, x in operands(parse(text), seed, DEVICE).items() if name != "layout"}
    return {name: x.requires_grad_() if isinstance(x, Tensor) and name != "add" else x for name, x in args.items()}


def differentiated(args: dict[str, Any], dy: Tensor) -> dict[str, Tensor]:
    """The result of a call, and every gradient."""
    leaves = {name: x for name, x in args.items() if isinstance(x, Tensor) and x.requires_grad}
    y = m2gen.fftconv(**args)
    return {"result": y.detach(), **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy), strict=True))}


def hold(args: dict[str, Any], found: dict[str, Tensor], dy: Tensor, dtype: str) -> None:
    """Against float64."""
    y, leaves = exact(args)
    right = {"result": y, **dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy.double()), strict=True))}
    assert found.keys() == right.keys()
    for name, want in right.items():
        assert relative(found[name], want) < STAGED * BOUND[dtype], name


# -- sizes -------------------------------------------------------------------------------------------------------------


def large() -> Iterator[Any]:
    """The first plans of real problems from 32K to 1M points, to be checked on few channels."""
    sizes = ((2**15, 768, 16), (2**16, 768, 8), (50_000, 768, 8), (2**18, 768, 2), (10**6, 192, 2), (2**20, 192, 2))
    for n, h, b in sizes:
        for words in ("fp16 circular gated", "bf16 causal gated skip", "bf16 bidirectional", "fp32 causal"):
            problem = parse(f"fftconv n={n} h={h} b={b} {words}")
            plans = [plan for plan in rank(problem, HERE).plans if plan.body.kernels(problem)]
            for plan in plans[:MOST]:
                few = replace(problem, h=CHANNELS, b=min(b, 2 if n > 2**17 else 4))
                yield pytest.param(few, plan, id=f"{problem} by {plan.body.choice}")


@pytest.mark.parametrize(("problem", "plan"), list(large()))
def test_large(problem: Problem, plan: Plan) -> None:
    check(problem, plan)


@pytest.mark.parametrize("n", [256, 1024, 4096, 2**14, 2**17])
@pytest.mark.parametrize("mode", ["circular", "causal"])
@pytest.mark.parametrize(("small", "gate"), [(1e-8, 1.0), (1.0, 1e-8), (1e10, 1e6)])
def test_gradients_of_bfloat16_are_right_whatever_their_size(n: int, mode: str, small: float, gate: float) -> None:
    """Of dy and of the gate that it is multiplied by."""
    args = drawn(f"fftconv n={size(n)} h=2 b=4 bf16 {mode} gated skip")
    args["post_gate"] = (args["post_gate"].detach() * gate).requires_grad_()
    dy = torch.randn_like(args["u"].detach()) * small
    found = differentiated(args, dy)
    y, leaves = exact(args)
    right = torch.autograd.grad(y, list(leaves.values()), dy.double())
    for name, want in zip(leaves, right, strict=True):
        assert relative(found[name], want) < STAGED * BOUND["bf16"], name


@pytest.mark.parametrize("n", [2**17, 2**20])
def test_large_in_a_call(n: int) -> None:
    """What is planned for this very problem, and whatever the operator does around it."""
    text = f"fftconv n={size(n)} h=4 b=2 bf16 causal gated skip"
    args = drawn(text)
    dy = torch.randn_like(args["u"])
    hold(args, differentiated(args, dy), dy, "bf16")


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [128, 1000, 4096])
def test_steps_of_training(length: int) -> None:
    """Loss and gradients of each step beside the same model's in float64 on the CPU, which takes the same steps."""
    length, steps = (64, 1) if INTERPRETED else (length, 3)
    torch.manual_seed(0)
    config = M2GPTConfig(vocab_size=32, d_model=32, n_layers=2, max_length=length)
    right = M2GPT(config).double().train()
    model = copy.deepcopy(right).float().to(DEVICE)
    for step in range(steps):
        tokens = torch.randint(32, (2, length), generator=torch.Generator().manual_seed(step))
        losses, gradients = [], []
        for one in (model, right):
            one.zero_grad()
            device = next(one.parameters()).device
            logits = one(tokens.to(device))
            logits = getattr(logits, "logits", logits)
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens.to(device)[:, 1:].flatten())
            loss.backward()
            losses.append(loss.item())
            gradients.append({n: p.grad.double().cpu() for n, p in one.named_parameters() if p.grad is not None})
        assert abs(losses[0] - losses[1]) < 1e-5 * abs(losses[1])
        assert gradients[0].keys() == gradients[1].keys()
        for name, want in gradients[1].items():
            error = float((gradients[0][name] - want).norm() / want.norm().clamp_min(1e-9))
            assert error < 1e-3, (step, name, error)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in gradients[1]:  # the same step for both: errors do not add up
                    p -= 0.1 * gradients[1][name].to(p)
            for name, p in right.named_parameters():
                if name in gradients[1]:
                    p -= 0.1 * gradients[1][name]


# -- graphs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [256, 1024, 4096, 8192, 32768, 131072])
def test_a_graph_of_forward(n: int) -> None:
    args = drawn(f"fftconv n={size(n)} h=4 b=4 fp16 causal gated skip")
    with torch.no_grad():
        y, replay = captured(lambda: m2gen.fftconv(**args))
        args["u"].copy_(torch.randn_like(args["u"]))
        replay()
        assert relative(y, exact(args)[0]) < STAGED * BOUND["fp16"]


@pytest.mark.parametrize("n", [256, 1024, 4096, 8192, 32768])
def test_a_graph_of_forward_and_backward(n: int) -> None:
    args = drawn(f"fftconv n={size(n)} h=4 b=4 bf16 causal gated")
    dy = torch.randn_like(args["u"])
    names: list[str] = []

    def step() -> tuple[Tensor, ...]:
        found = differentiated(args, dy)
        names[:] = found
        return tuple(found.values())

    results, replay = captured(step)
    with torch.no_grad():
        for x in (args["u"], args["k"], args["pre_gate"], dy):
            x.copy_(torch.randn_like(x))
    replay()
    hold(args, dict(zip(names, results, strict=True)), dy, "bf16")


# -- streams and devices -----------------------------------------------------------------------------------------------


def test_two_streams_at_once() -> None:
    """Of different sizes, over and over: neither's scratch is the other's."""
    texts = [f"fftconv n={size(n)} h=8 b=4 bf16 causal gated" for n in (4096, 20_000)]
    sets = [drawn(text, seed) for seed, text in enumerate(texts)]
    dys = [torch.randn_like(args["u"]) for args in sets]
    for args, dy in zip(sets, dys, strict=True):
        differentiated(args, dy)  # compiled before
    with streams(2) as both:
        found: list[list[dict[str, Tensor]]] = [[], []]
        for _ in range(2 if not CUDA else 20):
            for number, stream in enumerate(both):
                with stream:
                    found[number].append(differentiated(sets[number], dys[number]))
    for number, results in enumerate(found):
        for one in results[1:]:
            assert all(torch.equal(one[name], results[0][name]) for name in one)
        hold(sets[number], results[-1], dys[number], "bf16")


@pytest.mark.skipif(not CUDA or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_device() -> None:
    """Whichever is current: launches are where the tensors are."""
    args = drawn("fftconv n=4096 h=8 b=4 bf16 causal gated")
    other = {n: x.detach().to("cuda:1").requires_grad_() if isinstance(x, Tensor) else x for n, x in args.items()}
    dy = torch.randn_like(args["u"])
    first = differentiated(args, dy)
    with torch.cuda.device(0):
        second = differentiated(other, dy.to("cuda:1"))
    for name, want in first.items():
        assert second[name].device == torch.device("cuda", 1)
        assert relative(second[name].to(DEVICE), want) < BOUND["bf16"], name


# -- first calls -------------------------------------------------------------------------------------------------------

FIRST = """
import json, time, torch, triton, m2gen
compiled = []
triton.knobs.compilation.listener = lambda cache_hit, **_: compiled.append(not cache_hit)
u, k, gate = (torch.randn(s, device={device!r}, dtype=torch.float16) for s in ((4, 8, 4096), (8, 4096), (4, 8, 4096)))
u, gate, k = u.requires_grad_(), gate.requires_grad_(), k.float().requires_grad_()
start = time.perf_counter()
y = m2gen.fftconv(u, k, mode="causal", post_gate=gate)
y[0, 0, 0].item()
first = time.perf_counter() - start
torch.autograd.grad(y, (u, k, gate), torch.randn_like(y))[1][0, 0].item()
print(json.dumps([sum(compiled), len(compiled), first, time.perf_counter() - start]))
"""


def first_call(folder: Path, **environment: str) -> list[float]:
    """(kernels that the process compiled itself, all it took from Triton, seconds to the result, to the gradients)."""
    variables = {"TRITON_CACHE_DIR": str(folder), "PYTHONPATH": str(ROOT), "M2GEN_UNTRIED": "trust", **environment}
    done = subprocess.run(
        [sys.executable, "-c", FIRST.format(device=str(DEVICE))],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(not CUDA, reason="needs a GPU")
def test_a_first_call_compiles_one_kernel_itself_and_none_that_is_there(tmp_path: Path) -> None:
    """Forward; the others are compiled beside it. And none in a second process, nor with a folder of m2gen compile."""
    own, every, *seconds = first_call(tmp_path / "empty")
    assert own < every, seconds
    assert first_call(tmp_path / "empty")[0] == 0
    problem = "fftconv n=4096 h=8 b=4 fp16 causal post_gated"
    words = ["compile", *problem.split(), "--backward", "--target", HERE.arch, "--out", str(tmp_path / "kernels")]
    subprocess.run([sys.executable, "-m", "m2gen", *words], cwd=ROOT, check=True, capture_output=True)
    assert first_call(tmp_path / "other", M2GEN_COMPILED_DIR=str(tmp_path / "kernels"))[0] == 0

"""Kernels for 64-bit Arm, cross-compiled and run in an emulator: the numbers, not the speed.

Needs aarch64-linux-gnu-g++ and qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user); skipped where they are not.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from m2gen.codegen.render import render
from m2gen.device.limits import target
from m2gen.kernels.blockdiag_mm import BlockdiagMmSpec
from m2gen.kernels.spec import KernelSpec
from m2gen.planner.monarch.steps import NativeMonarch
from m2gen.planner.problems import parse
from m2gen.planner.search import rank
from m2gen.reference.monarch import standard
from m2gen.runtime.bindings import monarch, native
from m2gen.runtime.posed import monarch_problem
from m2gen.testing.tolerances import check
from tests.runtime.test_native import check_everything, kernel_with, native_plan

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
pytestmark = [
    pytest.mark.skipif(not (COMPILER and EMULATOR), reason="no cross compiler, or no emulator, for 64-bit Arm"),
    pytest.mark.slow,
]

MAIN = """
#include <cstdio>
#include <cstdlib>
#include <cstring>
static int64_t number() { int64_t n; if (fread(&n, 8, 1, stdin) != 1) exit(2); return n; }
int main() {
  const int64_t items = number(), integers = number(), buffers = number();
  int64_t *ints = (int64_t *)malloc(8 * integers);
  for (int64_t i = 0; i < integers; i++) ints[i] = number();
  void **whole = (void **)malloc(8 * buffers), **ptrs = (void **)malloc(8 * buffers);
  int64_t *sizes = (int64_t *)malloc(8 * buffers);
  for (int64_t i = 0; i < buffers; i++) {
    const int64_t offset = number();
    sizes[i] = number();
    whole[i] = aligned_alloc(64, (sizes[i] + 127) / 64 * 64);
    if (sizes[i] && fread(whole[i], sizes[i], 1, stdin) != 1) return 2;
    ptrs[i] = offset < 0 ? nullptr : (char *)whole[i] + offset;
  }
  void *scratch = aligned_alloc(64, (NAME_scratch(ints) + 127) / 64 * 64);
  NAME(ptrs, ints, scratch, 0, items);
  for (int64_t i = 0; i < buffers; i++) fwrite(whole[i], 1, sizes[i], stdout);
}
"""


class Emulated:
    """Stands in for a loaded kernel. Buffers are the storages of the tensors whose addresses were taken, in order."""

    def __init__(self, spec: KernelSpec, folder: Path, tensors: list[Tensor | None]) -> None:
        source = render(spec)
        self.tensors, self.program = tensors, folder / source.name
        if not self.program.exists():
            text = folder / f"{source.name}.cpp"
            text.write_text(source.text + MAIN.replace("NAME", source.name))
            flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-static", "-Wno-psabi"]
            subprocess.run([str(COMPILER), *flags, str(text), "-o", str(self.program)], check=True)

    def run(self, pointers: list[int], integers: list[int], items: int, parallel: bool = True) -> None:
        tensors = self.tensors[-len(pointers) :]
        assert [0 if t is None else t.data_ptr() for t in tensors] == list(pointers)
        given = struct.pack(f"<{3 + len(integers)}q", items, len(integers), len(pointers), *integers)
        for tensor in tensors:
            data = b"" if tensor is None else bytes(_storage(tensor).numpy())
            offset = -1 if tensor is None else tensor.data_ptr() - tensor.untyped_storage().data_ptr()
            given += struct.pack("<qq", offset, len(data)) + data
        done = subprocess.run([str(EMULATOR), str(self.program)], input=given, capture_output=True, check=True).stdout
        for tensor in (t for t in tensors if t is not None):
            size = tensor.untyped_storage().nbytes()
            _storage(tensor).copy_(torch.frombuffer(bytearray(done[:size]), dtype=torch.uint8))
            done = done[size:]


def _storage(tensor: Tensor) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(tensor.detach().untyped_storage())


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Tensor | None]]:
    taken: list[Tensor | None] = []

    def address(tensor: Tensor | None) -> int:
        taken.append(tensor)
        return 0 if tensor is None else tensor.data_ptr()

    monkeypatch.setattr(native, "_address", address)
    monkeypatch.setattr(native, "load", lambda spec: Emulated(spec, tmp_path, taken))
    yield taken


@pytest.mark.parametrize(
    "words",
    [
        "n=130 k=130 causal fp32 gated skip",
        "n=150 k=90 bidirectional fp64 pre_gated",
        "n=100 k=31 same bf16 blh post_gated skip add",
        "n=96 k=40 circular fp16 blh",
    ],
)
def test_the_convolution(words: str, emulated: list[Any]) -> None:
    problem = parse(f"fftconv h=9 b=2 {words}")
    check_everything(problem, kernel_with(native_plan(problem, "neon")))
    assert emulated


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
def test_the_product(dtype: str, tmp_path: Path) -> None:
    def spec(part: Any) -> BlockdiagMmSpec:
        return BlockdiagMmSpec(
            part=part, columns=3, dtype=dtype, glu=part == "fwd", activation="gelu" if part == "fwd" else None,
            vector_bytes=16, registers=32, arch="neon",
        )  # fmt: skip

    kind = torch.float32 if dtype == "fp32" else torch.float64
    x, w = torch.randn(29, 40, dtype=kind), torch.randn(2, 37, 20, dtype=kind)
    width = spec("fwd").width
    panels = -(-37 // width)
    packed, y = (
        torch.full((2 * panels * 20 * width,), torch.nan, dtype=kind),
        torch.full((29, 37), torch.nan, dtype=kind),
    )
    Emulated(spec("pack"), tmp_path, [w, packed]).run(
        [w.data_ptr(), packed.data_ptr()], [2, 20, 37, *w.stride()], 2 * panels
    )
    bias, beside = torch.randn(74, dtype=kind), torch.randn(29, 50, dtype=kind)
    tensors = [x, packed, bias, beside, y]
    pointers = [t.data_ptr() for t in tensors]
    Emulated(spec("fwd"), tmp_path, tensors).run(pointers, [29, 2, 20, 37, 40, 50, 37, 1, panels, 0, *w.stride()], 1)
    for begin, end, packs in (
        (0, 29, 1),
        (5, 12, 1),
        (7, 8, 1),
        (9, 26, 0),
    ):  # fewer rows, and weights packed on the way
        some, weights = torch.full((end - begin, 37), torch.nan, dtype=kind), w if packs else packed
        tensors = [x[begin:end].clone(), weights, bias, beside[begin:end].clone(), some]
        pointers = [t.data_ptr() for t in tensors]
        sizes = [end - begin, 2, 20, 37, 40, 50, 37, 1, panels, packs, *w.stride()]
        Emulated(spec("fwd"), tmp_path, tensors).run(pointers, sizes, 1)
        assert torch.equal(some, y[begin:end])
    off = bias.double().view(2, 1, 37)
    gate, value = torch.einsum("rck,cnk->crn", x.double().view(29, 2, 20), w.double()) + off
    big, wide = torch.einsum("rck,cnk->crn", x.double().abs().view(29, 2, 20), w.double().abs()) + off.abs()
    rest = beside[:, :37].double()
    check(y, torch.nn.functional.gelu(gate) * value + rest, big * wide + rest.abs(), 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shapes", [((13, 7, 11), (7, 3, 13)), ((8, 8, 8),) * 3], ids=str)
def test_the_monarch_product(
    shapes: tuple[tuple[int, int, int], ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All gradients, and a row alone."""
    taken: list[Tensor | None] = []

    def address(tensor: Tensor | None) -> int:
        taken.append(tensor)
        return 0 if tensor is None else tensor.data_ptr()

    monkeypatch.setattr(monarch, "_address", address)
    monkeypatch.setattr(monarch, "load", lambda spec: Emulated(replace(spec, arch="neon"), tmp_path, taken))

    def kernel(rows: int) -> monarch.NativeKernel:
        problem = monarch_problem(shapes, rows, dtype)
        plan = rank(problem, target("neon")).best("native")
        assert plan is not None and isinstance(plan.body, NativeMonarch)
        return monarch.NativeKernel(problem, plan.body)

    x = torch.randn(29, shapes[0][0] * shapes[0][2], dtype=dtype)
    factors = [torch.randn(shape, dtype=dtype) for shape in shapes]
    y = kernel(29).product(x, factors)
    dy = torch.randn_like(y)
    assert torch.equal(kernel(1).product(x[3:4].clone(), factors), y[3:4])
    grads = kernel(29).gradients(dy, x, factors, [True] * (1 + len(shapes)))
    assert grads is not None
    wanted, sizes = [], []
    for found, change in ((wanted, lambda t: t), (sizes, torch.abs)):
        leaves = [change(t.double()).clone().requires_grad_() for t in (x, *factors)]
        exact = leaves[0] @ standard(leaves[1:]).T
        found += [exact.detach(), *torch.autograd.grad(exact, leaves, change(dy.double()))]
    terms = 30 + sum(n + k for _, n, k in shapes)
    for got, want, size in zip([y, *grads], wanted, sizes, strict=True):
        assert got is not None
        check(got, want, size, terms)

"""A small hand-written kernel and what it should compute; and forgetting what the process found out."""

from __future__ import annotations

import torch

from m2gen.cache import store
from m2gen.codegen.render import Source
from m2gen.runtime.build import compiler, cpp_kernel
from m2gen.runtime.build.cpp_kernel import CppKernel

# y[i] = factor * i through scratch; and where the scratch was
TEXT = """
#include <cstdint>
extern "C" int64_t scaled_scratch(const int64_t *ints) { return ints[1]; }
extern "C" void scaled(void *const *ptrs, const int64_t *ints, void *scratch, int64_t begin, int64_t end) {
  double *y = static_cast<double *>(ptrs[0]);
  int64_t *where = static_cast<int64_t *>(ptrs[1]);
  volatile double *own = static_cast<double *>(scratch);
  const int64_t room = ints[1] / 8;
  for (int64_t i = begin; i < end; i++) {
    for (int64_t k = 0; k < room; k++) own[k] = i;
    double sum = 0;
    for (int64_t k = 0; k < room; k++) sum += own[k];
    y[i] = ints[0] * sum / room;
    where[i] = reinterpret_cast<int64_t>(scratch);
  }
}
"""
SCALED = Source("scaled", TEXT)


def scaled(
    kernel: CppKernel, factor: int = 3, items: int = 1000, room: int = 4096
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, addresses of scratch) of the small kernel; y should be factor * i."""
    y, where = torch.full((items,), float("nan"), dtype=torch.float64), torch.zeros(items, dtype=torch.int64)
    kernel.run([y.data_ptr(), where.data_ptr()], [factor, room], items)
    return y, where


def is_right(y: torch.Tensor, factor: int = 3) -> bool:
    return torch.equal(y, factor * torch.arange(len(y), dtype=torch.float64))


MEMOISED = (
    store.source_folder,
    compiler.compiler,
    cpp_kernel.load,
    cpp_kernel.available,
    cpp_kernel._dispatcher,
    cpp_kernel._team,
)


def forget() -> None:
    for function in MEMOISED:
        function.cache_clear()

"""Generated gates against float64: value and gradient, every dtype, widths with and without remainders."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch
from jinja2 import meta

from m2gen.codegen.environment import environment
from m2gen.codegen.loader import templates_dir
from m2gen.codegen.render import fields
from m2gen.kernels.gate import GateSpec
from m2gen.ops.gate import by_steps
from m2gen.runtime import executor
from m2gen.runtime.build.cpp_kernel import available

pytestmark = [pytest.mark.skipif(available() is not None, reason="no C++ compiler"), pytest.mark.generated]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["gelu", "silu", "relu", None])
def test_value_and_gradient(activation: str | None, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    eps = torch.finfo(dtype).eps
    for rows, width in ((1, 1), (3, 15), (40, 16), (70, 100), (9, 4097)):
        z = (3 * torch.randn(rows, 2 * width)).to(dtype)
        dy = torch.randn(rows, width).to(dtype)
        exact = z.double().requires_grad_()
        reference = by_steps(exact, activation)
        (slope,) = torch.autograd.grad(reference, exact, dy.double())
        y, dz = executor.gated(z, activation), executor.gate_gradient(dy, z, activation)
        assert y is not None and dz is not None
        g, h = z.double().abs().chunk(2, -1)
        d = dy.double().abs()
        # an activation is off by some eps of its argument: it is one times a probability
        for found, wanted, size in ((y, reference, g * h), (dz, slope, torch.cat([d * h * (1 + g), d * g], -1))):
            assert ((found.double() - wanted).abs() <= 2 * eps * size + 1e-7 * eps).all()


def test_rows_that_are_no_rows_in_memory() -> None:
    z, dy = torch.randn(6, 40), torch.randn(20, 6)
    turned = z.t().contiguous().t()
    assert torch.equal(executor.gated(turned, "gelu"), executor.gated(z, "gelu"))  # type: ignore[arg-type]
    dz = executor.gate_gradient(dy.t(), turned, "gelu")
    assert torch.equal(dz, executor.gate_gradient(dy.t().contiguous(), z, "gelu"))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", sorted((templates_dir() / "cpp" / "gate").glob("*.jinja")), ids=lambda path: path.name)
def test_a_template_sees_the_spec_and_nothing_else(path: Path) -> None:
    spec = GateSpec(part="fwd", activation=None, dtype="fp32")
    assert meta.find_undeclared_variables(environment("cpp").parse(path.read_text())) <= fields(spec).keys()


def test_a_name_spells_every_field() -> None:
    every = product(("fwd", "bwd"), ("gelu", None), ("fp32", "bf16"), (32, 64))
    specs = [GateSpec(part=p, activation=a, dtype=d, vector_bytes=v) for p, a, d, v in every]  # type: ignore[arg-type]
    assert len({spec.name for spec in specs}) == len(specs)
